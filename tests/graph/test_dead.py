"""Channels that are constant go without loss: the oracle is the model itself, before and after."""

import keras
import numpy as np
import pytest
from channel_oracle import disturbed
from dead_oracle import ZEROS, X, image_net, lossless, zero
from keras import layers as L

from kdopt.graph import trace_channels
from kdopt.graph.channels.dead import dead_channels
from kdopt.pruning.structural import ChannelPlan, apply_plan, plan_channels, prune_channels


def normed(x):
    return L.BatchNormalization()(L.Conv2D(5, 3, use_bias=False, name="reader")(x))


def gated(x):
    gate = L.Dense(6, activation="sigmoid")(L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    return L.Multiply()([x, L.Reshape((1, 1, 6))(gate)])


def two_places(x):
    return L.Concatenate()([L.ReLU()(x), L.MaxPooling2D(2, 1, "same")(L.BatchNormalization()(x))])


def shifted(x):
    return L.ReLU(negative_slope=0.1)(L.BatchNormalization()(L.Rescaling(2.0, -0.5)(L.Dropout(0.5)(x))))


MIDDLES = {
    "nothing": lambda x: x,
    "norm, activation": lambda x: L.Activation("silu")(L.BatchNormalization()(x)),
    "norm without scale and center": lambda x: L.BatchNormalization(scale=False, center=False)(x),
    "leaky, dropout, rescaling": shifted,
    "poolings": lambda x: L.AveragePooling2D(2, padding="same")(L.MaxPooling2D(2, 1)(x)),
    "depthwise": lambda x: L.DepthwiseConv2D(3, activation="tanh")(x),
    "depthwise of size 1": lambda x: L.DepthwiseConv2D(1, padding="same")(x),
    "sum with itself": lambda x: L.Add()([x, L.ELU()(x)]),
    "maximum, minimum, product": lambda x: L.Multiply()([L.Maximum()([x, L.ReLU()(x)]), L.Minimum()([x, L.ReLU()(x)])]),
    "difference, mean": lambda x: L.Average()([x, L.Subtract()([L.ReLU()(x), x])]),
    "operations": lambda x: keras.ops.add(keras.ops.tanh(x), keras.ops.maximum(x, keras.ops.relu(x))),
    "cropping, upsampling": lambda x: L.Permute((2, 1, 3))(L.Cropping2D(1)(x)),
}
READERS = {
    "valid": L.Conv2D(5, 3, activation="relu", name="reader"),
    "strided": L.Conv2D(5, 3, strides=2, activation="relu", name="reader"),
    "size 1": lambda x: L.Conv2D(5, 1, padding="same", name="reader")(x),
    "norm behind": normed,
    "dense": lambda x: L.Dense(5, activation="relu", name="reader")(L.Flatten()(x)),
    "dense on each place": lambda x: L.Dense(5, name="reader")(x),
}


def fresh(layer):
    return type(layer).from_config(layer.get_config()) if isinstance(layer, keras.layers.Layer) else layer


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("middle", MIDDLES)
def test_readers_take_over_constants(middle, reader):
    model = image_net(fresh(MIDDLES[middle]), fresh(READERS[reader]))
    assert dead_channels(model, trace_channels(model)).roots.size == ZEROS
    small, plan = lossless(model, X)
    assert plan.dead == ZEROS
    assert small.get_layer("maker").filters == 6 - ZEROS
    assert f"dead channels, with which nothing is lost: {ZEROS}" in plan.summary()


def test_a_fold_matters():
    """Were the constant not taken over, the outputs would be others."""
    model = image_net(MIDDLES["norm, activation"], READERS["dense on each place"])
    small, _ = lossless(model, X)
    bias = model.get_layer("reader").bias.numpy()
    assert np.abs(small.get_layer("reader").bias.numpy() - bias).max() > 0.01


KEPT = {
    "border of zeros": (lambda x: x, lambda x: L.Conv2D(5, 3, padding="same")(x)),
    "padding": (L.ZeroPadding2D(1), L.Conv2D(5, 3)),
    "depthwise with a border": (lambda x: L.DepthwiseConv2D(3, padding="same")(x), L.Conv2D(5, 1)),
    "no bias, nothing behind": (lambda x: x, lambda x: L.ReLU()(L.Conv2D(5, 3, use_bias=False)(x))),
    "an activation before the norm": (
        lambda x: x,
        lambda x: L.BatchNormalization()(L.Conv2D(5, 3, use_bias=False, activation="relu")(x)),
    ),
    "transposed": (lambda x: x, lambda x: L.Conv2DTranspose(5, 3)(x)),
    "separable": (lambda x: x, lambda x: L.SeparableConv2D(5, 3)(x)),
    "slopes of its own": (L.PReLU(shared_axes=[1, 2]), L.Conv2D(5, 1)),
    "two places with other constants": (two_places, L.Conv2D(5, 1)),
    "a norm over places": (L.BatchNormalization(axis=2), L.Conv2D(5, 1)),
    "a gate": (gated, L.Conv2D(5, 1)),
    "a map over all places": (
        lambda x: L.Multiply()([x, L.Conv2D(1, 1, activation="sigmoid")(x)]),
        lambda x: L.Conv2D(5, 1)(x),
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_cannot_be_taken_over_stays(kind):
    middle, reader = KEPT[kind]
    model = image_net(fresh(middle), fresh(reader))
    assert lossless(model, X)[1].dead == 0


@pytest.mark.parametrize("kind", KEPT)
def test_zeros_go_everywhere(kind):
    middle, reader = KEPT[kind]
    model = image_net(fresh(middle), fresh(reader), bias=False)
    for layer in model.layers:
        if isinstance(layer, L.DepthwiseConv2D):
            layer.bias.assign(layer.bias * 0)
    dead = lossless(model, X)[1].dead
    assert dead == (0 if kind in ("a norm over places", "two places with other constants") else ZEROS)


@pytest.mark.parametrize("training", [None, False, True])
def test_statistics_of_the_batch_are_no_constants(training):
    """A nested model, and one in it, called with `training=True`: its normalizations do not use the moving means."""
    keras.utils.set_random_seed(3)
    inner = keras.Sequential([keras.Input((7, 7, 6)), L.BatchNormalization(), L.ReLU()])
    outer = keras.Sequential([keras.Input((7, 7, 6)), inner, L.Activation("tanh")])
    inputs = keras.Input((9, 9, 3))
    h = outer(L.Conv2D(6, 3, name="maker")(inputs), **({} if training is None else {"training": training}))
    model = disturbed(keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(h))))
    zero(model.get_layer("maker"), ZEROS)
    assert lossless(model, X)[1].dead == (0 if training else ZEROS)


def test_a_gamma_of_zero_is_dead_whatever_the_kernel_says():
    model = image_net(MIDDLES["norm, activation"], READERS["valid"])
    model.get_layer("maker").kernel.assign(np.random.default_rng(1).normal(size=(3, 3, 3, 6)))
    norm = next(layer for layer in model.layers if isinstance(layer, L.BatchNormalization))
    norm.gamma.assign([0, 1, 0, 1, 1, -1])
    small, plan = lossless(model, X)
    assert plan.dead == 2
    assert plan.removed == ((0, 3, (0, 2)),)
    assert small.get_layer("maker").filters == 4


def test_dead_channels_go_first_and_are_not_zeroed_in_the_comparison():
    model = image_net(MIDDLES["norm, activation"], READERS["valid"])
    plan = plan_channels(model, channels=0.5, criterion="fpgm", layers=["maker"])
    assert plan.dead == ZEROS
    small = apply_plan(model, plan)
    assert small.get_layer("maker").filters == 6 - ZEROS
    # With more than the dead ones gone the rest is as if its readers' kernels were zero there.
    plan = plan_channels(model, channels=0.3, layers=["maker", "reader"], scope="layer")
    assert plan.dead == ZEROS
    apply_plan(model, plan)


def test_the_number_of_dead_channels_is_kept_in_the_file(tmp_path):
    plan = plan_channels(image_net(MIDDLES["nothing"], READERS["valid"]), criterion="mask")
    assert ChannelPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert plan.dead == ZEROS


def test_a_shared_reader_must_see_the_same_constant_each_time():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, 3))
    shared = L.Conv2D(5, 1, name="reader")
    h = L.Conv2D(6, 3, name="maker")(inputs)
    same = disturbed(keras.Model(inputs, L.Add()([shared(h), shared(L.Dropout(0.5)(h))])))
    zero(same.get_layer("maker"), ZEROS)
    assert lossless(same, X)[1].dead == ZEROS
    shared = L.Conv2D(5, 1, name="reader")
    other = disturbed(keras.Model(inputs, L.Add()([shared(h), shared(L.BatchNormalization()(h))])))
    zero(other.get_layer("maker"), ZEROS)
    assert lossless(other, X)[1].dead == 0


def test_groups_of_one_channel():
    model = image_net(lambda x: L.ReLU()(L.GroupNormalization(6)(x)), READERS["valid"])
    assert lossless(model, X)[1].dead == ZEROS
    model = image_net(lambda x: L.GroupNormalization(3)(x), READERS["valid"])
    assert lossless(model, X)[1].dead == 0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_has_its_own_tolerance(policy):
    keras.utils.set_random_seed(0)
    i = keras.Input((9, 9, 3))
    h = L.BatchNormalization(dtype=policy)(L.Conv2D(16, 3, name="maker", dtype=policy)(i))
    h = L.GlobalAveragePooling2D(dtype=policy)(L.Conv2D(5, 3, dtype=policy)(L.ReLU(dtype=policy)(h)))
    model = disturbed(keras.Model(i, L.Dense(4, dtype="float32")(h)))
    zero(model.get_layer("maker"), 8)
    small, plan = prune_channels(model, criterion="mask")
    assert plan.dead == 8
    np.testing.assert_allclose(small(X), model(X), atol=2e-2 * np.abs(model(X)).max())


ODD = {
    "a function of places": L.Activation(lambda t: t * keras.ops.mean(t, axis=(1, 2), keepdims=True)),
    "a softmax over places": L.Activation(lambda t: keras.ops.softmax(t, axis=2)),
    "slopes inside": L.Conv2D(6, 1, activation=L.PReLU(shared_axes=[1, 2])),
    "one's own": L.Conv2D(6, 1, activation=lambda t: t * np.arange(6)),
}


@pytest.mark.parametrize("kind", ODD)
def test_activations_of_ones_own_say_nothing(kind):
    model = image_net(lambda x: ODD[kind](x), lambda x: L.Conv2D(5, 1)(x))
    for layer in model.layers:
        if isinstance(layer, L.Conv2D) and layer.name != "reader":
            zero(layer, 1)
    plan_channels(model, channels=0.9)


def test_a_layer_that_always_trains_says_nothing():
    keras.utils.set_random_seed(0)
    i = keras.Input((9, 9, 3))
    h = L.BatchNormalization()(L.Conv2D(6, 3, name="maker")(i), training=True)
    model = disturbed(keras.Model(i, L.Dense(4)(L.Flatten()(h))))
    zero(model.get_layer("maker"), ZEROS)
    assert dead_channels(model, trace_channels(model)).roots.size == 0
