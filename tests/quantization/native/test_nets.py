"""Whole nets of kinds that tfmot and the converter alone do not take: no float operation, the model's own integers."""

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L

import tflite_export
from kdopt.quantization import quantize_aware
from tflite_export.tflite import records

RANDOM = np.random.default_rng(0)


def transformer():
    inputs = keras.Input((16, 16, 3))
    x = L.Reshape((16, 8))(L.Conv2D(8, 4, strides=4)(inputs))
    normed = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(normed, normed)])
    hidden = L.Dense(16, activation="gelu")(L.LayerNormalization()(x))
    x = L.Add()([x, L.Dense(8)(hidden)])
    return keras.Model(inputs, L.Dense(5)(L.GlobalAveragePooling1D()(x)))


def recurrent():
    inputs = keras.Input((3, 8))
    x = L.Bidirectional(L.LSTM(6, return_sequences=True))(inputs)
    return keras.Model(inputs, L.Dense(4)(L.GRU(5)(L.TimeDistributed(L.Dense(6))(x))))


def u_net():
    def unit(x, filters):
        return L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(x)))

    inputs = keras.Input((16, 16, 3))
    above = unit(inputs, 6)
    below = unit(L.MaxPooling2D()(above), 8)
    x = unit(L.Concatenate()([L.Conv2DTranspose(6, 2, strides=2)(below), above]), 6)
    return keras.Model(inputs, L.Conv2D(2, 1)(x))


@pytest.mark.parametrize(
    ("build", "largest", "mean"),
    [
        (transformer, 4.01, 1.0),
        pytest.param(recurrent, 4.01, 0.7, marks=pytest.mark.slow),
        pytest.param(u_net, 5.01, 0.7, marks=pytest.mark.slow),
    ],
)
def test_the_file_of_a_trained_net_is_the_net(build, largest, mean):
    keras.utils.set_random_seed(0)
    source = build()
    x = RANDOM.normal(0, 2, (48, *source.input_shape[1:])).astype("float32")
    model = quantize_aware(source, engine="native", calibration=x)
    assert {entry.layer: entry.reason for entry in model.report if entry.mode != "quantized"} == {}
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(x, source.predict(x, verbose=0) * 1.1, batch_size=16, verbose=0)
    file = tflite_export.convert(model, "int8")
    assert [op.layer for op in records.ops(file.content) if op.is_float] == []
    assert file.calibrated == ()
    ((got, step),) = outputs_of(file.content, x[:24])
    gap = np.abs(got - model.predict(x[:24], verbose=0)) / step
    assert gap.max() < largest
    assert gap.mean() < mean
    assert np.ptp(got) > 40 * step


@pytest.mark.slow
def test_a_mobile_net_with_gates_has_no_float_operation():
    keras.utils.set_random_seed(0)
    net = keras.applications.MobileNetV3Small((32, 32, 3), alpha=0.35, weights=None, classes=5, minimalistic=False)
    x = RANDOM.random((8, 32, 32, 3)).astype("float32") * 255
    model = quantize_aware(net, engine="native", calibration=x)
    assert {entry.mode for entry in model.report} == {"quantized"}
    file = tflite_export.convert(model, "int8")
    assert [op.name for op in records.ops(file.content) if op.is_float] == []
    assert file.calibrated == ()
    ((got, step),) = outputs_of(file.content, x)
    assert np.abs(got - model.predict(x, verbose=0)).max() / step < 4.01
