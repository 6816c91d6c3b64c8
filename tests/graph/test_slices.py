"""Slices and borders work on identities, and bounds move with what is left."""

import keras
import numpy as np
import pytest
from channel_oracle import check
from keras import layers as L
from keras import ops

from kdopt.graph import channel_groups, trace_channels

S = np.s_
KEYS = {  # key -> how many units of 7 channels may go
    "places": (S[:, 1:-1, ::2], 7),
    "one place": (S[:, 0], 7),
    "new axes": (S[:, None, ..., None, :], 7),
    "all": (S[..., 0:7], 7),
    "front": (S[..., :3], 7),
    "behind the front": (S[..., 3:], 7),
    "before the end": (S[..., :-2], 7),
    "end": (S[..., -2:], 7),
    "middle": (S[..., 2:-1], 7),
    "beyond": (S[..., -9:9], 7),
    "pairs": (S[..., ::2], 4),
    "seconds": (S[..., 1::2], 4),
    "pairs behind the front": (S[..., 3::2], 5),
    "pairs before the end": (S[..., :-2:2], 5),
    "one pair": (S[..., 1:3:2], 6),
    "pairs at the end": (S[..., -4::2], 5),
    "triples": (S[..., 1::3], 3),
    "backwards": (S[..., ::-1], 7),
    "part, backwards": (S[..., 4::-1], 7),
    "middle, backwards": (S[..., 5:1:-1], 7),
    "pairs, backwards": (S[..., 5:1:-2], 3),
    "one": (S[..., 2], 6),
    "last": (S[..., -1], 6),
}


def free_units(model, name="maker"):
    graph = trace_channels(model)
    kernel = model.get_layer(name).kernel
    slot = next(slot for slot in graph.labels.slots() if slot.variable is kernel and slot.role == "makes")
    return len(set(graph.labels.roots(slot.labels).tolist()) - set(graph.labels.frozen()))


def net(*middles):
    x = keras.Input((6, 6, 3))
    h = L.Conv2D(7, 3, name="maker")(x)
    ends = [L.Dense(2)(L.Flatten()(middle(h))) for middle in middles]
    return keras.Model(x, ends)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("kind", KEYS)
def test_bounds_move(kind, share):
    key, units = KEYS[kind]
    model = net(lambda h: h[key], lambda h: h)
    assert free_units(model) == units
    check(model, share)


def test_even_and_odd_places_go_in_pairs():
    model = net(lambda h: h[..., ::2], lambda h: h[..., 1::2])
    assert free_units(model) == 4
    check(model)


PADS = {
    "places": (((0, 0), (1, 2), (1, 0), (0, 0)), {}, 7),
    "channels": (((0, 0), (1, 1), (0, 0), (2, 3)), {}, 7),
    "channels, with a number": (((0, 0), (0, 0), (0, 0), (1, 0)), {"constant_values": 0.5}, 7),
    "places, mirrored": (((0, 0), (1, 2), (1, 0), (0, 0)), {"mode": "reflect"}, 7),
    "channels, mirrored": (((0, 0), (0, 0), (0, 0), (0, 1)), {"mode": "symmetric"}, 0),
}


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("kind", PADS)
def test_borders(kind, share):
    widths, arguments, units = PADS[kind]
    model = net(lambda h: ops.pad(h, widths, **arguments), lambda h: ops.relu(h))
    assert free_units(model) == units
    check(model, share)


def test_a_shortcut_padded_with_zeros():
    """The residual of the first networks for CIFAR-10: channels of the wider sum that have none before stay."""
    x = keras.Input((6, 6, 3))
    h = L.Conv2D(4, 3, name="maker")(x)
    wide = ops.pad(h[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    h = L.ReLU()(L.Add()([L.Conv2D(8, 3, strides=2, padding="same", name="wide")(h), wide]))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(h)))
    groups = {(group.channels, group.made_by): group.frozen for group in channel_groups(model)}
    assert groups[4, ("maker", "wide")] == ""
    assert groups[4, ("wide",)] == "'pad' puts numbers beside channels"
    small, _ = check(model)
    assert small.get_layer("wide").filters == small.get_layer("maker").filters + 4 == 6


def test_a_model_that_is_called_twice_and_a_slice_used_twice():
    a, x = keras.Input((7,)), keras.Input((5,))
    nested = keras.Model(a, L.Add()([L.Dense(3)(a[:, :4]), L.Dense(3)(a[:, 4:])]), name="nested")
    one, other = L.Dense(7, name="maker")(x), L.Dense(7)(x)
    model = keras.Model(x, L.Dense(2)(L.Concatenate()([nested(one), nested(other)])))
    assert free_units(model) == 7
    small, removed = check(model, 0.4)
    assert removed.size
    assert small.get_layer("maker").units < 7
