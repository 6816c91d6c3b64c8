"""Residual branches of which nothing is left: the layers go, what they would have added stays."""

import keras
import numpy as np
import pytest
from channel_oracle import disturbed, outputs_with_zeroed_readers
from keras import layers as L

from kdopt.core import measure
from kdopt.graph import trace_channels, without
from kdopt.pruning.structural import apply_plan, plan_channels, prune_channels

X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")


def unit(x, layer, activation="relu"):
    x = L.BatchNormalization()(layer(x))
    return L.Activation(activation)(x) if activation else x


def plain(x, name):
    h = unit(x, L.Conv2D(6, 3, padding="same", name=f"{name}_in"))
    return unit(h, L.Conv2D(8, 3, padding="same", name=f"{name}_out"), None)


def bottleneck(x, name):
    h = unit(x, L.Conv2D(5, 1, use_bias=False, name=f"{name}_first"))
    h = unit(h, L.Conv2D(6, 3, padding="same", use_bias=False, name=f"{name}_in"))
    return unit(h, L.Conv2D(8, 1, use_bias=False, name=f"{name}_out"), None)


def inverted(x, name):
    h = unit(x, L.Conv2D(6, 1, name=f"{name}_in"))
    h = unit(h, L.DepthwiseConv2D(3, padding="same"))
    gate = L.Conv2D(6, 1, activation="sigmoid")(L.Conv2D(2, 1)(L.GlobalAveragePooling2D(keepdims=True)(h)))
    return unit(L.Multiply()([h, gate]), L.Conv2D(8, 1, name=f"{name}_out"), None)


def inside(x, name):
    """The branch as a model of its own."""
    layers = [keras.Input(x.shape[1:]), L.Conv2D(6, 1, activation="relu", name=f"{name}_in"), L.Conv2D(8, 1)]
    return keras.Sequential(layers, name=f"{name}_out")(x)


def net(branch, add=None):
    """Two blocks, of which the second can vanish."""
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((8, 8, 3))
    x = unit(x, L.Conv2D(8, 3, padding="same", name="stem"))
    for name in ("one", "two"):
        x = L.ReLU()((add or L.Add(name=f"{name}_sum"))([x, branch(x, name)]))
    return disturbed(keras.Model(inputs, L.Dense(4, name="head")(L.GlobalAveragePooling2D()(x))))


def roots_of(model, graph, name):
    kernel = next(layer for layer in model._flatten_layers() if layer.name == name).kernel
    return next(
        graph.labels.roots(s.labels) for s in graph.labels.slots() if s.variable is kernel and s.role == "makes"
    )


def names_of(model):
    return {layer.name for layer in model._flatten_layers()}


BRANCHES = {"plain": plain, "bottleneck": bottleneck, "inverted": inverted, "a model inside": inside}
ADDS = {
    "layer": None,
    "operation": lambda tensors: keras.ops.add(*tensors),
    "three": lambda tensors: L.Add()([tensors[0], *tensors]),
}


@pytest.mark.parametrize("add", ADDS)
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_vanishes(branch, add):
    model = net(BRANCHES[branch], ADDS[add])
    graph = trace_channels(model)
    removed = roots_of(model, graph, "two_in")
    expected = np.asarray(outputs_with_zeroed_readers(model, graph, removed, X))
    small = without(model, graph, removed)
    np.testing.assert_allclose(small(X, training=False), expected, atol=2e-6 * np.abs(expected).max())
    assert not [name for name in names_of(small) if name.startswith("two") and name != "two_sum"]
    assert {"one_in", "one_out", "stem", "head"} <= names_of(small)
    assert measure.parameters(small) < 0.8 * measure.parameters(model)


def test_what_adds_nothing_leaves_nothing():
    """Without a bias and a shift the sum goes, too."""
    model = net(lambda x, name: L.Conv2D(8, 1, use_bias=False)(L.Conv2D(6, 1, use_bias=False, name=f"{name}_in")(x)))
    graph = trace_channels(model)
    small = without(model, graph, roots_of(model, graph, "two_in"))
    assert "two_sum" not in names_of(small)
    assert not any(isinstance(layer, L.Rescaling) for layer in small.layers)


def test_a_part_of_a_concatenation_vanishes():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 3))
    parts = [L.Conv2D(4, 3, name="left")(inputs), L.Conv2D(6, 3, name="right")(inputs)]
    model = disturbed(keras.Model(inputs, L.Conv2D(2, 1)(L.Concatenate()([*parts, L.Conv2D(3, 3)(inputs)]))))
    graph = trace_channels(model)
    removed = roots_of(model, graph, "right")
    expected = np.asarray(outputs_with_zeroed_readers(model, graph, removed, X))
    small = without(model, graph, removed)
    np.testing.assert_allclose(small(X), expected, atol=2e-6 * np.abs(expected).max())
    assert "right" not in names_of(small)


def test_a_transformer_loses_a_perceptron_and_an_attention():
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((7, 8))
    x = L.Add()([x, L.MultiHeadAttention(2, 4, name="heads")(L.LayerNormalization()(x), L.LayerNormalization()(x))])
    h = L.Dense(8)(L.Dense(16, activation="gelu", name="wide")(L.LayerNormalization()(x)))
    model = disturbed(keras.Model(inputs, L.Dense(3)(L.Add()([x, L.Dropout(0.1)(h)]))))
    for name in ("wide", "heads"):
        layer = model.get_layer(name)
        parts = [layer] if name == "wide" else [layer._query_dense, layer._key_dense, layer._value_dense]
        for part in parts:
            part.kernel.assign(part.kernel * 0)
            part.bias.assign(part.bias * 0)
    small, plan = prune_channels(model, criterion="mask", minimum=0)
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype("float32")
    expected = model(x)
    np.testing.assert_allclose(small(x), expected, atol=2e-6 * np.abs(expected).max())
    assert not {"wide", "heads"} & names_of(small)
    assert plan.parameters[1] == measure.parameters(small)


def test_a_plan_lets_branches_vanish_only_when_asked_and_only_where_it_can():
    model = net(bottleneck)
    for name in ("two_in", "stem"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * 0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.beta.assign(layer.beta * 0)
            layer.moving_mean.assign(layer.moving_mean * 0)
    model.get_layer("stem").bias.assign(np.zeros(8))
    thin, plan = prune_channels(model, criterion="mask")
    assert thin.get_layer("two_in").filters == 1
    small, plan = prune_channels(model, criterion="mask", minimum=0)
    np.testing.assert_allclose(small(X), model(X), atol=1e-6)
    widths = {layer.layer: layer.after for layer in plan.layers}
    assert [widths[f"two_{part}"] for part in ("first", "in", "out")] == [0, 0, 0]
    assert widths["stem"] == 8  # its channels are those of the other block, which are not zero
    assert plan.macs == (measure.macs(model), measure.macs(small))
    assert plan.parameters == (measure.parameters(model), measure.parameters(small))
    assert "two_in" in plan.summary()


def test_a_target_counts_what_vanishes():
    model = net(plain)
    for target in ("macs", "parameters"):
        plan = plan_channels(model, **{target: 0.3}, minimum=0, normalize=False)
        small = apply_plan(model, plan)
        assert plan.macs == (measure.macs(model), measure.macs(small))
        assert plan.parameters == (measure.parameters(model), measure.parameters(small))
        assert getattr(measure, target)(small) <= 0.3 * getattr(measure, target)(model)


def test_a_chain_cannot_vanish():
    keras.utils.set_random_seed(5)
    layers = [L.Conv2D(6, 3, name="a"), L.Conv2D(4, 3), L.Flatten(), L.Dense(2, name="end")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    graph = trace_channels(model)
    with pytest.raises(ValueError, match="Not all of these channels can go: 'end' would be left with nothing to read"):
        without(model, graph, roots_of(model, graph, "a"))
    kernel = model.get_layer("a").kernel
    kernel.assign(kernel * 0)
    small, _ = prune_channels(model, criterion="mask", minimum=0)
    assert small.get_layer("a").filters == 1


def test_a_gate_that_would_be_left_alone_is_refused():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 1)(inputs)
    gate = L.Conv2D(6, 1)(L.Conv2D(4, 1, name="gate")(inputs))
    model = disturbed(keras.Model(inputs, L.Conv2D(2, 1)(L.Multiply(name="product")([x, gate]))))
    graph = trace_channels(model)
    with pytest.raises(ValueError, match="'product' would be left with nothing to read"):
        without(model, graph, roots_of(model, graph, "gate"))


def test_trainable_flags_and_the_compilation_stay_when_layers_go():
    model = net(plain)
    model.compile("sgd", "mse")
    model.get_layer("one_in").trainable = False
    graph = trace_channels(model)
    small = without(model, graph, roots_of(model, graph, "two_in"))
    assert {layer.name for layer in small.layers if not layer.trainable} == {"one_in"}
    assert small.loss == "mse"
    model.trainable = False
    small = without(model, graph, roots_of(model, graph, "two_in"))
    assert not small.trainable_variables


def test_what_is_left_saves_trains_and_is_shrunk_again(tmp_path):
    model = net(bottleneck)
    graph = trace_channels(model)
    small = without(model, graph, roots_of(model, graph, "two_in"))
    small.save(tmp_path / "small.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "small.keras")(X), small(X))
    small.compile("adam", "mse")
    small.fit(X, np.zeros((3, 4)), verbose=0)
    again, _ = prune_channels(small, channels=0.6)
    assert measure.parameters(again) < measure.parameters(small)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_branch_that_adds_a_constant_goes_whatever_is_inside(branch, shift):
    """The usual way in which a branch dies: its last gamma is zero, its kernels are not."""
    model = net(BRANCHES[branch])
    if branch == "a model inside":
        last = model.get_layer("two_out").layers[-1]
        last.kernel.assign(last.kernel * 0)
        last.bias.assign(np.full(8, shift))
    else:
        norm = model.get_layer("two_out")._outbound_nodes[0].operation
        norm.gamma.assign(np.zeros(8))
        norm.beta.assign(np.full(8, shift))
    small, plan = prune_channels(model, criterion="mask", minimum=0)
    np.testing.assert_allclose(small(X), model(X), atol=1e-6)
    assert not [name for name in names_of(small) if name.startswith("two") and name != "two_sum"]
    assert any(isinstance(layer, L.Rescaling) for layer in small.layers) == bool(shift)
    assert plan.branches
    assert plan.macs == (measure.macs(model), measure.macs(small))
    assert plan.parameters == (measure.parameters(model), measure.parameters(small))
    assert {layer.layer: layer.after for layer in plan.layers}["stem"] == 8
    again = apply_plan(model, plan)
    np.testing.assert_array_equal(again(X), small(X))
    thick, plan = prune_channels(model, criterion="mask")
    assert "two_in" in names_of(thick)


def test_constants_that_meet_only_each_other_stay():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 3))
    h = L.Add()([L.Conv2D(4, 1, name="one")(inputs), L.Conv2D(4, 1, name="other")(inputs)])
    model = disturbed(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()([h, L.Conv2D(4, 1)(inputs)])))))
    for name in ("one", "other"):
        layer = model.get_layer(name)
        layer.kernel.assign(layer.kernel * 0)
    small, _ = prune_channels(model, criterion="mask", minimum=0)
    np.testing.assert_allclose(small(X), model(X), atol=1e-6)
