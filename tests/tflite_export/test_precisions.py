"""The files of each precision against Keras and against NumPy."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import precisions
from tflite_export.tflite import records


def _affine_grid(low, high):
    """TensorFlow Lite's asymmetric int8 grid of a range that holds 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return scale, int(np.round(-128 - low / scale))


def test_int8_dense_equals_integer_arithmetic(dense):
    x = np.random.default_rng(0).gamma(2.0, size=(200, 12)).astype("float32") - 1
    file = tflite_export.convert(dense, "int8", x)
    kernel, bias = (np.asarray(v) for v in dense.layers[-1].weights)
    y = x @ kernel + bias

    (info_x,), (info_y,) = file.inputs, file.outputs
    for info, values in ((info_x, x), (info_y, y)):
        scale, zero_point = _affine_grid(values.min(), values.max())
        assert info.dtype == "int8"
        assert info.scale == pytest.approx(scale, rel=1e-5)
        assert info.zero_point == zero_point

    (op,) = [op for op in records.ops(file.content) if op.name == "FULLY_CONNECTED"]
    _, weights, biases = op.inputs
    scales = np.abs(kernel).max(axis=0) / 127
    np.testing.assert_allclose(weights.scales, scales, rtol=1e-5)
    np.testing.assert_array_equal(weights.data, np.round(kernel / scales).T.astype("int8"))
    np.testing.assert_array_equal(biases.data, np.round(bias / (info_x.scale * scales)).astype("int32"))

    q = np.clip(np.round(x / info_x.scale) + info_x.zero_point, -128, 127) - info_x.zero_point
    accumulated = q @ weights.data.T.astype("int64") + biases.data
    levels = np.clip(np.round(accumulated * info_x.scale * scales / info_y.scale) + info_y.zero_point, -128, 127)
    steps = file.predict(x) / info_y.scale + info_y.zero_point - levels
    assert np.abs(steps).max() <= 1.01  # rounding of the fixed-point multiplier
    assert np.mean(np.abs(steps) > 0.5) < 0.02


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("float16", 2e-3), ("dynamic", 0.05)])
def test_float_io_precisions_stay_near_keras(convnet, images, precision, limit):
    file = tflite_export.convert(convnet, precision)
    found = file.predict(images)
    for name, expected in zip(("zebra", "ant"), convnet.predict(images, verbose=0), strict=True):
        assert np.abs(found[name] - expected).max() <= limit * np.abs(expected).max()
    assert file.precision == precision
    assert records.precision_of(file.content) in (precision, "float32")  # too small a kernel is not quantized


def test_float16_stores_rounded_weights(dense):
    file = tflite_export.convert(dense, "float16")
    halves = [t.data for t in records.tensors(file.content) if t.dtype == "float16" and t.shape == (5, 12)]
    kernel = np.asarray(dense.layers[-1].kernel)
    np.testing.assert_array_equal(halves[0], kernel.T.astype("float16"))


def test_dynamic_quantizes_large_kernels():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="big")])
    content = tflite_export.convert(model, "dynamic").content
    (weights,) = [t for t in records.tensors(content) if t.dtype == "int8"]
    kernel = np.asarray(model.layers[-1].kernel)
    steps = np.array(weights.scales)
    np.testing.assert_allclose(weights.data.T * steps, kernel, atol=0.51 * steps.max())
    assert records.precision_of(content) == "dynamic"


def test_int8_is_integer_throughout_and_close(convnet, images, int8_file):
    assert [info.dtype for info in (*int8_file.inputs, *int8_file.outputs)] == ["int8"] * 3
    assert not [op for op in records.ops(int8_file.content) if op.is_float]
    assert records.precision_of(int8_file.content) == "int8"
    result = tflite_export.verify(convnet, int8_file, images)
    assert result.passed
    assert result.snr_db > 25  # 8 bits over three layers


def test_int8_float_io_is_the_int8_net_with_float_borders(convnet, images, int8_file):
    file = tflite_export.convert(convnet, "int8_float_io", images)
    assert [info.dtype for info in (*file.inputs, *file.outputs)] == ["float32"] * 3
    assert records.precision_of(file.content) == "int8_float_io"
    ours, theirs = file.predict(images), int8_file.predict(images)
    for name, step in zip(("zebra", "ant"), records.output_steps(file.content), strict=True):
        assert step > 0
        assert np.abs(ours[name] - theirs[name]).max() <= 1.01 * step


def test_unknown_precision_lists_the_known(dense):
    with pytest.raises(
        ValueError,
        match="'int16x8', 'int8', 'uint8', 'int4', 'int8_int4', 'int8_float_io'; got 'int9'",
    ):
        tflite_export.convert(dense, "int9")


def test_a_precision_name_is_taken_once():
    with pytest.raises(ValueError, match="'int8' is already taken"):
        precisions.precision("int8", tolerance=1.0)(lambda converter, representative: None)


@pytest.mark.parametrize("precision", ["dynamic", "int4"])
def test_kernels_that_stayed_float_are_told(precision):
    layers = keras.layers
    stack = [keras.Input((8, 8, 2)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(32, name="large")]
    notes = tflite_export.convert(keras.Sequential([*stack, layers.Dense(3, name="small")]), precision).notes
    assert [note.split(":")[0] for note in notes] == ["2 of 3 kernels stayed float32 (conv, small)"]
    few = keras.Sequential([keras.Input((8,)), layers.Dense(3, name="few")])
    (note,) = tflite_export.convert(few, precision).notes
    assert note.startswith("all kernels stayed float32 (few): ")
