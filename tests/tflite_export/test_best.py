"""The cheapest file that keeps the accuracy: what is tried, in which order, and what is chosen."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.conversion import lowering
from tflite_export.proof.best import _chosen, by_added_error
from tflite_export.proof.comparison import compare
from tflite_export.proof.divergence import LayerError

layers = keras.layers
X = np.random.default_rng(0).normal(size=(300, 16)).astype("float32")


@pytest.fixture(scope="module")
def wild():
    """A net of which only the layer `wide` cannot bear int8: its channels differ by a factor of 10,000."""
    keras.utils.set_random_seed(8)
    x = keras.Input((16,), name="x")
    h = layers.Dense(48, activation="relu", name="plain")(x)
    h = layers.Dense(64, activation="relu", name="wide")(h)
    model = keras.Model(x, layers.Dense(5, name="logits")(h))
    scale = np.logspace(0, 4, 64)
    model.get_layer("wide").kernel.assign(model.get_layer("wide").kernel * scale)
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel / scale[:, None])
    return model


def agreement(model):
    labels = np.asarray(model(X)).argmax(-1)
    return lambda file: float(np.mean(file.predict(X).argmax(-1) == labels))


def test_layers_go_back_to_float_until_it_holds(wild, capsys):
    best = tflite_export.convert_best(wild, X, agreement(wild), precisions=["int8"], max_drop=0.05, prefer="size")
    tried = [step for step in best.steps if step.precision == "int8"]
    assert not tried[0].holds
    assert tried[0].float_layers == ()
    assert all(not step.holds for step in tried[:-1])
    assert tried[-1].holds
    assert best.chosen is tried[-1]
    assert "wide" in best.chosen.float_layers
    assert len(best.chosen.float_layers) < 3
    assert best.reference == 1.0
    assert agreement(wild)(best.file) == best.chosen.value >= 0.95
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(best.steps)
    assert printed[1].startswith("int8: 0.")
    assert printed[1].endswith("drops too far")
    assert any(line.startswith("  -> int8 with") and line.endswith("holds") for line in str(best).splitlines())


def test_ranges_are_learned_once_a_precision(wild, monkeypatch):
    learned, real = [], lowering.calibrated
    monkeypatch.setattr(lowering, "calibrated", lambda job, folder: learned.append(1) or real(job, folder))
    best = tflite_export.convert_best(wild, X, agreement(wild), precisions=["int8"], max_drop=0.05, prefer="size")
    assert len(best.steps) > 2
    assert len(learned) == 1
    layers = dict.fromkeys(best.chosen.float_layers, "float32")
    assert best.file.content == tflite_export.convert(wild, "int8", X, layers=layers).content


def test_the_float_file_if_nothing_else_holds(wild):
    calls = []

    def metric(file):
        calls.append(file.precision)
        return 1.0 if file.precision == "float32" else 0.0

    best = tflite_export.convert_best(wild, X, metric, precisions=["int8_float_io", "float16"], verbose=0)
    assert best.file.precision == best.chosen.precision == "float32"
    assert calls[0] == "float32"
    assert calls[-1] == "float16"
    assert all(not step.holds for step in best.steps[1:])
    assert best.steps[-2].float_layers  # every layer was given back, without success


def test_a_precision_that_cannot_be(capsys):
    """A loop is no int8 file: it is told and the others are tried."""
    model = keras.Sequential([keras.Input((6, 4)), layers.LSTM(5, name="memory"), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(30, 6, 4)).astype("float32")
    best = tflite_export.convert_best(
        model, x, lambda file: -tflite_export.verify(model, file, x).rmse, precisions=["int8", "float16"], max_drop=0.1
    )
    assert best.steps[1].value is None
    assert "layer 'memory' is a loop" in best.steps[1].note
    assert "int8: no file. Keras model 'sequential" in capsys.readouterr().out
    assert best.chosen.precision in ("float32", "float16")


def test_layers_without_integer_kernels_stay_float():
    """A sine has none: the violation names the layer, which is left float at once."""
    x = keras.Input((6, 16))
    model = keras.Model(x, layers.Dense(3, name="d")(layers.Activation(keras.ops.sin, name="norm")(x)))
    data = np.random.default_rng(0).normal(size=(40, 6, 16)).astype("float32")
    best = tflite_export.convert_best(
        model, data, lambda file: -tflite_export.verify(model, file, data).rmse, precisions=["int8"], max_drop=1.0
    )
    first, second = best.steps[1:3]
    assert first.value is None
    assert "norm" in second.float_layers
    assert second.holds


def test_the_layer_that_adds_most_comes_first():
    made = [
        LayerError(name, "CONV_2D", relative, relative, 0.0)
        for name, relative in (("a", 0.03), ("b", 0.05), ("c", 0.05), ("d", 0.04), ("e", 0.3))
    ]
    assert by_added_error(made) == ["e", "b", "a", "c", "d"]  # 0.09 - 0.0016; 0.0025 - 0.0009; 0.0009; 0; below 0


def test_times_that_are_alike_let_the_size_decide(wild):
    files = {name: tflite_export.convert(wild, name) for name in ("float32", "float16")}
    assert _chosen({"float32": 1.0, "float16": 1.04}, files, "latency") == "float16"
    assert _chosen({"float32": 1.0, "float16": 1.2}, files, "latency") == "float32"
    assert _chosen({"float32": 1.0, "float16": 9.0}, files, "size") == "float16"


def test_comparison_of_files(dense):
    big = keras.Sequential([keras.Input((512,)), *(layers.Dense(512) for _ in range(4))])
    found = compare(
        {"small": tflite_export.convert(dense, "float32"), "big": tflite_export.convert(big, "float32")},
        rounds=5,
        block_ms=2,
    )
    small, large = found.files
    assert (small.ratio, small.median_ratio, small.low, small.high) == (1, 1, 1, 1)
    assert large.ratio > 3  # a thousand times the work
    assert large.low <= large.median_ratio <= large.high
    assert found.fastest.name == "small"
    assert str(found).splitlines()[1].split()[:2] == ["small", f"{small.min_ms:.3f}"]
    for wrong in ({"rounds": 2}, {"block_ms": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            compare({"small": tflite_export.convert(dense, "float32")}, **wrong)
    with pytest.raises(ValueError, match="at least one entry"):
        compare({})


def test_bad_arguments(dense):
    data = np.ones((8, 12), "float32")
    bad = [
        ({"metric": 3}, TypeError, "`metric` must be a function"),
        ({"max_drop": -1}, ValueError, "`max_drop` must be a number >= 0"),
        ({"precisions": "int8"}, ValueError, "`precisions` must be a list"),
        ({"precisions": ["int9"]}, ValueError, "got 'int9'"),
        ({"prefer": "speed"}, ValueError, "'latency' or 'size'; got 'speed'"),
        ({"metric": lambda file: np.nan}, ValueError, "must return a finite number; got nan for the float32 file"),
    ]
    for change, error, message in bad:
        given = {"metric": lambda file: 1.0, **change}
        metric = given.pop("metric")
        with pytest.raises(error, match=message):
            tflite_export.convert_best(dense, data, metric, verbose=0, **given)


def test_a_drop_that_is_just_accepted(dense):
    metric = {"float32": 0.837, "float16": 0.827}
    best = tflite_export.convert_best(
        dense, np.zeros((40, 12), "float32"), lambda file: metric[file.precision], precisions=["float16"], verbose=0
    )
    assert best.steps[1].holds
    with pytest.raises(TypeError, match="`metric` must return a number; got NoneType for the float32 file"):
        tflite_export.convert_best(dense, np.zeros((40, 12), "float32"), lambda file: None, verbose=0)
