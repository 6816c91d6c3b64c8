"""Dense kernels of four bits, against a NumPy search and against the other precisions."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.runtime.model import TFLiteModel
from tflite_export.tflite import kernels, records

layers = keras.layers
X = np.random.default_rng(0).normal(size=(200, 128)).astype("float32")


@pytest.fixture(scope="module")
def dense_net():
    keras.utils.set_random_seed(4)
    x = keras.Input((128,), name="x")
    h = layers.Dense(96, activation="relu", name="one")(x)
    return keras.Model(x, layers.Dense(40, name="two")(h))


def kernel_of(file, layer):
    ops = records.ops(file.content, {"one", "two"}, scopes_numbered=True)
    return next(op.inputs[1] for op in ops if op.name == "FULLY_CONNECTED" and op.layer == layer)


@pytest.mark.parametrize("precision", ["int4", "int8_int4"])
def test_the_file_is_the_model_with_rounded_kernels(dense_net, precision):
    file = tflite_export.convert(dense_net, precision, X)
    rounded = keras.models.clone_model(dense_net)
    rounded.set_weights(dense_net.get_weights())
    for name in ("one", "two"):
        tensor = kernel_of(file, name)
        assert tensor.dtype == "int4"
        assert np.abs(tensor.data).max() <= 7
        rounded.get_layer(name).kernel.assign((tensor.data * np.array(tensor.scales)[:, None]).T)
    expected = np.asarray(rounded(X))
    found = file.predict(X)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()  # rounding of activations on 8 bits
    assert tflite_export.verify(dense_net, file, X).passed
    assert TFLiteModel.from_content(file.content).precision == precision
    assert file.size_bytes < 0.75 * tflite_export.convert(dense_net, "dynamic").size_bytes


def test_steps_have_the_least_square_error():
    """No other step of a fine search is better by more than a hundredth; the plain one is worse."""
    matrix = np.random.default_rng(1).standard_t(4, size=(12, 200))
    steps = kernels._least_square_steps(matrix, 7)

    def error(step, row):
        return np.sum((row - np.clip(np.rint(row / step), -7, 7) * step) ** 2)

    for step, row in zip(steps, matrix, strict=True):
        top = np.abs(row).max() / 7
        best = min(error(factor * top, row) for factor in np.linspace(0.2, 1.2, 1000))
        assert error(step, row) <= 1.01 * best
        assert error(step, row) <= error(top, row)
    np.testing.assert_allclose(kernels._least_square_steps(np.zeros((2, 3)), 7), 1e-12 / 7, rtol=1)


def test_convolutions_keep_eight_bits(convnet, images):
    file = tflite_export.convert(convnet, "int8_int4", images)
    kinds = {op.name: op.inputs[1].dtype for op in records.ops(file.content) if len(op.inputs) > 1}
    assert kinds["CONV_2D"] == kinds["DEPTHWISE_CONV_2D"] == "int8"
    assert kinds["FULLY_CONNECTED"] == "int4"
    assert [info.dtype for info in (*file.inputs, *file.outputs)] == ["float32"] * 3


def test_a_kernel_that_two_layers_share():
    x = keras.Input((64,), name="x")
    shared = layers.Dense(64, name="shared")
    model = keras.Model(x, layers.Dense(3)(shared(layers.ReLU()(shared(x)))))
    data = X[:, :64]
    for precision in ("int4", "int8_int4"):
        file = tflite_export.convert(model, precision, data)
        assert sum(size for dtype, size in tflite_export.inspect(file).dtype_bytes.items() if dtype == "int4") >= 2048
        assert tflite_export.verify(model, file, data).passed
