"""Shapes that move sizes into the batch and back, or over open sizes."""

import keras
import numpy as np
import pytest
from channel_oracle import check
from keras import layers as L
from keras import ops

from kdopt.graph import channel_groups

X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")


def net(middle, filters=8):
    x = keras.Input((6, 6, 3))
    return keras.Model(x, L.Dense(2)(middle(L.Conv2D(filters, 3, name="maker")(x))))


def windows(h):
    """Partition into windows of 2 x 2 places and its reverse, as in a Swin transformer."""
    h = ops.transpose(ops.reshape(h, (-1, 2, 2, 2, 2, 8)), (0, 1, 3, 2, 4, 5))
    h = L.Dense(6, activation="relu", name="between")(ops.reshape(h, (-1, 4, 8)))
    h = L.Dense(8)(h)
    h = ops.transpose(ops.reshape(h, (-1, 2, 2, 2, 2, 8)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(h, (-1, 4, 4, 8))


def back(h):
    return ops.reshape(L.Dense(5, activation="relu", name="between")(ops.reshape(h, (-1, 8))), (-1, 16, 5))


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_places_move_into_the_batch(size, share):
    small, removed = check(net(lambda h: ops.reshape(h, (-1, size))), share, x=X)
    assert removed.size
    assert small.get_layer("maker").filters < 8


@pytest.mark.parametrize("middle", [windows, back])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_there_and_back(middle, share):
    small, _ = check(net(middle), share, x=X)
    assert small.get_layer("maker").filters < 8
    assert small.get_layer("between").units < net(middle).get_layer("between").units


def test_what_becomes_a_part_of_the_batch_stays():
    for target in ((-1, 1), (-1,)):
        groups = channel_groups(net(lambda h, t=target: ops.reshape(ops.reshape(h, t), (-1, 16))))
        assert "'reshape" in groups[0].frozen
        assert "along one axis" in groups[0].frozen


OPEN = {
    "over an open size": ((None, 4), lambda h: L.Reshape((6, -1))(h), 1),
    "before an open size": ((5, None, 4), lambda h: L.Reshape((6, -1, 5))(L.Permute((3, 2, 1))(h)), 1),
    "before an open size, in two": ((5, None, 4), lambda h: L.Reshape((2, 3, -1, 5))(L.Permute((3, 2, 1))(h)), 2),
    "before an open size, cut": ((5, None, 4), lambda h: L.Reshape((3, -1, 5))(L.Permute((3, 2, 1))(h)), 1),
    "not a divisor": ((None, 5, 4), lambda h: L.Reshape((-1, 7, 6))(h), 3),
}


@pytest.mark.parametrize("kind", OPEN)
def test_open_sizes(kind):
    """A Dense along the axis on which the channels would end: it is the same for every open size, or they stay."""
    shape, middle, axis = OPEN[kind]
    x = keras.Input(shape)
    h = middle(L.Dense(6, name="maker")(x))
    order = [other for other in range(1, len(h.shape)) if other != axis] + [axis]
    model = keras.Model(x, L.Dense(2)(L.Permute(order)(h)))
    groups = {group.made_by: group.frozen for group in channel_groups(model)}
    free = kind in ("before an open size", "before an open size, in two", "not a divisor")
    assert bool(groups["maker",]) != free
    for size in (7, 14):
        sample = np.random.default_rng(0).normal(size=(2, *[size if one is None else one for one in shape]))
        check(model, x=sample.astype("float32"))
