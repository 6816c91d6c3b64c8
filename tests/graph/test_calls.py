"""Layers and models that are called several times, inside others, or under a mask: each net was once a defect."""

import keras
import numpy as np
import pytest
from channel_oracle import check, inputs_of
from keras import layers as L

from kdopt.graph import channel_groups, trace_channels, without
from kdopt.pruning.structural import apply_plan, plan_channels


def sequential_in_sequential():
    x = keras.Input((8,))
    functional = keras.Model(x, L.Dense(6)(x))
    return keras.Sequential([keras.Input((4,)), L.Dense(8), keras.Sequential([functional, L.ReLU()]), L.Dense(2)])


def nested_on_two_lengths():
    x = keras.Input((None, 8))
    inner, outer = keras.Model(x, L.Dense(6)(x)), L.Dense(8)
    one, other = keras.Input((5, 4)), keras.Input((7, 4))
    return keras.Model([one, other], [L.Dense(2)(inner(outer(one))), L.Dense(2)(inner(outer(other)))])


def nested_on_two_widths():
    """Without weights inside: nothing but its input shape says that both calls must lose the same."""
    x = keras.Input((3, 6))
    inner, y = keras.Model(x, L.Flatten()(x)), keras.Input((3, 4))
    return keras.Model(y, [L.Dense(2)(inner(L.Dense(6)(y))), L.Dense(2)(inner(L.Dense(6)(y)))])


def nested_under_a_mask():
    x = keras.Input((5,), dtype="int32")
    h = L.Embedding(6, 8, mask_zero=True)(x)
    return keras.Model(x, L.Dense(2)(L.LSTM(4)(keras.Sequential([L.Dense(6), L.Dense(5)])(h))))


def shared_reshape():
    x, layer = keras.Input((6,)), L.Reshape((2, 4))
    return keras.Model(x, [L.Dense(2)(layer(L.Dense(8)(x))), L.Dense(2)(layer(L.Dense(8)(x)))])


def shared_norms():
    """Called on an input first: what that needs must stay for the second call."""
    x = keras.Input((5, 6))
    norms = [L.BatchNormalization(), L.PReLU(shared_axes=[1]), L.GroupNormalization(-1), L.Conv1D(6, 2, groups=2)]
    ends = [L.Dense(2)(norm(y)) for norm in norms for y in (x, L.Dense(6)(L.Dense(7)(x)))]
    return keras.Model(x, ends)


def query_narrower_than_output():
    """The output is as wide as the query was: its own channels are another group."""
    x = keras.Input((5, 4))
    h = L.Dense(6)(x)
    wide = [L.MultiHeadAttention(2, 3)(h, h), L.MultiHeadAttention(2, 3, output_shape=6)(h, h)]
    return keras.Model(x, [L.Dense(2)(y) for y in [*wide, L.MultiHeadAttention(2, 3, output_shape=(2, 3))(h, h)]])


def gates():
    x = keras.Input((5, 4))
    h = L.Dense(6)(x)
    h = L.MultiHeadAttention(3, 2, value_dim=4, use_gate=True)(h, h)
    return keras.Model(x, L.Dense(2)(L.GroupQueryAttention(3, 4, 2, use_gate=True)(h, h)))


NETS = [sequential_in_sequential, nested_on_two_lengths, nested_on_two_widths, nested_under_a_mask, shared_reshape]
NETS += [shared_norms, query_narrower_than_output, gates]


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_smaller_net_is_the_old_one_with_zeroed_readers(net, share):
    model = net()
    small, removed = check(model, share, x=inputs_of(model, size=6))
    assert len(removed) >= 2
    assert small.count_params() < model.count_params()


def test_gates_go_with_their_heads_and_widths():
    found = {(group.channels, group.frozen) for group in channel_groups(gates()) if len(group.made_by) == 1}
    assert {(3, ""), (4, "")} <= found


def test_a_nested_model_keeps_its_open_sizes():
    model = nested_on_two_lengths()
    small, _ = check(model, x=inputs_of(model))
    inner = next(layer for layer in small.layers if isinstance(layer, keras.Model))
    assert inner.input_shape[1] is None


class OwnConstructor(keras.Model):
    def __init__(self, units=8, **kwargs):
        x = keras.Input((4,))
        super().__init__(x, L.Dense(2)(L.Dense(units)(x)), **kwargs)


class OwnStep(keras.Model):
    def train_step(self, data):
        return {"loss": 0.0}


@pytest.mark.parametrize("own", [True, False], ids=["constructor", "step"])
def test_a_subclass_with_a_constructor_of_its_own_becomes_functional(own):
    x = keras.Input((4,))
    model = OwnConstructor() if own else OwnStep(x, L.Dense(2)(L.Dense(8)(x)))
    small, _ = check(model)
    assert type(small).__name__ == ("Functional" if own else "OwnStep")


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4)

    def call(self, x, y=None):
        return self.dense(x if y is None else x * y)


def test_a_nested_model_with_several_arguments_is_refused():
    x = keras.Input((5,))
    model = keras.Model(x, L.Dense(2)(TwoInputs()(L.Dense(7)(x), y=L.Dense(7)(x))))
    with pytest.raises(TypeError, match="is called on 2 tensors, but was built on 1. Way out: let its `call` take"):
        channel_groups(model)


def test_a_quantized_layer_inside_another_is_refused():
    x = keras.Input((5, 4))
    h = L.Dense(8)(x)
    model = keras.Model(x, L.Dense(2)(L.MultiHeadAttention(2, 3, name="attention")(h, h)))
    model.get_layer("attention")._key_dense.quantize("int8")
    graph = trace_channels(model)
    with pytest.raises(TypeError, match="'attention' .* a quantized layer, or one with LoRA weights, is to be shrunk"):
        without(model, graph, np.empty(0, int))


def test_comparing_leaves_the_statistics_alone():
    """Keras's `CenterCrop` puts all that comes after it into training mode, unless `training` is given."""
    x = keras.Input((6, 6, 3))
    h = L.BatchNormalization(name="norm")(L.Conv2D(6, 1)(L.CenterCrop(4, 4)(x)))
    model = keras.Model(x, L.Dense(2)(L.Dropout(0.5)(h)))
    small = apply_plan(model, plan_channels(model, channels=0.5))
    np.testing.assert_array_equal(small.get_layer("norm").moving_mean, np.zeros(3))
