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
        ("float16", 4, "kernel of layer 'hidden' has zeros in blocks of 4"),
        ("weight_int8", 16, "kernel of layer 'hidden' has zeros in blocks of 16"),
        ("int8", 1, "'hidden' is a dense layer, whose sparse kernel in an 'int8' file"),
    ],
)
def test_what_runtimes_get_wrong_stays_whole_and_is_told(precision, block, message):
    model = net(0.85, block=block)
    plain, sparse = (tflite_export.convert(model, precision, X, sparse=sparse) for sparse in (False, True))
    assert any(message in note for note in sparse.notes)
    assert plain.notes == ()
    stored = {tensor.shape for op in records.ops(sparse.content) for tensor in op.inputs if tensor.block is not None}
    assert stored == {(32, 3, 3, 3), (32, 3, 3, 32)}
    np.testing.assert_array_equal(sparse.predict(X), plain.predict(X))
    assert sparse.size_bytes < plain.size_bytes


def test_nothing_that_runtimes_get_right_is_refused_with_the_reason():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), L.Dense(128, name="wide"), L.Dense(8, name="last")])
    for layer in model.layers:
        layer.kernel.assign(layer.kernel * (np.random.default_rng(0).random(layer.kernel.shape) > 0.9))
    data = np.random.default_rng(0).normal(size=(40, 64)).astype("float32")
    with pytest.raises(ConversionError, match=r"'wide' is a dense layer.*'weight_int8' or 'float32'.*Leave"):
        tflite_export.convert(model, "int8", data, sparse=True)


@pytest.mark.parametrize("precision", ["dynamic", "int4", "int8_int4", "int16x8"])
def test_precisions_without_it(precision):
    with pytest.raises(ValueError, match=rf"`sparse` goes with 'float32'.*got precision '{precision}'.*gzip"):
        tflite_export.convert(net(0.85), precision, X, sparse=True)


def test_a_model_with_few_zeros():
    with pytest.raises(ConversionError, match=r"without its zeros has .*, with them .*Most zeros: .*%.*Leave"):
        tflite_export.convert(net(0.05), "float32", X, sparse=True)


def test_a_file_that_would_be_longer():
    model = keras.Sequential([keras.Input((64,)), L.Dense(64, name="hidden")])
    kernel = np.asarray(model.layers[0].kernel)
    model.layers[0].kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) > 0.5))
    with pytest.raises(ConversionError, match=r"without its zeros has 7,\d+ bytes, with them 6,\d+"):
        tflite_export.convert(model, "weight_int8", sparse=True)


def test_layers_that_are_to_be_float_go_with_it():
    model = net(0.85)
    layers = {"hidden": "float32", "head": "float32"}
    plain, sparse = (tflite_export.convert(model, "int8", X, layers=layers, sparse=sparse) for sparse in (False, True))
    assert sparse.size_bytes < 0.6 * plain.size_bytes
    assert sparse.notes == ()
    np.testing.assert_allclose(sparse.predict(X), plain.predict(X), atol=1e-6)
