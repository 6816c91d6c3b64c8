"""In which layer a file goes wrong, how near is near enough, and what is written of it."""

import json

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import metrics
from tflite_export.proof.outputs import Accepted, check_output
from tflite_export.tflite.objects import FileObjects

layers = keras.layers


@pytest.fixture(scope="module")
def deep():
    keras.utils.set_random_seed(2)
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for name in ("one", "two", "three"):
        x = layers.Conv2D(8, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(image, layers.Dense(7, name="head")(layers.GlobalAveragePooling2D(name="pool")(x)))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((40, 8, 8, 3)).astype("float32")


def spoiled(content, layer):
    """The file with a kernel of other numbers in one layer."""
    file = FileObjects(content)
    for operator in file.operators:
        if file.kind(operator) == "CONV_2D" and layer.encode() in file.graph.tensors[operator.outputs[0]].name:
            buffer = file.model.buffers[file.graph.tensors[operator.inputs[1]].buffer]
            buffer.data = np.roll(np.asarray(buffer.data, np.uint8), len(buffer.data) // 2)
            return file.content()
    raise AssertionError(layer)


@pytest.mark.parametrize(
    ("precision", "layer"),
    [("float32", "one"), pytest.param("float16", "two", marks=pytest.mark.slow), ("int8", "one"), ("int8", "three")],
)
def test_the_layer_that_was_spoiled_is_named(deep, pictures, precision, layer):
    file = tflite_export.convert(deep, precision, pictures)
    assert tflite_export.verify(deep, file, pictures).diverges is None
    content = file.content
    if precision == "float16":  # kernels are constants of a DEQUANTIZE
        content = tflite_export.convert(deep, "float32").content
    result = tflite_export.verify(deep, spoiled(content, layer), pictures)
    assert not result.passed
    assert (result.diverges.layer, result.diverges.op) == (layer, "CONV_2D")
    assert f"first layer above the tolerance: {layer} (CONV_2D): rmse" in str(result)


def test_errors_of_all_layers_equal_keras(deep, pictures):
    """The rmse of a layer's tensor against Keras' own output of that layer."""
    file = tflite_export.convert(deep, "int8", pictures)
    result = tflite_export.verify(deep, file, pictures, layers=True)
    assert [error.layer for error in result.layers] == ["one", "two", "three", "pool", "head"]
    assert result.diverges is None
    assert "worst layer: " in str(result)
    inner = keras.Model(deep.input, deep.get_layer("two").output)(pictures[:8])
    two = result.layers[1]
    assert two.relative == pytest.approx(two.rmse / np.max(inner), rel=1e-3)
    assert 0.0005 < two.relative < 0.01


def test_layers_that_cannot_be_measured_are_refused_when_asked_for(deep, pictures, monkeypatch):
    def fails(*_):
        raise tflite_export.ConversionError("no float32 file")

    file = tflite_export.convert(deep, "int8", pictures)
    monkeypatch.setattr("tflite_export.proof.divergence.float_file", fails)
    with pytest.raises(tflite_export.ConversionError, match="no float32 file"):
        tflite_export.verify(deep, file, pictures, layers=True)
    failed = tflite_export.verify(deep, file, pictures, 1e-6)
    assert (failed.passed, failed.layers) == (False, ())


def test_inputs_of_other_names(deep, pictures):
    other = keras.Input((8, 8, 3), name="picture")
    renamed = keras.Model(other, deep(other))
    keras.utils.set_random_seed(9)
    stranger = tflite_export.convert(keras.models.clone_model(deep), "float32")
    result = tflite_export.verify(renamed, stranger, pictures)
    assert not result.passed
    assert result.diverges is None or result.diverges.layer


def test_what_is_written(deep, pictures, tmp_path):
    file = tflite_export.convert(deep, "int8", pictures)
    path = file.save(tmp_path / "net.tflite")
    result = tflite_export.verify(deep, path, pictures, layers=True)
    written = result.save(path)
    assert written == tmp_path / "net.verify.json"
    found = json.loads(written.read_text())
    assert found["rmse"] == result.rmse
    assert found["outputs"][0]["max_steps"] == pytest.approx(result.max_abs_error / file.outputs[0].scale)
    assert found["outputs"][0]["max_steps"] == pytest.approx(round(found["outputs"][0]["max_steps"]), abs=1)
    assert [layer["layer"] for layer in found["layers"]] == ["one", "two", "three", "pool", "head"]
    same = check_output("y", np.ones((3, 2)), np.ones((3, 2)), Accepted(0.01))
    assert same.snr_db == np.inf
    exact = tflite_export.verify(deep, tflite_export.convert(deep, "float32"), np.zeros((1, 8, 8, 3)))
    assert json.loads(exact.save(tmp_path / "exact.json").read_text())["passed"] is True


def test_top_five_by_hand():
    reference = np.eye(8)[[0, 1, 2, 3]]
    candidate = np.tile(np.arange(8.0), (4, 1))  # its five largest are 3 to 7
    assert metrics.top_agreement(reference, candidate, 5) == 0.25
    assert metrics.top_agreement(reference, candidate, 8) == 1.0
    assert metrics.top_agreement(reference, -candidate, 5) == 1.0
    check = check_output("y", reference, candidate, Accepted(0.01), classifier=True)
    assert (check.top1_agreement, check.top5_agreement) == (0.0, 0.25)
    few = check_output("y", reference[:, :5], candidate[:, :5], Accepted(0.01), classifier=True)
    assert few.top5_agreement is None


def test_a_limit_is_no_tighter_than_the_noise_of_the_runtime():
    reference, candidate = np.array([[1.0, 0.0]]), np.array([[1.1, 0.0]])
    assert not check_output("y", reference, candidate, Accepted(0.01), measured=True).passed
    noisy = check_output("y", reference, candidate, Accepted(0.01, noise=0.08), measured=True)
    assert noisy.passed
    assert noisy.kernel_rmse == 0.08
    assert "kernels of one file differ as much" in noisy.why(0.01)
    assert Accepted(0.01, step=1.0).limit(1.0) == pytest.approx(0.01 + 4 / 255)
    assert Accepted(0.01, step=0.001).limit(2.0) == pytest.approx(0.021)


def test_a_file_that_fails_tells_the_noise_of_the_runtime(deep, pictures):
    file = tflite_export.convert(deep, "int8", pictures)
    result = tflite_export.verify(deep, spoiled(file.content, "one"), pictures)
    assert result.outputs[0].kernel_rmse <= 2 * file.outputs[0].scale
    assert tflite_export.verify(deep, file, pictures).outputs[0].kernel_rmse is None
    assert tflite_export.verify(deep, spoiled(file.content, "one"), pictures, 1e-4).outputs[0].kernel_rmse is None
