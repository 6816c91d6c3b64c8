"""Integers put into a file, against NumPy and against the file before."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_export
from tflite_export.errors import ConversionError
from tflite_export.tflite import flatbuffer, kernels, records
from tflite_export.tflite.constants import packed_4_bits
from tflite_export.tflite.objects import FileObjects
from tflite_export.tflite.products import as_multiplications

X = np.random.default_rng(1).normal(size=(16, 8, 8, 2)).astype("float32")


def net():
    keras.utils.set_random_seed(2)
    layers = [
        L.Conv2D(5, 3, activation="relu", bias_initializer="random_normal"),
        L.DepthwiseConv2D(3, depth_multiplier=2),
        L.Conv2DTranspose(3, 2, 2),
        L.Flatten(),
        L.Dense(7, bias_initializer="random_normal"),
    ]
    return keras.Sequential([keras.Input((8, 8, 2)), *layers])


@pytest.fixture(scope="module")
def model():
    return net()


def rounded(model):
    """The model with each kernel on 8 bits, by NumPy."""
    copy = net()
    copy.set_weights(model.get_weights())
    for layer, axis in zip((one for one in copy.layers if one.weights), (3, (2, 3), 2, 1), strict=True):
        w = np.asarray(layer.kernel)
        kept = axis if isinstance(axis, tuple) else (axis,)
        step = np.abs(w).max(axis=tuple(a for a in range(w.ndim) if a not in kept), keepdims=True) / 127
        layer.kernel.assign(np.round(w / step) * step)
    return copy


def test_weights_alone_are_the_model_with_rounded_kernels(model):
    file = tflite_export.convert(model, "weight_int8")
    np.testing.assert_allclose(file.predict(X), rounded(model).predict(X, verbose=0), atol=1e-5)
    assert not any(op.inputs[1].data is not None for op in records.ops(file.content) if op.name == "CONV_2D")
    whole = tflite_export.convert(model, "float32")
    kernels_bytes = sum(np.asarray(layer.kernel).size for layer in model.layers if layer.weights)
    assert file.size_bytes < whole.size_bytes - 3 * kernels_bytes + 4000
    assert tflite_export.verify(model, file, X).passed


def test_a_file_read_and_written_again_is_the_same_function_on_aligned_constants(model):
    before = tflite_export.convert(model, "int8", X)
    content = FileObjects(before.content).content()
    after = tflite_export.TFLiteModel.from_content(content)
    np.testing.assert_array_equal(after.predict(X), before.predict(X))
    assert [info.name for info in after.inputs] == [info.name for info in before.inputs]
    stored = flatbuffer.read(content)
    data = [stored.Buffers(number) for number in range(stored.BuffersLength())]
    places = [b._tab.Vector(b._tab.Offset(4)) for b in data if b.DataLength()]
    assert places
    assert all(place % 16 == 0 for place in places)


def test_a_kernel_that_is_not_in_the_file_is_refused(model):
    content = tflite_export.convert(model, "int8", X).content
    stranger = {"layer": "head", "bits": 4, "values": np.ones((7, 5), "float32"), "steps": np.ones(7), "bias": None}
    with pytest.raises(ConversionError, match="'head'.*leave this layer on plain 8 bits"):
        kernels.patch(content, [stranger], integer=True)


def test_16_bit_activations_of_a_float_model(model):
    file = tflite_export.convert(model, "int16x8", X)
    assert {info.dtype for info in (*file.inputs, *file.outputs)} == {"int16"}
    expected = rounded(model).predict(X, verbose=0)
    assert np.abs(file.predict(X) - expected).max() < 2e-3 * np.abs(expected).max()


def test_16_bits_do_not_clip_what_is_up_to_twice_as_large_as_in_calibration(model):
    file = tflite_export.convert(model, "int16x8", X)
    peak = np.abs(X).max()
    assert file.inputs[0].scale == pytest.approx(2 * peak / 32767, rel=1e-3)
    larger = X * np.float32(1.95)
    expected = rounded(model).predict(larger, verbose=0)
    assert np.abs(file.predict(larger) - expected).max() < 4e-3 * np.abs(expected).max()


def test_16_bits_keep_the_bias_of_a_layer_that_is_called_again():
    """TensorFlow's quantizer rounds a shared bias to the steps of its first call."""
    layer = L.Dense(6, name="shared")
    x = keras.Input((6,))
    model = keras.Model(x, layer(9 * keras.ops.tanh(layer(keras.ops.tanh(layer(x))))))
    bias = np.linspace(-0.5, 0.5, 6).astype("float32")
    layer.bias.assign(bias)
    data = 9 * np.random.default_rng(3).normal(size=(64, 6)).astype("float32")
    file = tflite_export.convert(model, "int16x8", data)
    kernel = np.asarray(layer.kernel)
    step = np.abs(kernel).max(axis=0) / 127
    kernel = np.round(kernel / step) * step
    expected = np.tanh(data @ kernel + bias) @ kernel + bias
    expected = 9 * np.tanh(expected) @ kernel + bias
    assert np.abs(file.predict(data) - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("axis", [1, (1, 2), -1])
def test_a_sum_of_16_bits_may_be_larger_than_its_parts(axis):
    """TensorFlow's quantizer gives it the step of its input: it was cut off."""
    x = keras.Input((9, 16))
    model = keras.Model(x, keras.ops.sum(x, axis=axis))
    data = np.random.default_rng(0).normal(0.5, 1, size=(128, 9, 16)).astype("float32")
    found = tflite_export.convert(model, "int16x8", data).predict(data)
    expected = data.sum(axis=axis)
    np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


def test_hard_swish_of_products():
    x = keras.Input((6, 5, 3))
    model = keras.Model(x, L.Dense(4)(keras.ops.hard_silu(L.Conv2D(4, 3)(x))))
    before = tflite_export.convert(model, "float32")
    assert "HARD_SWISH" in tflite_export.inspect(before).ops
    after = tflite_export.TFLiteModel.from_content(as_multiplications(before.content, sixteen=True))
    assert "HARD_SWISH" not in tflite_export.inspect(after).ops
    data = 4 * np.random.default_rng(2).normal(size=(128, 6, 5, 3)).astype("float32")
    np.testing.assert_allclose(after.predict(data), before.predict(data), atol=1e-5)
    expected = data * np.clip(data + 3, 0, 6) / 6
    found = tflite_export.convert(keras.Model(x, keras.ops.hard_silu(x)), "int16x8", data).predict(data)
    np.testing.assert_allclose(found, expected, atol=3e-4 * expected.max())


def test_a_squared_difference_is_a_product():
    first, second = keras.Input((3, 4), name="first"), keras.Input((4,), name="second")
    square = keras.ops.square(first - keras.ops.reshape(second, (-1, 1, 4)))
    before = tflite_export.convert(keras.Model([first, second], L.Dense(2)(square)), "float32")
    assert "SQUARED_DIFFERENCE" in tflite_export.inspect(before).ops
    assert as_multiplications(before.content, sixteen=False) == before.content
    after = tflite_export.TFLiteModel.from_content(as_multiplications(before.content, sixteen=True))
    assert "SQUARED_DIFFERENCE" not in tflite_export.inspect(after).ops
    random = np.random.default_rng(2)
    given = {"first": random.normal(size=(5, 3, 4)), "second": random.normal(size=(5, 4))}
    given = {name: values.astype("float32") for name, values in given.items()}
    np.testing.assert_allclose(after.predict(given), before.predict(given), rtol=1e-5)


def test_small_differences_are_squared_on_16_bits():
    x = keras.Input((3, 4))
    model = keras.Model(x, keras.ops.square(x - keras.ops.mean(x, axis=-1, keepdims=True)))
    data = np.random.default_rng(2).uniform(-0.1, 0.1, size=(128, 3, 4)).astype("float32")
    expected = (data - data.mean(axis=-1, keepdims=True)) ** 2
    found = tflite_export.convert(model, "int16x8", data).predict(data)
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


def test_two_integers_of_4_bits_in_a_byte():
    assert packed_4_bits(np.array([1, -1, 7, -8, 3])) == bytes([0xF1, 0x87, 0x03])


def test_a_kind_that_no_operation_is_any_longer_leaves_the_file():
    x = keras.Input((4,))
    before = tflite_export.convert(keras.Model(x, L.Dense(3)(-keras.ops.exp(x))), "float32")
    after = as_multiplications(before.content, sixteen=False)
    assert "NEG" in tflite_export.inspect(before).ops
    file = FileObjects(after)
    codes = file.model.operatorCodes
    assert len(codes) == len({file.kind(operator) for operator in file.operators}) == 3
    given = X[:, 0, :2].reshape(-1, 4)
    found = tflite_export.TFLiteModel.from_content(after).predict(given)
    np.testing.assert_allclose(found, before.predict(given), rtol=1e-6)


def test_a_gate_and_a_branch_have_ranges_of_their_own():
    """Kernels write products and sums over what they are made of; the branch is a tenth of the sum here."""
    x = keras.Input((8, 8, 3))
    branch = L.Conv2D(3, 3, padding="same", use_bias=False, name="branch")(x)
    wide = keras.ops.tanh(branch) * 0.5
    model = keras.Model(x, L.Dense(2)(keras.ops.relu(L.Add(name="sum")([wide, 9.0 * x]))))
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    file = tflite_export.convert(model, "int8", data)
    found = {op.name: op for op in records.ops(file.content)}
    inputs = [tensor.scales[0] for tensor in found["ADD"].inputs if tensor.data is None]
    assert min(inputs) < 1.01 / 255, inputs  # of [-0.5, 0.5]
