"""Weights alone as int8: tables, loops and kernels of all kinds, against the model with rounded weights."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_export
from tflite_export.tflite import records
from tflite_export.tflite.objects import FileObjects

GENERATOR = np.random.default_rng(0)


def tagger(unroll):
    """Table, loop and head."""
    rnn = L.LSTM(16, unroll=unroll, return_sequences=True, name="rnn")
    return [keras.Input((9,), dtype="int32"), L.Embedding(300, 24, name="table"), rnn, L.Dense(5, name="head")]


def volumes():
    return [keras.Input((5, 6, 6, 2)), L.Conv3D(4, 3, name="c3"), L.Conv3DTranspose(3, 2, 2, name="t3")]


def rounded(values, kept):
    """On 255 steps for each index of the axes that are kept; None: for all together."""
    axes = None if kept is None else tuple(axis for axis in range(values.ndim) if axis != kept % values.ndim)
    step = np.abs(values).max(axis=axes, keepdims=True) / 127
    return np.round(values / step) * step


# Path of a weight -> axis of its channels.
CHANNELS = {"embeddings": None, "t3/kernel": 3}


@pytest.mark.parametrize(
    ("layers", "data"),
    [
        (lambda: tagger(False), GENERATOR.integers(0, 300, (12, 9)).astype("int32")),
        (lambda: tagger(True), GENERATOR.integers(0, 300, (12, 9)).astype("int32")),
        (volumes, GENERATOR.normal(size=(8, 5, 6, 6, 2)).astype("float32")),
    ],
    ids=["rolled", "unrolled", "volumes"],
)
def test_file_is_the_model_with_rounded_weights(layers, data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers())
    file = tflite_export.convert(model, "weight_int8")
    for weight in model.weights:
        if len(weight.shape) > 1:
            axis = next((axis for path, axis in CHANNELS.items() if weight.path.endswith(path)), -1)
            weight.assign(rounded(np.asarray(weight), axis))
    found, expected = file.predict(data), model.predict(data, verbose=0)
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1.0, np.abs(expected).max()))
    whole = sum(np.asarray(weight).nbytes for weight in model.weights if len(weight.shape) > 1)
    assert file.size_bytes < tflite_export.convert(model, "float32").size_bytes - 0.7 * whole + 4000
    assert not [
        tensor.shape
        for op in records.ops(file.content)
        for tensor in op.inputs
        if tensor.data is not None and tensor.dtype == "float32" and len(tensor.shape) > 1 and tensor.data.any()
    ]


class Places(L.Layer):
    """A product with a matrix for each place, and a constant output."""

    def build(self, shape):
        self.matrices = self.add_weight(shape=(4, 6, 5), name="matrices")
        self.fixed = self.add_weight(shape=(3, 2), initializer="random_normal", name="fixed")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.matrices), keras.ops.tile(self.fixed[None], (inputs.shape[0], 1, 1))


def test_a_matrix_for_each_place_and_a_constant_output():
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 3, 6), batch_size=1)
    model = keras.Model(x, Places(name="places")(x))
    layer = model.get_layer("places")
    layer.matrices.assign(np.asarray(layer.matrices) * np.array([1, 0.1, 0.01, 5])[:, None, None])
    data = GENERATOR.normal(size=(3, 4, 3, 6)).astype("float32")
    product, fixed = tflite_export.convert(model, "weight_int8", data).predict(data).values()
    np.testing.assert_allclose(product, data @ rounded(np.asarray(layer.matrices), None), atol=1e-5)
    np.testing.assert_array_equal(fixed, np.tile(np.asarray(layer.fixed), (3, 1, 1)))


def test_a_table_that_two_lookups_read():
    keras.utils.set_random_seed(0)
    left, right = (keras.Input((9,), dtype="int32", name=name) for name in ("left", "right"))
    table = L.Embedding(300, 24, name="table")
    model = keras.Model([left, right], [table(left), table(right)])
    words = GENERATOR.integers(0, 300, (2, 12, 9)).astype("int32")
    file = tflite_export.convert(model, "weight_int8")
    expected = rounded(np.asarray(table.embeddings), None)
    for found, own in zip(file.predict([words[0], words[1]]).values(), words, strict=True):
        np.testing.assert_allclose(found, expected[own], atol=1e-6)


def test_channels_without_weights_have_steps():
    model = keras.Sequential([keras.Input((6,)), L.Dense(4, name="d")])
    model.layers[-1].kernel.assign(np.array([1, 0, 1, 0]) * np.ones((6, 1)))
    with np.errstate(all="raise"):
        file = tflite_export.convert(model, "weight_int8")
    (stored,) = (op.inputs[0] for op in records.ops(file.content) if op.name == "DEQUANTIZE")
    assert min(stored.scales) > 0
    np.testing.assert_allclose(file.predict(np.ones((1, 6), "float32")), [[6, 0, 6, 0]], rtol=1e-6)


def test_what_is_looked_up_keeps_an_open_batch():
    words = keras.Input((9,), dtype="int32")
    model = keras.Model(words, L.Embedding(300, 24)(words))
    file = FileObjects(tflite_export.convert(model, "weight_int8", batch=None).content)
    (lookup,) = (one for one in file.operators if file.kind(one) == "GATHER")
    assert file.graph.tensors[lookup.outputs[0]].shapeSignature.tolist() == [-1, 9, 24]


def test_a_table_of_two_lookups_is_stored_once():
    keras.utils.set_random_seed(0)
    left, right = (keras.Input((9,), dtype="int32", name=name) for name in ("left", "right"))
    table = L.Embedding(300, 24)
    model = keras.Model([left, right], [L.Flatten()(table(left)), L.Flatten()(table(right))])
    assert tflite_export.convert(model, "weight_int8").size_bytes < 300 * 24 + 4000
