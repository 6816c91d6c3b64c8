"""Coupled channels by hand, and every rule against the oracle."""

import keras
import numpy as np
import pytest
from channel_oracle import check, difference, inputs_of
from keras import layers as L
from keras import ops

from kdopt.graph import channel_groups, channel_rule, trace_channels, without


def conv_net():
    """Residual over a depthwise layer, squeeze and excite, concatenation, flattened."""
    x = keras.Input((6, 6, 3))
    h = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(8, 3, padding="same", name="stem")(x)))
    h = L.Add()([h, L.DepthwiseConv2D(3, padding="same", name="depthwise")(h)])
    gate = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(h))
    gate = L.Conv2D(8, 1, activation="sigmoid", name="expand")(L.Conv2D(4, 1, activation="relu", name="squeeze")(gate))
    h = L.Concatenate()([L.Multiply()([h, gate]), L.Conv2D(5, 1, name="side")(x)])
    return keras.Model(x, L.Dense(3, name="out")(L.Flatten()(h)))


def test_groups_by_hand():
    groups = channel_groups(conv_net())
    found = [(g.channels, g.made_by, g.read_by, bool(g.frozen)) for g in groups]
    assert found == [
        (8, ("stem", "expand"), ("squeeze", "out"), False),
        (4, ("squeeze",), ("expand",), False),
        (5, ("side",), ("out",), False),
        (3, ("out",), (), True),
    ]
    members = {(m.layer, m.variable, m.axis): m for m in groups[0].members}
    assert {key[:2] for key in members} == {
        *{("stem", "kernel"), ("stem", "bias"), ("norm", "gamma"), ("norm", "beta"), ("norm", "moving_mean")},
        *{("norm", "moving_variance"), ("depthwise", "kernel"), ("depthwise", "bias"), ("squeeze", "kernel")},
        *{("expand", "kernel"), ("expand", "bias"), ("out", "kernel")},
    }
    rows = members["out", "kernel", 0].places  # 6 x 6 places of 8 + 5 channels
    assert rows[2] == tuple(range(2, 36 * 13, 13))
    assert groups[3].frozen == "output 'out' of the model"


def test_layers_inside_a_model_have_their_own_paths():
    made = {path for group in channel_groups(nested()) for path in group.made_by}
    assert {"shared", "inner/a", "left", "right"} <= made
    assert "inner" not in made


def attention_net():
    x = keras.Input((7, 12))
    h = L.Add()([x, L.MultiHeadAttention(4, 6, value_dim=5, name="attention")(x, x)])
    h = L.LayerNormalization(name="normalize")(h)
    h = L.Add()([h, L.Dense(12, name="down")(L.Dense(20, activation="gelu", name="up")(h))])
    return keras.Model(x, L.Dense(3, name="out")(L.GlobalAveragePooling1D()(h)))


def test_attention_loses_heads_and_the_residual_stays():
    groups = {(g.made_by, g.channels): g.frozen for g in channel_groups(attention_net())}
    assert groups[("attention",), 4] == groups[("attention",), 5] == groups[("up",), 20] == ""
    assert groups[("attention",), 6] == ""  # widths of the keys
    assert "joins it with something that has no channels" in groups[("attention",), 12]


def mixed_net():
    x = keras.Input((8, 8, 3))
    h = L.Conv2D(8, 3, groups=1)(x)
    h = L.PReLU(shared_axes=[1, 2])(L.Conv2D(12, 3, groups=4, padding="same")(h))
    h = L.GroupNormalization(groups=-1)(L.Conv2DTranspose(6, 2, strides=2)(h))
    h = L.SeparableConv2D(10, 3, depth_multiplier=2)(h)
    h = L.Conv2D(20, 3, groups=10)(h)  # a depthwise convolution
    return keras.Model(x, L.Dense(3)(L.GlobalMaxPooling2D()(h)))


def decoder():
    x = keras.Input((6,))
    h = L.Reshape((4, 4, 8))(L.Dense(4 * 4 * 8, activation="relu")(x))
    return keras.Model(x, L.Conv2D(2, 1)(L.UpSampling2D()(L.Conv2DTranspose(5, 3)(h))))


def shuffle_net():
    """Channels shuffled between groups."""
    x = keras.Input((4, 4, 3))
    h = L.Conv2D(12, 1, groups=1)(x)
    h = L.Reshape((4, 4, 12))(L.Permute((1, 2, 4, 3))(L.Reshape((4, 4, 3, 4))(h)))
    return keras.Model(x, L.Dense(2)(L.Flatten()(L.Conv2D(6, 3, groups=3)(h))))


def sequences():
    x = keras.Input((9,), dtype="int32")
    h = L.Bidirectional(L.LSTM(6, return_sequences=True))(L.Embedding(5, 10)(x))
    h = L.TimeDistributed(L.Dense(8, activation="relu"))(h)
    h = L.GroupQueryAttention(4, 6, 2)(L.Dense(12)(h), L.Dense(12)(h))
    h, state = L.GRU(5, return_state=True)(h)
    return keras.Model(x, L.Dense(3)(L.Concatenate()([h, L.SimpleRNN(4)(L.RepeatVector(2)(state))])))


def with_ops():
    x = keras.Input((5, 8))
    one, other = ops.split(L.Dense(14)(x), [6], axis=-1)
    h = ops.concatenate([ops.relu(one), ops.sigmoid(other)], axis=-1) * 0.5 + 1.0
    h = ops.transpose(h, (0, 2, 1))
    h = ops.mean(ops.reshape(h, (-1, 14, 5)), axis=2)
    h = ops.squeeze(ops.expand_dims(h, 1), 1)
    return keras.Model(x, L.Dense(3)(h))


def einsum_net():
    x = keras.Input((5, 6))
    h = L.EinsumDense("abc,cde->abde", (None, 3, 4), bias_axes="de", activation="relu")(x)
    h = L.EinsumDense("abde,def->abf", (None, 7), bias_axes="f")(h)
    return keras.Model(x, L.EinsumDense("...x,xy->...y", (2,))(h))


def nested():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(9, activation="relu", name="a"), L.Dense(6)], name="inner")
    x, y = keras.Input((6,)), keras.Input((6,))
    shared = L.Dense(6, name="shared")
    h = L.Add()([inner(shared(x)), inner(shared(y))])
    return keras.Model([x, y], [L.Dense(2, name="left")(h), L.Dense(3, name="right")(h)])


def mixer():
    """A Dense over places, between two transpositions."""
    x = keras.Input((6, 6, 3))
    h = L.Reshape((4, 8))(L.Conv2D(8, 3, strides=3, name="patches")(x))
    t = L.Permute((2, 1))(L.Dense(4)(L.Dense(10, activation="relu", name="tokens")(L.Permute((2, 1))(h))))
    return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(L.Add()([h, t]))))


def channels_first():
    x = keras.Input((3, 6, 6))
    h = L.Permute((3, 1, 2))(L.Dense(8)(L.Permute((2, 3, 1))(x)))
    h = L.BatchNormalization(axis=1)(h)
    return keras.Model(x, L.Dense(2)(L.Flatten(data_format="channels_first")(h)))


NETS = [conv_net, attention_net, mixed_net, decoder, shuffle_net, sequences, with_ops, einsum_net, nested, mixer]


@pytest.mark.parametrize("net", [*NETS, channels_first], ids=lambda net: net.__name__)
def test_a_smaller_net_is_the_old_one_with_zeroed_readers(net):
    model = net()
    small, removed = check(model)
    assert len(removed) >= 1
    assert small.count_params() < model.count_params()
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


def test_the_smaller_net_trains_and_can_be_saved(tmp_path):
    model = conv_net()
    model.compile("adam", "mse")
    model.get_layer("norm").trainable = False
    small, _ = check(model)
    assert not small.get_layer("norm").trainable
    small.fit(np.ones((4, 6, 6, 3)), np.ones((4, 3)), verbose=0)
    small.save(tmp_path / "small.keras")
    x = inputs_of(model)
    assert difference(small, keras.models.load_model(tmp_path / "small.keras"), x) == 0


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = L.Dense(8, name="first"), L.BatchNormalization(), L.Dense(2, name="last")

    def call(self, x):
        h = ops.relu(self.norm(self.first(x)))
        return self.last(h + 1.0)


def test_a_subclassed_model_is_traced():
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    model(x)
    nodes = len(model.first._inbound_nodes)
    graph = trace_channels(model)
    removed = graph.labels.roots(graph.labels.slots()[1].labels)[:3]
    assert len(model.first._inbound_nodes) == nodes
    small = without(model, graph, removed)
    model.last.kernel.assign(np.where(np.arange(8)[:, None] < 3, 0, model.last.kernel.numpy()))
    assert [layer.units for layer in small.layers if isinstance(layer, L.Dense)] == [5, 2]
    assert difference(model, small, x) < 1e-6
    with pytest.raises(ValueError, match="has no weights yet"):
        channel_groups(Subclassed())


class Doubled(L.Layer):
    """Nobody knows what this does."""

    def call(self, x):
        return 2 * x


class Known(Doubled):
    def call(self, x):
        return 3 * x


@channel_rule(Known)
def known(labels, layer, call):
    return call.x


def test_an_unknown_layer_freezes_what_goes_in_and_says_how_to_register_it():
    x = keras.Input((6,))
    h = L.Dense(5, name="a")(x)
    for layer, frozen in ((Doubled(name="d"), True), (Known(), False)):
        group = channel_groups(keras.Model(x, L.Dense(2)(layer(h))))[0]
        assert bool(group.frozen) == frozen
        if frozen:
            assert group.frozen.startswith("'d' (Doubled) has no channel rule; give it one with")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (L.LayerNormalization(name="n"), "'n' normalizes over it"),
        (L.Softmax(name="n"), "'n' mixes channels"),
        (L.Activation("softmax", name="n"), "the activation softmax of 'n' mixes channels"),
        (L.GroupNormalization(1, name="n"), "'n' normalizes over it"),
        (L.Rescaling([1.0, 2, 3, 4, 5, 6], name="n"), "'n' has a number of its own for each channel"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_channels_that_must_stay_have_the_reason(layer, reason):
    x = keras.Input((4,))
    groups = channel_groups(keras.Model(x, L.Dense(2)(layer(L.Dense(6)(x)))))
    assert groups[0].frozen == reason


def test_normalized_axes_may_be_cut_on_demand():
    groups = channel_groups(attention_net(), allow_normalized_axes=True)
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(L.LayerNormalization(name="n")(L.Dense(6)(x))))
    (group, _) = channel_groups(model, allow_normalized_axes=True)
    assert group.frozen == ""
    assert {("n", "gamma"), ("n", "beta")} <= {(m.layer, m.variable) for m in group.members}
    assert any(g.frozen for g in groups)  # the residual still begins at the input
