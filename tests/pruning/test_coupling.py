"""Channels that layers share are pruned as one, and can be removed without loss."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.graph.channels.coupled import coupled_sets
from kdopt.pruning import Channel, GradualPruning, Prunable, keep_zeros, prune
from kdopt.pruning.structural import prune_channels
from kdopt.schedules import Constant, Polynomial

X = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype("float32")
Y = np.arange(32) % 3
COUPLED = Channel(groups="coupled")


def make_model():
    """A residual, a depthwise layer, a normalization over two concatenated layers, and a recurrent layer."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2))
    trunk = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, padding="same", name="stem")(x)))
    h = layers.Conv2D(8, 1, name="into")(trunk)
    h = layers.BatchNormalization(name="after")(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h))
    h = layers.Conv2D(6, 3, padding="same", name="back")(layers.ReLU()(h))
    h = layers.BatchNormalization(name="sum")(layers.Add()([trunk, h]))
    h = layers.Concatenate()([h, layers.Conv2D(4, 3, padding="same", name="side")(h)])
    h = layers.ReLU()(layers.BatchNormalization(name="both")(h))
    h = layers.LSTM(7, name="lstm")(layers.Reshape((64, 10))(h))
    model = keras.Model(x, layers.Dense(3, name="out")(h))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(rng.normal(size=weight.shape) * 0.3)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def weights(model, layer, name="kernel"):
    return getattr(model.get_layer(layer), name).numpy()


def test_sets_by_hand():
    model = make_model()
    kernels = [w for w in model.weights if w.name.endswith("kernel")]
    sets, lonely = coupled_sets(model, kernels)
    found = [{part.variable.path for part in one.kernels} for one in sets]
    assert found == [
        {"stem/kernel", "back/kernel"},
        {"into/kernel", "depthwise/kernel"},
        {"side/kernel"},
        {"lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel"},
    ]
    assert [one.count for one in sets] == [6, 8, 4, 7]
    companions = [sorted(part.variable.path for part in one.companions) for one in sets]
    trunk = ["back/bias", "both/beta", "both/gamma", "norm/beta", "norm/gamma", "stem/bias", "sum/beta", "sum/gamma"]
    assert companions[0] == trunk
    assert companions[2] == ["both/beta", "both/gamma", "side/bias"]
    assert [list(lonely.values())] == [["output 'out' of the model"]]
    both = next(part for part in sets[0].companions if part.variable.path == "both/gamma")
    np.testing.assert_array_equal(both.channels, [0, 1, 2, 3, 4, 5, -1, -1, -1, -1])


def test_the_lowest_sums_over_all_makers_go():
    model = make_model()
    stem, back = weights(model, "stem"), weights(model, "back")
    scores = np.abs(stem).sum((0, 1, 2)) + np.abs(back).sum((0, 1, 2))
    sparse, report = prune(model, 0.5, pattern=COUPLED)
    gone = np.sort(np.argsort(scores)[:3])
    for layer, name in (("stem", "kernel"), ("back", "kernel"), ("stem", "bias"), ("norm", "gamma"), ("norm", "beta")):
        value = weights(sparse, layer, name)
        np.testing.assert_array_equal(np.flatnonzero(~value.reshape(-1, 6).any(0)), gone)
    zero = weights(sparse, "both", "gamma") == 0
    np.testing.assert_array_equal(np.flatnonzero(zero[:6]), gone)
    assert zero[6:].sum() == 2
    assert not (weights(sparse, "both", "gamma") == weights(model, "both", "gamma"))[zero].any()
    assert [row.layer for row in report.layers if row.reached is None] == ["out"]
    assert weights(model, "stem").all()


def test_gradual_pruning_then_removal_loses_nothing():
    model = make_model()
    callback = GradualPruning(Polynomial(0.6, end_step=12, frequency=3), pattern=COUPLED)
    with pytest.warns(UserWarning, match="output 'out' of the model"):
        model.fit(X, Y, batch_size=8, epochs=5, verbose=0, callbacks=[callback])
    before = model.predict(X, verbose=0)
    small, plan = prune_channels(model, criterion="mask")
    left = {layer.layer: (layer.before, layer.after) for layer in plan.layers}
    assert left["stem"] == left["back"] == (6, 2)
    assert left["into"] == (8, 3)
    assert left["side"] == (4, 2)
    assert left["lstm"] == (7, 3)
    np.testing.assert_allclose(small.predict(X, verbose=0), before, atol=1e-6)


def test_channels_that_are_gone_stay_gone_while_it_trains_on():
    """Also the normalizations behind a residual connection and over concatenated layers."""
    sparse, _ = prune(make_model(), 0.5, pattern=COUPLED)
    sparse.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with keep_zeros(sparse):
        sparse.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    for name in ("sum", "both"):
        assert np.count_nonzero(weights(sparse, name, "beta")) == {"sum": 3, "both": 5}[name]
    small, _ = prune_channels(sparse, criterion="mask")
    assert [small.get_layer(name).filters for name in ("stem", "into", "back", "side")] == [3, 4, 3, 2]
    np.testing.assert_allclose(small.predict(X, verbose=0), sparse.predict(X, verbose=0), atol=1e-6)


def test_global_allocation_keeps_a_channel_of_every_kernel():
    model = make_model()
    for name in ("into", "side"):
        model.get_layer(name).kernel.assign(weights(model, name) * 1e-3)
    model.get_layer("depthwise").kernel.assign(weights(model, "depthwise") * 1e-3)
    sparse, _ = prune(model, 0.7, pattern=COUPLED, allocation="global")
    small, _ = prune_channels(sparse, criterion="mask")
    assert {layer.name: layer.filters for layer in small.layers if hasattr(layer, "filters")}["side"] == 1
    np.testing.assert_allclose(small.predict(X, verbose=0), sparse.predict(X, verbose=0), atol=1e-6)


def test_one_kernel_keeps_a_channel_where_others_of_its_set_keep_all():
    """A depthwise layer over two concatenated layers ties them into one set, whose channels are apart."""
    x = keras.Input((6, 6, 2))
    h = layers.Concatenate()([layers.Conv2D(5, 1, name="weak")(x), layers.Conv2D(5, 1, name="strong")(x)])
    h = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, name="depthwise")(h))
    model = keras.Model(x, layers.Dense(2, name="out")(h))
    model.get_layer("weak").kernel.assign(weights(model, "weak") * 1e-3)
    depthwise = weights(model, "depthwise")
    depthwise[:, :, :5] *= 1e-3
    model.get_layer("depthwise").kernel.assign(depthwise)
    sparse, _ = prune(model, 0.5, pattern=COUPLED)
    assert np.count_nonzero(weights(sparse, "weak").any((0, 1, 2))) == 1
    assert weights(sparse, "strong").all()


def test_layers_that_were_not_chosen_hold_their_channels():
    model = make_model()
    with pytest.raises(ValueError, match="'stem': its channels are also those of 'back'"):
        prune(model, 0.5, pattern=COUPLED, layers=["stem", "into", "depthwise"])
    sparse, _ = prune(model, 0.5, pattern=COUPLED, layers=["into", "depthwise"])
    assert weights(sparse, "stem").all()
    assert np.count_nonzero(~weights(sparse, "into").any((0, 1, 2))) == 4


def test_what_has_no_whole_model_or_no_channel_is_refused():
    model = keras.Sequential([keras.Input((4,)), Prunable(layers.Dense(3), Constant(0.5), pattern="unstructured")])
    assert model.built
    with pytest.raises(ValueError, match="needs the whole model"):
        keras.Sequential([keras.Input((4,)), Prunable(layers.Dense(3), Constant(0.5), pattern=COUPLED)])
    with pytest.raises(ValueError, match="`groups`"):
        Channel(groups="all")
    with pytest.raises(ValueError, match="no meaning for 'dense': an output"):
        prune(keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")]), 0.5, pattern=COUPLED)
    assert Channel.from_config(COUPLED.get_config()).groups == "coupled"
