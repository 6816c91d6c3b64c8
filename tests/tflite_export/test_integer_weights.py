"""Weights alone as int8: tables, loops and kernels of all kinds, against the model with rounded weights."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_export
from tflite_export.tflite import records

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
