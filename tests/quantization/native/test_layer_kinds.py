"""What the report says of a kind of layer is what the file of it is: for all kinds of `keras.layers`."""

import keras
import numpy as np
import pytest
from int8_file import on_grid, outputs_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import quantize_aware
from kdopt.quantization.native.rules import quantization_rule
from tflite_export.tflite import records

X = np.random.default_rng(8).normal(0.2, 1.0, (48, 8, 8, 4)).astype("float32")


def conv(x, filters=4):
    return L.Conv2D(filters, 1)(x)


def series(x):
    return L.Dense(8)(L.Reshape((8, 32))(x))


def times(x):
    return L.Reshape((4, 16))(L.MaxPooling2D(2)(x))


def volume(x):
    return L.Dense(4)(L.Reshape((4, 4, 4, 4))(x))


def activation(name):
    return lambda x: L.Dense(4, activation=name)(x)


@keras.saving.register_keras_serializable("kinds")
class Sine(L.Layer):
    def call(self, x):
        return ops.sin(x)


@keras.saving.register_keras_serializable("kinds")
class Doubled(L.Layer):
    def call(self, x):
        return ops.exp(x) * 2.0


CURVES = (
    "elu selu celu softplus mish softsign log_sigmoid tanh_shrink glu soft_shrink squareplus sparse_plus "
    "sparse_sigmoid hard_tanh leaky_relu hard_silu hard_sigmoid silu gelu log_softmax exponential"
)
# Kind -> a net that ends with it; several steps are allowed where inexact integer products go through a steep function.
QUANTIZED = {
    **{name: activation(name) for name in CURVES.split()},
    "leaky layer inside": activation(L.LeakyReLU(0.2)),
    "relu, other end": lambda x: L.ReLU(1.0)(conv(x)),
    "relu, slope and end": lambda x: L.ReLU(1.5, negative_slope=0.3)(conv(x)),
    "softmax, two axes": lambda x: L.Softmax(axis=(1, 2))(conv(x)),
    "average of four": lambda x: L.Average()([conv(x), conv(x), conv(x), conv(x)]),
    "batch norm, axis 1": lambda x: L.BatchNormalization(axis=1)(conv(x)),
    "group norm": lambda x: L.GroupNormalization(2)(conv(x)),
    "layer norm, axis 1": lambda x: L.LayerNormalization(axis=1)(conv(x)),
    "unit norm": lambda x: L.UnitNormalization()(conv(x)),
    "normalization inverted": lambda x: L.Normalization(mean=0.1, variance=2.0, invert=True)(conv(x)),
    "conv, groups and dilation": lambda x: L.Conv2D(4, 3, groups=2, dilation_rate=2)(x),
    "conv, causal": lambda x: L.Conv1D(4, 3, padding="causal")(series(x)),
    "dense of volumes": volume,
    "global average 3d": lambda x: L.GlobalAveragePooling3D()(volume(x)),
    "padding 3d": lambda x: L.ZeroPadding3D()(volume(x)),
    "adaptive average": lambda x: L.AdaptiveAveragePooling2D(3)(conv(x)),
    "adaptive max": lambda x: L.AdaptiveMaxPooling1D(4)(series(x)),
    "bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(conv(x)),
    "resizing, cropped": lambda x: L.Resizing(5, 7, crop_to_aspect_ratio=True)(conv(x)),
    "center crop": lambda x: L.CenterCrop(10, 10)(conv(x)),
    "augmentation": lambda x: conv(L.RandomContrast(0.2)(L.RandomFlip()(x))),
    "simple rnn": lambda x: L.SimpleRNN(4, activation="relu")(times(x)),
    "gru, reset before": lambda x: L.GRU(4, reset_after=False)(times(x)),
    "lstm, hard_sigmoid": lambda x: L.LSTM(4, recurrent_activation="hard_sigmoid", activation="linear")(times(x)),
    "lstm, states": lambda x: L.LSTM(4, return_state=True)(times(x)),
    "bidirectional, both": lambda x: L.Bidirectional(L.GRU(4, dropout=0.2), merge_mode=None)(times(x)),
    "attention, causal": lambda x: L.MultiHeadAttention(2, 4)(series(x), series(x), use_causal_mask=True),
    "attention, near places": lambda x: L.MultiHeadAttention(2, 4, sliding_window=3)(series(x), series(x)),
    "attention, static mask": lambda x: L.MultiHeadAttention(2, 4)(
        series(x), series(x), attention_mask=np.tri(8, k=1, dtype=bool)[None]
    ),
    "attention to images": lambda x: L.MultiHeadAttention(2, 4)(L.MaxPooling2D()(x), L.MaxPooling2D()(x)),
    "additive attention": lambda x: L.AdditiveAttention(use_scale=False)([series(x), series(x)]),
}
OUTPUT_ONLY = {
    "relu, threshold": lambda x: L.ReLU(threshold=0.3)(conv(x)),
    "hard_shrink": activation("hard_shrink"),
    "concatenating attention": lambda x: L.Attention(score_mode="concat")([series(x), series(x)]),
    "gated attention": lambda x: L.MultiHeadAttention(2, 4, use_gate=True)(series(x), series(x)),
    "spectral norm": lambda x: L.SpectralNormalization(L.Conv2D(4, 3))(x),
    "own layer": lambda x: Doubled()(conv(x)),
}
FLOAT = {
    "sparsemax": (activation("sparsemax"), "no int8 kernel for sparsemax"),
    "conv 3d": (lambda x: L.Conv3D(2, 2)(volume(x)), "no int8 kernel for Conv3D"),
    "pooling 3d": (lambda x: L.MaxPooling3D()(volume(x)), "no int8 kernel for MaxPooling3D"),
    "transposed, dilation": (lambda x: L.Conv2DTranspose(4, 3, dilation_rate=2)(x), "no transposed convolution with"),
    "bicubic": (lambda x: L.UpSampling2D(2, interpolation="bicubic")(conv(x)), "no resizing by 'bicubic'"),
    "einsum, odd bias": (lambda x: L.EinsumDense("abc,bd->adc", (5, 8), bias_axes="d")(series(x)), "refuses a bias"),
    "normalized dot": (lambda x: L.Dot((2, 2), normalize=True)([series(x), series(x)]), "UnitNormalization"),
    "cell": (lambda x: L.RNN(L.LSTMCell(4))(times(x)), "its loop stays float"),
    "lstm of images": (lambda x: L.ConvLSTM2D(2, 3)(L.Reshape((4, 8, 8, 1))(x)), "its loop stays float"),
    "grouped attention": (lambda x: L.GroupQueryAttention(4, 4, 2)(series(x), series(x)), "its products float"),
    "attention over one axis": (
        lambda x: L.MultiHeadAttention(2, 4, attention_axes=(1,))(conv(x), conv(x)),
        "refuses attention over other axes",
    ),
}
FAST = ("softplus", "group norm")
STEPS = {
    "bidirectional, both": 3,
    "attention to images": 4,
    "attention, near places": 2,
    "attention, causal": 2,
    "attention, static mask": 2,
    "lstm, states": 2,
    "gru, reset before": 2,
}


def quantized(build):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 4), name="image")
    model = quantize_aware(keras.Model(inputs, build(inputs)), engine="native", calibration=X)
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    model.fit(X, keras.tree.map_structure(np.zeros_like, model.predict(X, verbose=0)), batch_size=24, verbose=0)
    return model


def marked(kinds):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in kinds]


@pytest.mark.parametrize("kind", marked(QUANTIZED))
def test_of_a_quantized_layer_training_saw_every_rounding(kind):
    model = quantized(QUANTIZED[kind])
    assert {entry.layer: entry.reason for entry in model.report if entry.mode != "quantized"} == {}
    file = tflite_export.convert(model, "int8")
    assert [op.layer for op in records.ops(file.content) if op.is_float] == []
    assert file.calibrated == ()
    wanted = keras.tree.flatten(model.predict(on_grid(file.content, X[:24])[1], verbose=0))
    for (got, step), expected in zip(outputs_of(file.content, X[:24]), wanted, strict=True):
        assert np.abs(got - expected).max() < (STEPS.get(kind, 1) + 0.01) * step


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTPUT_ONLY)
def test_of_other_layers_the_converter_chooses_what_is_inside(kind):
    model = quantized(OUTPUT_ONLY[kind])
    assert [entry.mode for entry in model.report if "no quantization rule" in entry.reason] == ["output-only"]
    file = tflite_export.convert(model, "int8")
    wanted = model.predict(on_grid(file.content, X[:24])[1], verbose=0)
    ((got, step),) = outputs_of(file.content, X[:24])
    assert file.calibrated or np.abs(got - wanted).max() > 0.5 * step


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in FLOAT])
def test_what_stays_float_is_told_before_the_export_refuses_it(kind):
    build, why = FLOAT[kind]
    model = quantized(build)
    (entry,) = [entry for entry in model.report if entry.mode == "float"]
    assert why in entry.reason
    with pytest.raises(tflite_export.ConversionError, match="an int8 file is refused"):
        tflite_export.convert(model, "int8")


def test_a_refused_file_names_the_layer_and_the_way_out():
    model = quantized(lambda x: L.Dense(3)(L.Flatten()(Sine(name="wave")(conv(x)))))
    (entry,) = [entry for entry in model.report if entry.mode != "quantized"]
    assert (entry.layer, entry.mode) == ("wave", "output-only")
    with pytest.raises(
        tflite_export.ConversionError, match=r"(?s)wave.*no quantization rule for Sine.*quantization_rule"
    ):
        tflite_export.convert(model, "int8")

    @quantization_rule(Sine, inner=("square", "cube", "sixth"))
    def sine(scope, layer, x):
        cube = scope.inner("cube", scope.inner("square", x * x) * x)
        return x - scope.inner("sixth", cube * (1 / 6))

    model = quantized(lambda x: Sine(name="wave")(conv(x)))
    assert {entry.mode for entry in model.report} == {"quantized"}
    assert tflite_export.convert(model, "int8").calibrated == ()
