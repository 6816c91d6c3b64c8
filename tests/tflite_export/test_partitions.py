"""Who runs which operation on the CPU."""

import keras
import numpy as np

import tflite_export
from tflite_export.runtime.partitions import partitions
from tflite_export.tflite import records

layers = keras.layers


def test_a_convnet_is_one_partition(convnet, images):
    for precision, outside in (("float32", {}), ("float16", {}), ("int8", {"SOFTMAX": 1})):
        content = tflite_export.convert(convnet, precision, images).content
        found = partitions(content)
        assert (found.count, found.outside) == (1, outside), precision
        assert found.inside + len(outside) == len(records.ops(content))


def test_what_xnnpack_does_not_know_splits_it():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="before")(x)
    y = keras.ops.cumsum(y, axis=1)
    model = keras.Model(x, layers.Conv2D(2, 1, name="after")(y))
    found = partitions(tflite_export.convert(model, "float32").content)
    assert found.count == 2
    assert found.outside == {"CUMSUM": 1}
    assert "in 2 partitions; outside: 1 CUMSUM" in str(found)


def test_an_embedding_is_left_outside():
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, layers.Dense(3)(layers.Embedding(7, 8)(tokens)))
    file = tflite_export.convert(model, "float32")
    found = partitions(file.content)
    assert found.count == 1
    assert found.outside["GATHER"] == 1
    assert found.inside == 1
    assert np.isfinite(file.predict(np.zeros((1, 6), "int32"))).all()
