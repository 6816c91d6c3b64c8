"""The tf_keras copy computes what the Keras 3 model computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kdopt.graph.inline import trace
from kdopt.quantization.tfmot import bridge
from kdopt.quantization.tfmot.bridge import Blueprint, check_equal, emit, probe


def randomize(model, seed=0):
    """Weights that make every variable matter: a default BatchNormalization is nearly the identity."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(random.uniform(0.5, 2.0, variable.shape))
        elif "float" in variable.dtype and len(variable.shape) < 2:
            variable.assign(keras.ops.convert_to_numpy(variable) + random.normal(0.0, 0.2, variable.shape))
    return model


def chain(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts])


@keras.saving.register_keras_serializable("kdopt_test")
class Scaled(layers.Layer):
    """A user's layer with a weight, a training switch and a loss."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="factor")

    def call(self, inputs, training=False):
        self.add_loss(0.1 * ops.sum(ops.square(self.factor)))
        return inputs * self.factor + (1.0 if training else 0.0)


def squeeze_excite():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(2, 1, activation="relu")(gate)
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(gate)
    return keras.Model(inputs, layers.Multiply()([x, gate]))


def nested():
    inner = chain((5,), layers.Dense(4, activation="relu", name="a"), layers.Dense(3, name="b"))
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(2, name="a")(inner(inputs)))


def shared():
    one, two = keras.Input((5,)), keras.Input((5,))
    dense = layers.Dense(4)
    return keras.Model([one, two], layers.Subtract()([dense(one), dense(dense_in(two))]))


def dense_in(tensor):
    return layers.Dense(5, activation="tanh")(tensor)


def shared_model():
    inner = chain((5,), layers.Dense(5), layers.BatchNormalization())
    inputs = keras.Input((5,))
    return keras.Model(inputs, inner(inner(inputs)))


def many_in_and_out():
    inputs = {"image": keras.Input((4, 4, 2), name="image"), "size": keras.Input((3,), name="size")}
    x = layers.Flatten()(inputs["image"])
    x = layers.Concatenate()([x, inputs["size"]])
    return keras.Model(inputs, {"class": layers.Dense(3)(x), "box": layers.Dense(4, activation="relu")(x)})


def ops_graph():
    inputs = keras.Input((4, 4, 2))
    x = ops.relu(inputs - 0.5) + inputs
    x = ops.concatenate([x * inputs, ops.maximum(x, inputs)], axis=-1)
    y = ops.reshape(ops.relu6(x), (-1, 16, 4))
    return keras.Model(inputs, ops.softmax(ops.mean(y, axis=1)) + ops.mean(x, axis=(1, 2)))


def attention():
    inputs = keras.Input((5, 8))
    x = layers.LayerNormalization()(inputs)
    x = layers.MultiHeadAttention(2, 4)(x, x) + inputs
    return keras.Model(inputs, layers.Dense(3, activation="gelu")(x))


def tokens():
    inputs = keras.Input((7,), dtype="int32")
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Embedding(5, 4)(inputs))))


def ragged_names():
    inputs = keras.Input((3,), name="my input")
    return keras.Model(inputs, layers.Dense(2, name="ünusual name+1")(inputs))


IMAGE, ROW = (6, 6, 3), (8, 3)
KINDS = {
    "conv2d": lambda: chain(IMAGE, layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")),
    "conv2d_groups": lambda: chain((6, 6, 4), layers.Conv2D(4, 3, groups=2, dilation_rate=2, use_bias=False)),
    "conv2d_transpose": lambda: chain(
        IMAGE, layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="swish")
    ),
    "depthwise": lambda: chain(IMAGE, layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6")),
    "separable": lambda: chain(IMAGE, layers.SeparableConv2D(5, 3, padding="same", activation="tanh")),
    "separable_linear": lambda: chain(IMAGE, layers.SeparableConv2D(5, 3, use_bias=False)),
    "separable1d": lambda: chain(ROW, layers.SeparableConv1D(5, 3, activation="relu")),
    "conv1d_causal": lambda: chain(ROW, layers.Conv1D(4, 3, padding="causal", activation="hard_silu")),
    "conv3d": lambda: chain((4, 4, 4, 2), layers.Conv3D(3, 2), layers.MaxPooling3D()),
    "dense_rank3": lambda: chain(ROW, layers.Dense(4, activation="softmax")),
    "batch_normalization": lambda: chain(IMAGE, layers.BatchNormalization(scale=False), layers.ReLU(4.0)),
    "layer_normalization": lambda: chain(ROW, layers.LayerNormalization(axis=(1, 2))),
    "rms_normalization": lambda: chain(ROW, layers.RMSNormalization()),
    "group_normalization": lambda: chain((4, 4, 4), layers.GroupNormalization(2)),
    "leaky": lambda: chain(ROW, layers.LeakyReLU(0.3), layers.PReLU(shared_axes=[1])),
    "relu_options": lambda: chain(ROW, layers.ReLU(max_value=0.7, negative_slope=0.1, threshold=0.2)),
    "elu": lambda: chain(ROW, layers.ELU(0.5), layers.Dense(2, activation="elu"), layers.Activation("selu")),
    "activations": lambda: chain(
        ROW, *(layers.Activation(a) for a in ("mish", "softplus", "hard_sigmoid", "celu", "gelu"))
    ),
    "own_activation": lambda: chain(ROW, layers.Dense(3, activation=lambda x: ops.sin(x))),
    "pooling": lambda: chain(
        (8, 8, 2), layers.MaxPooling2D(), layers.AveragePooling2D(2, 1, "same"), layers.GlobalMaxPooling2D()
    ),
    "pooling1d": lambda: chain(ROW, layers.MaxPooling1D(), layers.AveragePooling1D(2), layers.GlobalAveragePooling1D()),
    "shapes": lambda: chain(
        (4, 6), layers.Permute((2, 1)), layers.Reshape((4, -1)), layers.Flatten(), layers.RepeatVector(2)
    ),
    "borders": lambda: chain(
        IMAGE, layers.ZeroPadding2D(((1, 2), (0, 1))), layers.Cropping2D(1), layers.UpSampling2D(2)
    ),
    "bilinear": lambda: chain(
        IMAGE, layers.UpSampling2D((2, 3), interpolation="bilinear"), layers.Rescaling(1 / 127, -1.0)
    ),
    "normalization": lambda: chain(IMAGE, layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])),
    "noise_off": lambda: chain(ROW, layers.Dropout(0.5), layers.GaussianNoise(1.0), layers.SpatialDropout1D(0.5)),
    "augmentation_off": lambda: chain(IMAGE, layers.RandomFlip(), layers.RandomContrast(0.5)),
    "lstm": lambda: chain(ROW, layers.Bidirectional(layers.LSTM(3, return_sequences=True)), layers.GRU(2)),
    "einsum": lambda: chain(ROW, layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")),
    "time_distributed": lambda: chain(ROW, layers.TimeDistributed(layers.Dense(2))),
    "custom": lambda: chain(ROW, Scaled(), layers.Dense(2)),
    "squeeze_excite": squeeze_excite,
    "nested": nested,
    "shared_layer": shared,
    "shared_model": shared_model,
    "many_in_and_out": many_in_and_out,
    "ops": ops_graph,
    "attention": attention,
    "tokens": tokens,
    "odd_names": ragged_names,
}


@pytest.mark.parametrize("kind", KINDS)
def test_bridged_outputs_equal(kind):
    model = randomize(KINDS[kind]())
    before = [keras.ops.convert_to_numpy(w) for w in model.weights]
    blueprint = Blueprint.of(model)
    data = [d * 4 - 2 if d.dtype.kind == "f" else d for d in probe(blueprint, batch=3)]
    received = bridge._run(emit(blueprint).model, data)
    wanted = bridge._run_source(model, data)
    assert len(wanted) == len(received)
    for a, b in zip(wanted, received, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(a).max()))
        assert np.ptp(a) > 1e-3  # a constant would compare equal whatever is computed
    check_equal(model, blueprint, data)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))


APPLICATIONS = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "EfficientNetB0": {},
    "ResNet50": {},
    "DenseNet121": {},
    "ConvNeXtTiny": {},
    "NASNetMobile": {},
}
CHEAP = ("MobileNet",)


@pytest.mark.parametrize(
    "name", [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in APPLICATIONS], ids=list(APPLICATIONS)
)
def test_bridged_application_equal(name):
    build = getattr(keras.applications, name)
    options = {"weights": None, "classes": 10, "classifier_activation": None, **APPLICATIONS[name]}
    model = randomize(build(input_shape=(32, 32, 3), **options))
    blueprint = Blueprint.of(model)
    data = [np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")]
    (wanted,), (received,) = bridge._run_source(model, data), bridge._run(emit(blueprint).model, data)
    np.testing.assert_allclose(received, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_the_layer_that_differs_is_named(monkeypatch):
    model = chain((4,), layers.Dense(3, name="first"), layers.Dense(3, name="second"), layers.Dense(3, name="third"))
    blueprint = Blueprint.of(model)
    make = bridge._make

    def wrong(step, arguments, variables):
        layer = make(step, arguments, variables)
        if step.name == "second":
            layer.bias.assign_add(0.01 * np.ones(3))
        return layer

    monkeypatch.setattr(bridge, "_make", wrong)
    with pytest.raises(RuntimeError, match="'second' differs first"):
        check_equal(model, blueprint)


def test_nested_and_shared_are_traced():
    traced = trace(nested())
    assert [call.name for call in traced.calls] == ["sequential.a", "sequential.b", "a"] or traced.calls[
        0
    ].name.endswith(".a")
    calls = trace(shared_model()).calls
    assert [call.operation for call in calls[:2]] == [call.operation for call in calls[2:]]
    assert [call.name for call in calls[:2]] == [call.name for call in calls[2:]]
