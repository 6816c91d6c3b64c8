"""Kernels stored without their zeros: the same function, a smaller file, and no combination that runtimes get wrong."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_export
from tflite_export.errors import ConversionError
from tflite_export.tflite import records

X = np.random.default_rng(1).normal(size=(40, 16, 16, 3)).astype("float32")


def net(share, *, block=1, head=True):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = L.Conv2D(32, 3, padding="same", activation="relu", name="stem")(image)
    x = L.Add()([x, L.Conv2D(32, 3, padding="same", name="middle")(x)])
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(image, L.Dense(16, name="head")(L.Dense(64, name="hidden")(x)) if head else x)
    generator = np.random.default_rng(2)
    for layer in model.layers:
        if layer.weights:
            kernel = np.asarray(layer.kernel)
            size = block if kernel.ndim == 2 else 1
            kept = generator.random((-(-kernel.shape[0] // size), *kernel.shape[1:])) >= share
            layer.kernel.assign(kernel * np.repeat(kept, size, axis=0)[: kernel.shape[0]])
    return model


@pytest.mark.parametrize(
    ("precision", "head", "size"),
    [("float32", True, 0.45), ("float16", True, 0.65), ("weight_int8", True, 0.95), ("int8", False, 0.95)],
)
def test_same_function_in_fewer_bytes(precision, head, size):
    model = net(0.85, head=head)
    plain = tflite_export.convert(model, precision, X)
    sparse = tflite_export.convert(model, precision, X, sparse=True)
    np.testing.assert_array_equal(sparse.predict(X), plain.predict(X))
    assert sparse.size_bytes < size * plain.size_bytes
    kernels = {
        tensor.shape: tensor for op in records.ops(plain.content) for tensor in op.inputs if tensor.data is not None
    }
    stored = [tensor for op in records.ops(sparse.content) for tensor in op.inputs if tensor.block is not None]
    assert len(stored) == (4 if head else 2)
    for tensor in stored:
        assert tensor.block == 1
        np.testing.assert_array_equal(tensor.data, kernels[tensor.shape].data)
    zeros = tflite_export.inspect(sparse).sparsity
    assert zeros == pytest.approx(tflite_export.inspect(plain).sparsity)
    assert zeros > 0.8


def test_blocks_in_float32_and_their_reading():
    model = net(0.8, block=4)
    plain, sparse = (tflite_export.convert(model, "float32", X, sparse=sparse) for sparse in (False, True))
    np.testing.assert_allclose(sparse.predict(X), plain.predict(X), atol=1e-6)
    blocks = {tensor.shape: tensor for op in records.ops(sparse.content) for tensor in op.inputs if tensor.block == 4}
    assert set(blocks) == {(64, 32), (16, 64)}
    np.testing.assert_array_equal(blocks[64, 32].data, np.asarray(model.get_layer("hidden").kernel).T)


@pytest.mark.parametrize(
    ("precision", "block", "message"),
    [
        ("float16", 4, r"kernel of layer '(hidden|head)' has zeros in blocks of 4.*NaN.*'float32'"),
        ("weight_int8", 16, r"kernel of layer '(hidden|head)' has zeros in blocks of 16"),
        ("int8", 1, r"'hidden' is a dense layer.*'weight_int8' or 'float32'"),
    ],
)
def test_what_runtimes_get_wrong_is_refused(precision, block, message):
    with pytest.raises(ConversionError, match=message):
        tflite_export.convert(net(0.85, block=block), precision, X, sparse=True)


@pytest.mark.parametrize("precision", ["dynamic", "int4", "int8_int4", "int16x8"])
def test_precisions_without_it(precision):
    with pytest.raises(ValueError, match=rf"`sparse` goes with 'float32'.*got precision '{precision}'.*gzip"):
        tflite_export.convert(net(0.85), precision, X, sparse=True)


def test_a_model_with_few_zeros():
    with pytest.raises(ConversionError, match=r"too few zeros for a 'float32' file.*Most zeros: .*%.*Prune it first"):
        tflite_export.convert(net(0.05), "float32", X, sparse=True)


def test_a_file_that_would_be_longer():
    model = keras.Sequential([keras.Input((64,)), L.Dense(64, name="hidden")])
    kernel = np.asarray(model.layers[0].kernel)
    model.layers[0].kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) > 0.5))
    with pytest.raises(ConversionError, match=r"too few zeros .*\(7,\d+ bytes, 6,\d+ with them\)"):
        tflite_export.convert(model, "weight_int8", sparse=True)
