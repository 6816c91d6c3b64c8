"""Ranges: measured, then learned."""

import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import tflite_export
from kdopt.quantization import quantize_aware
from kdopt.quantization.data import calibration_batches, sample


def small(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="dense")(x))


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(3).normal(0.3, 2.0, (70, 6, 6, 2)).astype("float32")


def ranges(model):
    return {
        f"{layer.name}/{name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for name, variable in layer.by_name.items()
        if name.endswith(("_min", "_max"))
    }


def test_calibrated_ranges_are_the_extremes_of_the_activations(data):
    model = small()
    found = ranges(quantize_aware(model, calibration=data))
    relu = keras.Model(model.inputs, model.get_layer("relu").output).predict(data, verbose=0)
    logits = relu.reshape(70, -1) @ model.get_layer("dense").kernel.numpy()
    kernel = model.get_layer("conv").kernel.numpy()
    wanted = {
        "image/input_min": data.min(),
        "image/input_max": data.max(),
        "relu/output_min": 0.0,
        "relu/output_max": relu.max(),
        "dense/output_min": logits.min(),
        "dense/output_max": logits.max(),
        "conv/kernel_min": -np.abs(kernel).max(axis=(0, 1, 2)),
        "conv/kernel_max": np.abs(kernel).max(axis=(0, 1, 2)),
        "dense/kernel_min": -np.abs(model.get_layer("dense").kernel.numpy()).max(),
        "dense/kernel_max": np.abs(model.get_layer("dense").kernel.numpy()).max(),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_outputs_are_the_float_ones_rounded_to_the_grid(data):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="dense")])
    x = data.reshape(-1, 5)[:50]

    def rounded(v, low, high, levels=255):
        scale = (high - low) / levels
        zero = np.clip(np.round(-low / scale), 0, levels)
        return (np.clip(np.round(v / scale) + zero, 0, levels) - zero) * scale

    w = model.layers[0].kernel.numpy()
    top = np.abs(w).max()
    y = rounded(x, x.min(), x.max()) @ rounded(w, -top, top, 254)
    wanted = rounded(y, *(lambda z: (z.min(), z.max()))(x @ w))
    step = np.ptp(x @ w) / 255
    received = quantize_aware(model, calibration=x).predict(x, verbose=0)
    assert np.abs(received - wanted).max() < 1.01 * step
    assert np.mean(np.abs(received - wanted) > 0.01 * step) < 0.02  # a rounding tie at most


def test_without_calibration_it_refuses_to_predict(data):
    qat = quantize_aware(small())
    assert not qat.calibrated
    with pytest.raises(RuntimeError, match="have not seen any data"):
        qat.predict(data[:2], verbose=0)


@pytest.mark.parametrize("kind", ["array", "dict", "dataset"])
def test_fit_calibrates_first(data, kind):
    import tensorflow as tf

    y = np.zeros(len(data), "int32")
    x = {"array": data, "dict": {"image": data}, "dataset": tf.data.Dataset.from_tensor_slices((data, y)).batch(32)}[
        kind
    ]
    qat = quantize_aware(small())
    qat.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    qat.fit(x, None if kind == "dataset" else y, batch_size=32, verbose=0)
    found = ranges(qat)
    np.testing.assert_allclose(found["image/input_max"], data.max(), rtol=1e-6)
    assert len(qat.__tflite_source__()["calibration"]["image"]) == len(data)


def test_a_generator_warms_the_ranges_up_in_training(data):
    """The first batch sets the range, the second is averaged with it: decay n / (n + 1)."""
    model = keras.Sequential([keras.Input((72,)), layers.Dense(3, name="dense")])
    qat = quantize_aware(model)
    qat.compile(keras.optimizers.SGD(0.0), "mse")
    x = data.reshape(70, 72)

    def batches():
        yield x[:32], np.zeros((32, 3))
        yield x[32:64] * 0.5, np.zeros((32, 3))

    qat.fit(batches(), verbose=0)
    kernel = model.layers[0].kernel.numpy()
    wanted = ((x[:32] @ kernel).max() + (x[32:64] * 0.5 @ kernel).max()) / 2
    np.testing.assert_allclose(ranges(qat)["dense/output_max"], wanted, rtol=0.02)
    assert float(qat.range_updates.numpy()) == 2.0
    assert qat.__tflite_source__()["calibration"] is None


def unranged():
    """LayerNormalization has tensors inside that get their range at export."""
    inputs = keras.Input((6,), name="features")
    return keras.Model(inputs, layers.Dense(3, name="dense")(layers.LayerNormalization(name="norm")(inputs)))


@pytest.mark.parametrize("engine", ["tfmot", "native"])
@pytest.mark.parametrize("when", ["at once", "in fit"])
def test_no_sample_is_kept_on_request(engine, when, tmp_path):
    x = np.random.default_rng(5).normal(size=(32, 6)).astype("float32")
    calibration = x if when == "at once" else None
    for keep in (True, False):
        qat = quantize_aware(unranged(), engine, calibration=calibration, keep_calibration=keep)
        if when == "in fit":
            qat.compile("sgd", "mse", run_eagerly=True)
            qat.fit(x, np.zeros((32, 3)), verbose=0)
        qat.save(tmp_path / "model.keras")
        with zipfile.ZipFile(tmp_path / "model.keras") as file:
            assert any("calibration" in name for name in file.namelist()) == keep
        loaded = keras.models.load_model(tmp_path / "model.keras")
        loaded.calibrate(x)
        assert loaded.keep_calibration == keep
        assert (loaded.__tflite_source__()["calibration"] is not None) == keep
        loaded.strip().save(tmp_path / "stripped.keras")
        with zipfile.ZipFile(tmp_path / "stripped.keras") as file:
            assert sorted(file.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]


def test_without_a_sample_export_names_what_lacks_a_range():
    x = np.random.default_rng(5).normal(size=(32, 6)).astype("float32")
    qat = quantize_aware(unranged(), calibration=x)
    assert tflite_export.convert(qat, "int8").calibrated
    qat.keep_calibration = False
    with pytest.raises(tflite_export.ConversionError, match=r"has no range for: .*norm.*Pass `representative_data`"):
        tflite_export.convert(qat, "int8")
    assert tflite_export.convert(qat, "int8", x).calibrated


class Input:
    name, shape, dtype = "x", (None, 3), "float32"


class Other:
    name, shape, dtype = "z", (None, 2), "int32"


def test_calibration_forms_agree():
    import tensorflow as tf

    x = np.arange(210, dtype="float32").reshape(70, 3)
    forms = [
        x,
        {"x": x},
        list(x),
        [x[:32], x[32:]],
        (b for b in (x[:40], x[40:])),
        tf.data.Dataset.from_tensor_slices(x).batch(7),
    ]
    for form in forms:
        np.testing.assert_array_equal(np.concatenate([batch[0] for batch in calibration_batches(form, [Input])]), x)
    assert sample(calibration_batches(x, [Input]), 33)[0].shape == (33, 3)
    two = calibration_batches([x, np.zeros((70, 2))], [Input, Other])
    assert two[0][1].dtype == np.int32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 3)), "empty"),
        ([], "empty"),
        (np.zeros((4, 2)), r"shape \(None, 3\); got \(4, 2\)"),
        (np.full((4, 3), np.nan), "NaN"),
        ({"y": np.zeros((4, 3))}, "missing \\['x'\\], unknown \\['y'\\]"),
        (np.array([["a", "b", "c"]]), "must be numbers"),
        (np.float32(3), "scalar"),
    ],
)
def test_bad_calibration_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, [Input])


def test_calibration_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="got int"):
        calibration_batches(3, [Input])
    with pytest.raises(ValueError, match="data for 1 input; the model has 2"):
        calibration_batches(np.zeros((4, 3)), [Input, Other])
