"""`metrics` against hand values, `verify` against files that are wrong on purpose."""

import dataclasses
import math

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import metrics, precisions
from tflite_export.proof.file_source import file_source
from tflite_export.proof.outputs import Accepted, check_output


def test_errors_by_hand():
    found = metrics.errors(np.array([[3.0, 4.0]]), np.array([[3.0, 1.0]]))
    assert found.max_abs_error == 3
    assert found.rmse == pytest.approx(math.sqrt(9 / 2))
    assert found.snr_db == pytest.approx(10 * math.log10(25 / 9))
    assert found.cosine == pytest.approx(13 / (5 * math.sqrt(10)))
    assert found.peak == 4


def test_errors_at_the_edges():
    zero, one = np.zeros(3), np.ones(3)
    assert metrics.errors(one, one) == metrics.Errors(0.0, 0.0, math.inf, 1.0, 1.0)
    assert metrics.errors(zero, one) == metrics.Errors(1.0, 1.0, -math.inf, 0.0, 0.0)
    assert metrics.errors(one, np.array([1, np.nan, 1])).rmse == math.inf
    with pytest.raises(ValueError, match=r"\(3,\), candidate \(2,\)"):
        metrics.errors(one, np.ones(2))


def test_top1_by_hand():
    reference = np.array([[1, 2], [2, 1], [0, 1], [0, 1]])
    candidate = np.array([[0, 9], [1, 2], [0, 1], [np.nan, 1]])
    assert metrics.top_agreement(reference, candidate, 1) == 0.5


def _perturbed(model, factor):
    other = keras.models.clone_model(model)
    other.set_weights([weight * factor for weight in model.get_weights()])
    return other


def test_verification_numbers_equal_numpy(dense):
    x = np.random.default_rng(0).normal(size=(50, 12)).astype("float32")
    file = tflite_export.convert(_perturbed(dense, 1.01), "float32")
    result = tflite_export.verify(dense, file, x)
    reference = x @ np.asarray(dense.weights[0]) + np.asarray(dense.weights[1])
    assert result.max_abs_error == pytest.approx(0.01 * np.abs(reference).max(), rel=1e-3)
    assert result.rmse == pytest.approx(0.01 * np.sqrt(np.mean(reference**2)), rel=1e-3)
    assert result.snr_db == pytest.approx(40, abs=0.01)
    assert result.cosine == pytest.approx(1, abs=1e-6)
    assert result.top1_agreement == 1
    assert result.samples == 50
    assert result.tolerance == precisions.get("float32").tolerance
    assert not result.passed  # 1 % is far above float32's tolerance
    assert str(result).startswith("FAILED: rmse")
    assert tflite_export.verify(dense, file, x, tolerance=0.01).passed
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.passed = True


def test_one_dead_class_of_many_fails_though_rmse_is_small():
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(200, name="logits")])
    model.set_weights([np.eye(200, dtype="float32"), np.zeros(200, "float32")])
    broken = keras.models.clone_model(model)
    broken.set_weights([np.diag(np.arange(200) != 7).astype("float32"), np.zeros(200, "float32")])
    x = np.eye(200, dtype="float32")
    result = tflite_export.verify(model, tflite_export.convert(broken, "int8_float_io", x), x)
    assert result.rmse <= result.outputs[0].rmse_limit
    assert result.max_abs_error > result.outputs[0].max_limit
    assert not result.passed
    assert result.top1_agreement is None  # output as wide as the input: not a classifier


def test_worst_output_decides(convnet, images, int8_file):
    result = tflite_export.verify(convnet, int8_file, images)
    assert [check.name for check in result.outputs] == ["zebra", "ant"]
    assert result.max_abs_error == max(check.max_abs_error for check in result.outputs)
    assert result.snr_db == min(check.snr_db for check in result.outputs)
    assert result.passed
    assert not tflite_export.verify(convnet, int8_file, images, tolerance=1e-9).passed


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), "0.1"])
def test_bad_tolerance(dense, tolerance):
    with pytest.raises(ValueError, match="`tolerance` must be a number > 0"):
        tflite_export.verify(dense, b"", np.ones((1, 12)), tolerance)


def test_file_of_another_model(dense, int8_file):
    with pytest.raises(ValueError, match=r"has the outputs \['d'\], the file \['zebra', 'ant'\]: not its file"):
        tflite_export.verify(dense, int8_file, np.ones((1, 12)))


@pytest.mark.parametrize(
    ("tflite", "error", "message"),
    [
        (b"", ValueError, "not a .tflite file: 0 bytes"),
        (b"x" * 100, ValueError, "not a .tflite file: 100 bytes without the mark 'TFL3'"),
        (b"\x1c\0\0\0TFL3" + b"\xff" * 100, ValueError, "damaged .tflite file"),
        ("none.tflite", FileNotFoundError, "No such file: 'none.tflite'"),
        (7, TypeError, "must be a TFLiteModel, a path or bytes; got int"),
    ],
)
def test_unreadable_files(dense, tflite, error, message):
    with pytest.raises(error, match=message):
        tflite_export.verify(dense, tflite, np.ones((1, 12)))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_file(dense, part):
    content = tflite_export.convert(dense, "float32").content
    with pytest.raises(ValueError, match="damaged|cannot load"):
        tflite_export.verify(dense, content[: int(part * len(content))], np.ones((1, 12)))


def test_model_record(dense, int8_file, images, tmp_path):
    path = int8_file.save(tmp_path / "deep" / "net.tflite")
    loaded = type(int8_file).load(path)
    assert loaded == int8_file
    assert int8_file.size_bytes == path.stat().st_size
    assert 0 < int8_file.gzip_bytes < int8_file.size_bytes
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"inputs, input 'image': expected shape \(n, 16, 16, 3\)"):
        int8_file.predict(images[0])


def test_a_failed_write_keeps_the_old_file(int8_file, tmp_path, monkeypatch):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        int8_file.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_model_is_refused_by_shape():
    small, large = (keras.Sequential([keras.Input((n,)), keras.layers.Dense(2)]) for n in (3, 5))
    with pytest.raises(ValueError, match=r"takes samples of shape \(3,\), the file of \(5,\): not its file"):
        tflite_export.verify(small, tflite_export.convert(large, "float32"), np.ones((2, 3), "float32"))


@pytest.mark.parametrize("scale", [255, 1000])
def test_a_file_calibrated_on_another_scale_does_not_pass(scale):
    x = np.random.default_rng(0).random((64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)])
    assert tflite_export.verify(model, tflite_export.convert(model, "int8", x), x).passed
    assert not tflite_export.verify(model, tflite_export.convert(model, "int8", scale * x), x).passed


def test_a_nan_in_the_place_of_the_largest_class_is_no_agreement():
    reference, candidate = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, np.nan], [1.0, 0.0]])
    assert metrics.top_agreement(reference, candidate, 1) == 0.5


def test_a_file_as_the_source(convnet, dense, images):
    whole = tflite_export.convert(convnet, "float32")
    small = tflite_export.convert(convnet, "int8_float_io", images)
    by_file = tflite_export.verify(whole, small, images, layers=True)
    by_model = tflite_export.verify(convnet, small, images, layers=True)
    assert by_file.passed
    assert by_file.rmse == pytest.approx(by_model.rmse, rel=1e-3)
    assert [layer.op for layer in by_file.layers] == [layer.op for layer in by_model.layers]
    assert tflite_export.verify(whole.content, whole, images).max_abs_error == 0
    assert file_source(whole).outputs == ("zebra", "ant")
    assert not tflite_export.verify(small, whole, images, 1e-4).passed
    with pytest.raises(ValueError, match=r"the float32 file has the outputs .*the file"):
        tflite_export.verify(whole, tflite_export.convert(dense, "float32"), images)


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8"])
def test_integers_by_their_share_that_differs(dtype):
    reference = np.array([[0, 1], [1, 1], [0, 0], [1, 0]]).astype(dtype)
    candidate = reference.copy()
    candidate[0, 0] = 1
    at, below = (check_output("y", reference, candidate, Accepted(tolerance)) for tolerance in (1 / 8, 0.12))
    assert (at.differing, at.passed, at.excess) == (1 / 8, True, 0)
    assert (below.differing, below.passed, below.excess) == (1 / 8, False, 1 + 1 / 8)
    assert check_output("y", reference, reference, Accepted(0.01)).differing == 0
