"""Channels that are constant go without loss: the oracle is the model itself, before and after."""

import keras
import numpy as np
import pytest
from channel_oracle import disturbed
from keras import layers as L

from kdopt.core import measure
from kdopt.graph import trace_channels
from kdopt.graph.channels.dead import dead_channels
from kdopt.pruning.structural import ChannelPlan, apply_plan, plan_channels, prune_channels

X = np.random.default_rng(0).normal(size=(3, 9, 9, 3)).astype("float32")
ZEROS = 3  # of the 6 channels of "maker"


def zero(layer, count=ZEROS, axis=-1):
    """The first channels of a kernel."""
    variable = getattr(layer, "kernel", None)
    value = np.moveaxis(variable.numpy(), axis, 0)
    value[:count] = 0
    variable.assign(np.moveaxis(value, 0, axis))


def image_net(middle, reader, bias=True):
    """conv -> middle -> reader, then something that reads all."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((9, 9, 3))
    h = middle(L.Conv2D(6, 3, name="maker", use_bias=bias)(inputs))
    h = reader(h)
    h = h if len(h.shape) == 2 else L.GlobalAveragePooling2D()(h)
    model = disturbed(keras.Model(inputs, L.Dense(4, name="out")(h)))
    zero(model.get_layer("maker"))
    return model


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


def lossless(model, x=X, **arguments):
    """Shrinks what is zero or dead; returns (smaller model, plan)."""
    before = [weight.numpy() for weight in model.weights]
    small, plan = prune_channels(model, criterion="mask", **arguments)
    expected, got = model(x, training=False), small(x, training=False)
    scale = np.abs(expected).max()
    assert np.abs(expected - got).max() < 2e-6 * scale
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert plan.parameters == (measure.parameters(model), measure.parameters(small))
    return small, plan


def fresh(layer):
    return type(layer).from_config(layer.get_config()) if isinstance(layer, keras.layers.Layer) else layer


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("middle", MIDDLES)
def test_readers_take_over_constants(middle, reader):
    model = image_net(fresh(MIDDLES[middle]), fresh(READERS[reader]))
    assert dead_channels(model, trace_channels(model)).roots.size == ZEROS
    small, plan = lossless(model)
    assert plan.dead == ZEROS
    assert small.get_layer("maker").filters == 6 - ZEROS
    assert f"dead channels, with which nothing is lost: {ZEROS}" in plan.summary()


def test_a_fold_matters():
    """Were the constant not taken over, the outputs would be others."""
    model = image_net(MIDDLES["norm, activation"], READERS["dense on each place"])
    small, _ = lossless(model)
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
    assert lossless(model)[1].dead == 0


@pytest.mark.parametrize("kind", KEPT)
def test_zeros_go_everywhere(kind):
    middle, reader = KEPT[kind]
    model = image_net(fresh(middle), fresh(reader), bias=False)
    for layer in model.layers:
        if isinstance(layer, L.DepthwiseConv2D):
            layer.bias.assign(layer.bias * 0)
    dead = lossless(model)[1].dead
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
    zero(model.get_layer("maker"))
    assert lossless(model)[1].dead == (0 if training else ZEROS)


def test_a_gamma_of_zero_is_dead_whatever_the_kernel_says():
    model = image_net(MIDDLES["norm, activation"], READERS["valid"])
    model.get_layer("maker").kernel.assign(np.random.default_rng(1).normal(size=(3, 3, 3, 6)))
    norm = next(layer for layer in model.layers if isinstance(layer, L.BatchNormalization))
    norm.gamma.assign([0, 1, 0, 1, 1, -1])
    small, plan = lossless(model)
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
    zero(same.get_layer("maker"))
    assert lossless(same)[1].dead == ZEROS
    shared = L.Conv2D(5, 1, name="reader")
    other = disturbed(keras.Model(inputs, L.Add()([shared(h), shared(L.BatchNormalization()(h))])))
    zero(other.get_layer("maker"))
    assert lossless(other)[1].dead == 0


def test_a_unit_that_hears_only_other_units_is_alive():
    """A recurrent column that is not zero: the unit's kernel and bias say nothing."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    model = keras.Model(inputs, L.Dense(2)(L.SimpleRNN(5, name="rnn")(inputs)))
    cell = model.get_layer("rnn").cell
    cell.kernel.assign(cell.kernel * np.array([0, 0, 1, 1, 1]))
    recurrent = cell.recurrent_kernel.numpy()
    recurrent[:, 0] = 0
    cell.recurrent_kernel.assign(recurrent)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    small, plan = lossless(model, x)
    assert plan.removed == ((0, 1, (0,)),)
    assert small.get_layer("rnn").units == 4


def test_heads_whose_readers_cannot_take_a_constant_stay():
    inputs = keras.Input((7, 6))
    model = disturbed(keras.Model(inputs, L.Dense(2)(L.MultiHeadAttention(3, 2, name="heads")(inputs, inputs))))
    heads = model.get_layer("heads")
    for part in (heads._query_dense, heads._key_dense, heads._value_dense):
        part.kernel.assign(part.kernel * np.array([0.0, 1, 1])[:, None])
    x = np.random.default_rng(0).normal(size=(3, 7, 6)).astype("float32")
    assert lossless(model, x)[1].dead == 0  # biases make queries, keys and values


def silent(layer, unit=0):
    """The candidate for the unit's new state becomes zero; the other gates stay as they are."""
    at = unit + 2 * layer.units if not isinstance(layer, L.SimpleRNN) else unit
    for variable in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
        value = variable.numpy()
        value[..., at] = 0
        variable.assign(value)


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.LSTM, L.GRU])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_a_unit_without_a_new_state_is_dead(kind, both, sequences):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    rnn = kind(5, return_sequences=sequences, name="rnn")
    rnn = L.Bidirectional(rnn, name="rnn") if both else rnn
    model = disturbed(keras.Model(inputs, L.Dense(2)(rnn(inputs))))
    for layer in (rnn.forward_layer, rnn.backward_layer) if both else (rnn,):
        silent(layer)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    assert lossless(model, x)[1].dead == 1
    if both:
        cell = rnn.backward_layer.cell
        cell.bias.assign(cell.bias + 0.5)
        assert lossless(model, x)[1].dead == 0


def test_a_silent_unit_that_begins_with_a_state_is_alive():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    first = L.LSTM(5, return_state=True, return_sequences=True, name="first")(inputs)
    second = L.LSTM(5, name="second")
    model = disturbed(keras.Model(inputs, L.Dense(2)(second(first[0], initial_state=first[1:]))))
    silent(second)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    assert lossless(model, x)[1].dead == 0


@pytest.mark.parametrize("kind", ["heads", "widths", "groups of heads"])
def test_heads_and_widths_without_values_are_dead(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 6))
    layer = L.GroupQueryAttention(2, 6, 3) if kind == "groups of heads" else L.MultiHeadAttention(3, 2)
    model = disturbed(keras.Model(inputs, L.Dense(2)(layer(inputs, inputs))))
    value = layer._value_dense
    mask = np.array([1.0, 1])[None] if kind == "widths" else np.array([0.0, 1, 1])[:, None]
    mask = np.array([[0.0, 1]]) if kind == "widths" else mask
    value.kernel.assign(value.kernel * mask)
    value.bias.assign(value.bias * mask)
    x = np.random.default_rng(0).normal(size=(3, 7, 6)).astype("float32")
    small, plan = lossless(model, x)
    assert plan.dead == 1
    found = small.layers[1]
    assert found.value_dim == 1 if kind == "widths" else found._value_dense.kernel.shape[1] == 2


def test_embeddings_and_layers_on_each_step():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7,), dtype="int32")
    h = L.TimeDistributed(L.Dense(6, activation="tanh", name="maker"))(L.Embedding(9, 5, name="words")(inputs))
    model = disturbed(keras.Model(inputs, L.TimeDistributed(L.Dense(2))(h)))
    words = model.get_layer("words").embeddings
    words.assign(words * np.array([0.0, 1, 1, 0, 1]))
    zero(next(layer for layer in model._flatten_layers() if layer.name == "maker"))
    small, plan = lossless(model, np.array([[1, 2, 3, 4, 5, 6, 7], [8, 8, 0, 0, 1, 2, 3]], "int32"))
    assert plan.dead == 2 + ZEROS
    assert small.get_layer("words").output_dim == 3


def test_groups_of_one_channel():
    model = image_net(lambda x: L.ReLU()(L.GroupNormalization(6)(x)), READERS["valid"])
    assert lossless(model)[1].dead == ZEROS
    model = image_net(lambda x: L.GroupNormalization(3)(x), READERS["valid"])
    assert lossless(model)[1].dead == 0


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
    zero(model.get_layer("maker"))
    assert dead_channels(model, trace_channels(model)).roots.size == 0


def test_a_recurrent_activation_that_is_not_zero_at_zero():
    i = keras.Input((7, 4))
    model = disturbed(keras.Model(i, L.Dense(2)(L.SimpleRNN(5, activation="sigmoid", name="rnn")(i))))
    silent(model.get_layer("rnn"))
    assert lossless(model, np.random.default_rng(0).normal(size=(2, 7, 4)).astype("float32"))[1].dead == 0
