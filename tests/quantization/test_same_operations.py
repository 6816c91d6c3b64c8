"""The file has the operations of the plain converter's int8 file: no QUANTIZE, no addition or factor more."""

from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import quantize_aware
from tflite_export.tflite import records

X = np.random.default_rng(5).normal(0.2, 1.0, (32, 8, 8, 2)).astype("float32")


def skips(x):
    """What is pooled is concatenated, too; what is concatenated was pooled or concatenated before."""
    above = L.Conv2D(4, 3, padding="same")(x)
    below = L.Conv2D(5, 3, padding="same", activation="relu")(L.MaxPooling2D()(above))
    joined = L.Concatenate()([L.Conv2DTranspose(3, 2, strides=2)(below), above, x])
    joined = L.Concatenate()([joined, L.Conv2D(3, 1)(joined)])
    poolings = [L.GlobalMaxPooling2D()(L.Conv2D(3, 1)(joined)) for _ in range(2)]
    return L.Dense(4)(L.Concatenate()(poolings))


def pair(x):
    """A convolution and its normalization, both called twice."""
    conv, norm = L.Conv2D(2, 3, padding="same", use_bias=False), L.BatchNormalization()
    for _ in range(2):
        x = L.ReLU()(norm(conv(x)))
    return x


def gate(x):
    """A hard sigmoid as MobileNetV3 writes it: its number goes into the bias; that of a rescaling into the kernel."""
    made = L.Conv2D(2, 3)(L.ZeroPadding2D(1)(L.Rescaling(1 / 255)(x)))
    return L.Multiply()([made, L.ReLU(6.0)(L.Conv2D(2, 1)(made) + 3.0) * (1 / 6)])


def halves(x):
    """`keras.ops` that move or pick values."""
    one, other = ops.split(L.Conv2D(8, 3)(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])), 2, axis=-1)
    joined = ops.concatenate([ops.maximum(one, other), one], axis=-1)
    return L.Dense(3)(ops.reshape(ops.max_pool(ops.transpose(joined, (0, 2, 1, 3)), 2), (-1, 128)))


def operations(file):
    return Counter(op.name for op in records.ops(file.content))


@pytest.mark.parametrize("build", [skips, gate, *(pytest.param(one, marks=pytest.mark.slow) for one in (pair, halves))])
def test_no_operation_more(build):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="image")
    model = keras.Model(inputs, build(inputs))
    plain = operations(tflite_export.convert(model, "int8", X))
    for engine in ("native", "tfmot"):
        file = tflite_export.convert(quantize_aware(model, engine=engine, calibration=X), "int8")
        assert file.calibrated == ()
        assert operations(file) == plain, engine


@keras.saving.register_keras_serializable("same_operations")
class Block(keras.Model):
    """A model with `call`, in a model."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.conv, self.drop, self.norm = L.Conv2D(2, 3, padding="same"), L.Dropout(0.5), L.BatchNormalization()

    def call(self, x, training=None):
        return ops.relu(x + self.norm(self.conv(self.drop(x, training=training)), training=training))


@pytest.mark.parametrize("engine", ["native", "tfmot"])
def test_what_is_in_a_subclassed_model_is_rounded(engine):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="image")
    source = keras.Model(inputs, L.Dense(3)(L.Flatten()(Block()(Block()(inputs)))))
    model = quantize_aware(source, engine=engine, calibration=X)
    assert {entry.mode for entry in model.report} == {"quantized"}
    assert operations(tflite_export.convert(model, "int8")) == {
        "CONV_2D": 2,
        "ADD": 2,
        "RESHAPE": 1,
        "FULLY_CONNECTED": 1,
    }
    found = np.asarray(model.predict(X, verbose=0))
    np.testing.assert_allclose(found, source.predict(X, verbose=0), atol=0.05 * np.abs(found).max())
    outputs = [np.asarray(model(X, training=training)) for training in (True, True, False, False)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0  # the dropout inside
    np.testing.assert_array_equal(outputs[2], outputs[3])
