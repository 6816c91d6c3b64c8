"""Normalizations over groups of channels, and over all of them where that is allowed."""

import keras
import numpy as np
import pytest
from channel_oracle import check, disturbed
from keras import layers as L
from keras import ops
from this_cpu import convolves_channels_first

from kdopt.graph import channel_groups, trace_channels, without


def net(normalization, filters=32, data_format="channels_last"):
    """A residual of two convolutions, each normalized."""
    x = keras.Input((6, 6, 3) if data_format == "channels_last" else (3, 6, 6))
    arguments = {"padding": "same", "data_format": data_format}
    h = L.ReLU()(normalization(L.Conv2D(filters, 3, name="first", **arguments)(x)))
    h = L.Add()([h, normalization(L.Conv2D(filters, 3, name="second", **arguments)(h))])
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling2D(data_format=data_format)(h)))


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("groups", [2, 8, 16, 32])
def test_whole_groups_go(groups, share):
    model = net(lambda h: L.GroupNormalization(groups)(h))
    together = 32 // groups
    found = channel_groups(model)
    assert [(group.channels, group.frozen) for group in found[:1]] == [(groups, "")]
    assert all(len(places) == together for member in found[0].members for places in member.places)
    small, removed = check(model, share)
    assert removed.size
    assert small.get_layer("first").filters == 32 - together * removed.size
    norms = [layer for layer in small.layers if isinstance(layer, L.GroupNormalization)]
    assert [norm.groups for norm in norms] == [groups - removed.size] * 2


def test_groups_that_overlap_are_one():
    """Groups of 4 and of 6 channels meet in a residual: 12 go together."""
    norms = iter([L.GroupNormalization(6), L.GroupNormalization(4)])
    model = net(lambda h: next(norms)(h), filters=24)
    assert channel_groups(model)[0].channels == 2
    small, _ = check(model)
    assert small.get_layer("first").filters == 12


def test_a_group_with_a_channel_that_must_stay_stays():
    x = keras.Input((5, 3))
    h = L.Concatenate()([x, L.Dense(5, name="maker")(x)])
    model = keras.Model(x, L.Dense(2)(L.GroupNormalization(4)(h)))
    groups = {(group.channels, bool(group.frozen)) for group in channel_groups(model) if "maker" in group.made_by}
    assert groups == {(1, True), (2, False)}
    small, _ = check(model)
    assert small.get_layer("maker").units == 3


def test_groups_of_flattened_places():
    x = keras.Input((4, 4, 3))
    h = L.Flatten()(L.Conv2D(6, 3, name="maker")(x))
    check(keras.Model(x, L.Dense(2)(L.Reshape((2, 2, 6))(L.GroupNormalization(8)(h)))))


def test_groups_of_channels_that_come_first():
    if not convolves_channels_first():
        pytest.skip("TensorFlow has no convolution with the channels first on this CPU")
    model = net(lambda h: L.GroupNormalization(4, axis=1)(h), 8, "channels_first")
    assert channel_groups(model)[0].channels == 4
    small, _ = check(model)
    assert small.get_layer("first").filters == 4


MIXES = {
    "group": lambda h: L.GroupNormalization(1)(h),
    "softmax": lambda h: L.Softmax()(h),
    "softmax op": lambda h: ops.softmax(h),
    "mean": lambda h: h - ops.mean(h, axis=-1, keepdims=True),
    "deviation": lambda h: h / (ops.std(h, axis=-1, keepdims=True) + 1.0),
}


@pytest.mark.parametrize("kind", MIXES)
def test_what_mixes_channels_may_be_cut_on_demand(kind):
    x = keras.Input((4,))
    model = disturbed(keras.Model(x, L.Dense(2)(MIXES[kind](L.Dense(6, name="maker")(x)))))
    assert channel_groups(model)[0].frozen
    graph = trace_channels(model, allow_normalized_axes=True)
    assert channel_groups(model, allow_normalized_axes=True)[0].frozen == ""
    small = without(model, graph, graph.labels.slots()[0].labels[:2])
    assert small.get_layer("maker").units == 4
    kept = [value[..., 2:] if value.shape[-1] == 6 else value for value in model.get_weights()]
    kept[-2] = kept[-2][2:]
    sample, weights = np.random.default_rng(0).normal(size=(3, 4)).astype("float32"), iter(kept)
    h = sample @ next(weights) + next(weights)
    layer = MIXES[kind](keras.Input((4,)))._keras_history.operation
    if isinstance(layer, L.Layer) and layer.weights:
        layer.set_weights([next(weights), next(weights)])
    h = layer(h) if isinstance(layer, L.GroupNormalization) else MIXES[kind](ops.convert_to_tensor(h))
    np.testing.assert_allclose(small(sample), h @ next(weights) + next(weights), rtol=1e-4, atol=1e-5)


def test_sums_over_channels_stay():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(ops.sum(L.Dense(6)(x), axis=-1, keepdims=True)))
    assert channel_groups(model, allow_normalized_axes=True)[0].frozen == "'sum' sums over it"


def test_what_a_normalization_has_adapted_to_goes_into_the_smaller_model():
    norm = L.Normalization()
    norm.adapt(3 + 2 * np.random.default_rng(0).normal(size=(100, 4)))
    model = keras.Sequential([keras.Input((4,)), norm, L.Dense(6, name="wide"), L.Dense(2)])
    small, removed = check(model, 0.5)
    assert small.get_layer("wide").units == 6 - removed.size
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(small.layers[0](x), norm(x))
    assert np.abs(norm(x) - x).max() > 1
