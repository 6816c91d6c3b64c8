"""Each operation of the file computes what its rule trains: the same integers, or at most one step beside."""

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L
from keras import ops
from keras.src.applications.convnext import LayerScale

import tflite_export
from kdopt.quantization import quantize_aware
from kdopt.quantization.native.execution import Pass
from tflite_export.tflite import records

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (64, 8, 8, 2)).astype("float32")


def sequence(x):
    return L.Reshape((64, 2))(x)


def series(x):
    return L.Reshape((4, 32))(x)


def times(x):
    return L.Reshape((4, 8))(L.MaxPooling2D(2)(x))


def joined(tensors):
    return L.Concatenate()(list(tensors))


def seen(x):
    """Which places may be attended to: a mask that depends on the data."""
    return ops.matmul(series(x), ops.transpose(series(x), (0, 2, 1))) > -2.0


def slopes():
    return keras.initializers.RandomUniform(0.05, 0.4)


CURVES = (
    "elu selu celu softplus mish softsign log_sigmoid tanh_shrink soft_shrink squareplus sparse_plus sparse_sigmoid"
)


def holes(filters, padding="same"):
    return L.Conv1D(filters, 3, dilation_rate=3, padding=padding)


GROUPS = {
    "convolutions": {
        "conv": lambda x: L.Conv2D(6, 3)(x),
        "relu": lambda x: L.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x),
        "relu6": lambda x: L.Conv2D(6, 3, dilation_rate=2, activation="relu6")(x),
        "groups": lambda x: L.Conv2D(6, 3, groups=2, use_bias=False)(x),
        "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2)(x),
        "transposed": lambda x: L.Conv2DTranspose(4, 2, strides=2)(x),
        "separable": lambda x: L.SeparableConv2D(5, 3)(x),
        "dense": lambda x: L.Dense(5)(L.Flatten()(x)),
        "dense of images": lambda x: L.Dense(5)(x),
        "dense of volumes": lambda x: L.Dense(3)(L.Reshape((4, 4, 4, 2))(x)),
    },
    "convolutions over time": {
        "conv": lambda x: L.Conv1D(5, 3)(sequence(x)),
        "causal": lambda x: L.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="relu")(sequence(x)),
        "depthwise": lambda x: L.DepthwiseConv1D(3)(sequence(x)),
        "separable": lambda x: L.SeparableConv1D(5, 3)(sequence(x)),
        "transposed": lambda x: L.Conv1DTranspose(4, 3, strides=2)(sequence(x)),
        "normed": lambda x: L.ReLU()(L.BatchNormalization()(L.Conv1D(5, 3)(sequence(x)))),
        "two with holes": lambda x: L.Add()([holes(5)(sequence(x)), holes(5, padding="causal")(sequence(x))]),
    },
    "normalizations": {
        "conv": lambda x: L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False)(x))),
        "conv with bias": lambda x: L.BatchNormalization(scale=False)(L.Conv2D(6, 3)(x)),
        "depthwise": lambda x: L.BatchNormalization()(L.DepthwiseConv2D(3, depth_multiplier=2)(x)),
        "separable": lambda x: L.ReLU()(L.BatchNormalization(center=False)(L.SeparableConv2D(5, 3)(x))),
        "dense": lambda x: L.BatchNormalization()(L.Dense(5)(L.Flatten()(x))),
        "alone": lambda x: L.BatchNormalization()(x),
        "alone with relu": lambda x: L.ReLU()(L.BatchNormalization()(L.MaxPooling2D()(x))),
        "alone, flat": lambda x: L.BatchNormalization()(L.Flatten()(x)),
        "alone, sequence": lambda x: L.BatchNormalization()(sequence(x)),
        "another axis": lambda x: L.BatchNormalization(axis=1)(L.MaxPooling2D()(x)),
        "normalization inverted": lambda x: L.Normalization(mean=[0.5, 0.1], variance=[2.0, 0.4], invert=True)(x),
        "rescaling": lambda x: L.Rescaling(2.0, 0.5)(x),
        "scale of a layer": lambda x: LayerScale(0.5, 4)(L.Dense(4)(x)),
        "scale of a layer, alone": lambda x: LayerScale(0.5, 2)(L.MaxPooling2D()(x)),
        "rescaling before a kernel": lambda x: L.Conv2D(3, 3)(L.ZeroPadding2D(1)(L.Rescaling(0.01)(x))),
        "rescaling by channel": lambda x: L.Rescaling([2.0, -1.0], [0.5, 0.2])(x),
        "normalization": lambda x: L.Normalization(mean=[0.5, 0.1], variance=[2.0, 0.4])(x),
    },
    "merges": {  # each with a branch of its own: the converter makes one of equal ones
        "add": lambda x: L.Add()([x, L.Conv2D(2, 1)(x)]),
        "add with relu": lambda x: L.ReLU()(L.Add()([x, L.Conv2D(2, 1)(x)])),
        "add three": lambda x: L.Add()([x, L.Conv2D(2, 1)(x), L.Conv2D(2, 1)(x)]),
        "subtract": lambda x: L.Subtract()([x, L.Conv2D(2, 1)(x)]),
        "multiply": lambda x: L.Multiply()([x, L.Conv2D(2, 1)(x)]),
        "gate": lambda x: L.Multiply()([x, L.Reshape((1, 1, 2))(L.GlobalAveragePooling2D()(x))]),
        "average": lambda x: L.Average()([x, L.Conv2D(2, 1)(x)]),
        "average of three": lambda x: L.Average()([x, L.Conv2D(2, 1)(x), L.Conv2D(2, 1)(x)]),
        "concatenate": lambda x: L.Concatenate()([x, L.ReLU()(x)]),
        "concatenate what nothing else reads": lambda x: L.Concatenate()([L.Conv2D(3, 1)(x), L.Conv2D(2, 1)(x)]),
        "concatenate a chain": lambda x: L.Concatenate()(
            [L.Concatenate()([L.Conv2D(3, 1)(x), L.Conv2D(1, 1)(x)]), L.Conv2D(2, 1)(x)]
        ),
        "plus a number": lambda x: x + 1.5,
        "times a number": lambda x: x * 0.3,
    },
    "poolings and shapes": {
        "average": lambda x: L.AveragePooling2D(2)(x),
        "average, padded": lambda x: L.AveragePooling2D(3, 2, padding="same")(x),
        "average over time": lambda x: L.AveragePooling1D(2)(sequence(x)),
        "global average": lambda x: L.GlobalAveragePooling2D()(x),
        "global average over time": lambda x: L.GlobalAveragePooling1D()(L.Reshape((32, 4))(x)),
        "mean": lambda x: ops.mean(x, axis=1),
        "global max": lambda x: L.GlobalMaxPooling2D()(x),
        "max": lambda x: L.MaxPooling2D(2)(x),
        "poolings of ops": lambda x: ops.average_pool(ops.max_pool(x, 3, 1), 2),
        "padding of ops": lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]),
        "reflected": lambda x: ops.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]], mode="reflect"),
        "upsampling": lambda x: L.UpSampling2D(2)(x),
        "padding": lambda x: L.ZeroPadding2D(1)(x),
        "cropping": lambda x: L.Cropping2D(1)(x),
        "permute": lambda x: L.Permute((2, 1, 3))(x),
        "repeat": lambda x: L.RepeatVector(3)(L.Flatten()(x)),
        "slice": lambda x: x[:, 1:5],
        "split": lambda x: ops.concatenate([L.ReLU()(part) for part in ops.split(x, 2, axis=-1)], -1),
        "dropout before relu": lambda x: L.ReLU()(L.Dropout(0.5)(L.Conv2D(3, 1)(x))),
    },
    "activations": {
        "relu": lambda x: L.ReLU()(x),
        "softmax": lambda x: L.Softmax()(x),
        "sigmoid": lambda x: L.Activation("sigmoid")(x),
        "tanh": lambda x: L.Activation("tanh")(x),
        "silu": lambda x: L.Activation("silu")(x),
        "gelu": lambda x: L.Activation("gelu")(x),
        "gelu by tanh": lambda x: ops.gelu(L.Conv2D(3, 1)(x), approximate=True),
        "hard_sigmoid": lambda x: L.Activation("hard_sigmoid")(x),
        "elu": lambda x: L.ELU(0.7)(L.Conv2D(3, 1)(x)),
        "exponential": lambda x: L.Activation("exponential")(x),
        "log_softmax": lambda x: L.Activation("log_softmax")(x),
        "absolute": lambda x: ops.abs(x),
        "sum": lambda x: ops.sum(x, axis=1),
        "square": lambda x: ops.square(x),
        "softmax over another axis": lambda x: L.Softmax(axis=1)(x),
        "softmax over two axes": lambda x: L.Softmax(axis=(2, 3))(x * 3.0),
        "relu to three": lambda x: L.ReLU(1.5)(L.Conv2D(3, 1)(x)),
        "glu": lambda x: L.Activation("glu")(L.Dense(6)(x)),
    },
    "curves": {  # each behind a dense layer of its own
        **{name: lambda x, name=name: L.Dense(4, activation=name)(x) for name in CURVES.split()},
        "celu with alpha": lambda x: ops.celu(L.Conv2D(3, 1)(x), alpha=0.6),
    },
    "sequences": {
        "lstm": lambda x: L.LSTM(4)(series(x)),
        "lstm backwards": lambda x: L.LSTM(4, return_sequences=True, go_backwards=True, use_bias=False)(series(x)),
        "gru": lambda x: L.GRU(4, return_sequences=True, bias_initializer="ones")(series(x)),
        "bidirectional sum": lambda x: L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")(series(x)),
        "time distributed": lambda x: L.TimeDistributed(L.Dense(3, activation="relu"))(series(x)),
        "layer normalization": lambda x: L.LayerNormalization()(L.Conv2D(8, 1)(x)),
        "layer normalization alone": lambda x: L.LayerNormalization(center=False, scale=False)(L.Dense(8)(x)),
        "layer normalization by number": lambda x: L.LayerNormalization(axis=3)(L.Conv2D(8, 1)(x)),
        "rms normalization": lambda x: L.RMSNormalization()(L.Conv2D(8, 1)(x)),
    },
    "statistics of a sample": {
        "layer normalization over places": lambda x: L.LayerNormalization(axis=(1, 2, 3))(L.Conv2D(3, 1)(x)),
        "group normalization": lambda x: L.GroupNormalization(2)(L.Conv2D(4, 1)(x)),
        "instance normalization": lambda x: L.GroupNormalization(-1, scale=False)(L.Conv2D(3, 1)(x)),
        "unit normalization": lambda x: L.UnitNormalization()(L.Conv2D(5, 1)(x)),
    },
    # One step of a state is more than one of the next.
    "within three steps": {
        "simple": lambda x: L.SimpleRNN(4, return_sequences=True)(times(x)),
        "simple with relu": lambda x: L.SimpleRNN(4, activation="relu", use_bias=False)(times(x)),
        "simple with its state": lambda x: joined(L.SimpleRNN(3, return_state=True)(times(x))),
        "lstm with a hard gate": lambda x: L.LSTM(3, recurrent_activation="hard_sigmoid")(times(x)),
        "gru without tanh": lambda x: L.GRU(3, activation="linear", bias_initializer="ones")(times(x)),
        "gru, reset before": lambda x: L.GRU(4, reset_after=False, bias_initializer="ones")(times(x)),
        "gru from a state": lambda x: L.GRU(3)(times(x), initial_state=[L.Dense(3)(L.Flatten()(x))]),
    },
    # Integer kernels of TFLite that approximate: softmax inside, products of two tensors.
    "within two steps": {
        "attention": lambda x: L.MultiHeadAttention(2, 4)(series(x), series(x)),
        "cross attention": lambda x: L.MultiHeadAttention(2, 4, value_dim=3)(series(x), L.Dense(5)(series(x))),
        "causal attention": lambda x: L.MultiHeadAttention(2, 4)(series(x), series(x), use_causal_mask=True),
        "attention, masked by data": lambda x: L.MultiHeadAttention(2, 4)(
            series(x), series(x), attention_mask=seen(x), use_causal_mask=True
        ),
        "dots": lambda x: L.Attention(use_scale=True)([L.Dense(3)(series(x)), L.Dense(3)(series(x))]),
        "causal sums": lambda x: L.AdditiveAttention()([series(x), L.Dense(32)(series(x))], use_causal_mask=True),
        "lstm with its states": lambda x: joined(L.LSTM(3, return_state=True)(times(x))),
        "bidirectional gru": lambda x: L.Bidirectional(L.GRU(2, reset_after=False), merge_mode="ave")(times(x)),
        "bidirectional lstm": lambda x: L.Bidirectional(L.LSTM(3, return_sequences=True))(series(x)),
    },
    # Fixed-point products of TFLite's own, or a bias rounded after a number is added to it; not of our rounding.
    "within one step": {
        "leaky_relu": lambda x: L.LeakyReLU(0.2)(x),
        "prelu": lambda x: L.PReLU(alpha_initializer=slopes(), shared_axes=[1, 2])(L.Conv2D(3, 1)(x)),
        "prelu for every place": lambda x: L.PReLU(alpha_initializer=slopes())(x),
        "hard_silu": lambda x: L.Dense(4, activation="hard_silu")(x),
        "relu with slope and end": lambda x: L.ReLU(1.5, negative_slope=0.3)(L.Conv2D(3, 1)(x)),
        "center": lambda x: L.CenterCrop(5, 5)(L.Conv2D(3, 1)(x)),
        "maximum": lambda x: L.Maximum()([x, L.Conv2D(2, 1)(x)]),
        "minimum": lambda x: ops.minimum(x, L.Conv2D(2, 1)(x)),
        "concatenate twice": lambda x: L.Concatenate()([L.Concatenate()([L.Conv2D(3, 1)(x), x]), L.Conv2D(2, 1)(x)]),
        "bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
        "resizing": lambda x: L.Resizing(5, 5)(x),
        "a number in the bias": lambda x: L.ReLU(6.0)(L.Conv2D(3, 1)(x) + 3.0),
        "a number in the bias, unseen": lambda x: L.Dense(4, activation="hard_sigmoid")(x),
        "matmul": lambda x: ops.matmul(ops.reshape(x, (-1, 8, 16)), ops.reshape(x, (-1, 16, 8))),
        "einsum_dense": lambda x: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")(sequence(x)),
    },
}


LIMITS = {"within two steps": 2, "within three steps": 3}


def with_statistics(model):
    """Weights and statistics that are not the initial zeros and ones; some factors are negative."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "gamma" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape) * np.where(random.random(weight.shape) < 0.3, -1, 1))
        elif any(name in weight.path for name in ("beta", "moving_mean", "bias")):
            weight.assign(random.normal(0, 0.3, weight.shape))
        elif "moving_variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
    return model


LONG = ("within three steps", "sequences")


CASES = [pytest.param(group, 3, id=f"some {group}") for group in GROUPS if group not in LONG]  # every third one
CASES += [pytest.param(group, 1, id=group, marks=pytest.mark.slow) for group in GROUPS]


@pytest.mark.parametrize(("group", "every"), CASES)
def test_the_file_computes_what_the_rule_trains(group, every):
    builds = dict(list(GROUPS[group].items())[::every])
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2), name="image")
    made = [keras.layers.Identity(name=f"out{i}")(build(inputs)) for i, build in enumerate(builds.values())]
    model = quantize_aware(with_statistics(keras.Model(inputs, made)), engine="native", calibration=X)
    others = {entry.reason for entry in model.report if entry.mode != "quantized"}
    assert others <= {"its outputs are integers"}  # a mask
    file = tflite_export.convert(model, "int8")
    assert [op.layer for op in records.ops(file.content) if op.is_float] == []
    assert file.calibrated == ()
    expected = model.predict(X[:24], verbose=0)
    for name, (got, step), wanted in zip(builds, outputs_of(file.content, X[:24]), expected, strict=True):
        gap = np.abs(got - wanted) / step
        assert np.ptp(wanted) > 60 * step, name
        assert gap.max() < LIMITS.get(group, 1) + 0.01, name
        beside = np.mean(gap > 0.5)
        assert beside < (0.1 if group.startswith("within") else 0.02 if group == "sequences" else 1e-3), (name, beside)


@pytest.mark.parametrize("group", GROUPS)
def test_without_rounding_it_is_the_source(group):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2), name="image")
    made = [build(inputs) for build in GROUPS[group].values()]
    source = with_statistics(keras.Model(inputs, made))
    model = quantize_aware(source, engine="native", calibration=X[:8])
    found = Pass(model._hidden.placement, [(0.0, 0.0)] * len(model.range_names), "float")([X[:8]])
    for name, wanted, got in zip(GROUPS[group], source(X[:8], training=False), found, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()), err_msg=name)
