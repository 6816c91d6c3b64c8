"""Plans that meet their targets, and smaller models that are the old ones without the channels."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core import measure
from kdopt.pruning import Prunable, prune
from kdopt.pruning.structural import ChannelPlan, ReachedError, apply_plan, plan_channels, plot_channels, prune_channels

RNG = np.random.default_rng(0)


def net(activation="softmax"):
    """Two residual blocks of different widths, one with a depthwise layer."""
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 3))
    h = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(16, 3, padding="same", name="stem")(x)))
    h = L.Add()(
        [h, L.Conv2D(16, 1, name="project")(L.Conv2D(24, 3, padding="same", activation="relu", name="wide")(h))]
    )
    h = L.Conv2D(20, 1, strides=2, activation="relu", name="down")(h)
    h = L.Add()([h, L.DepthwiseConv2D(3, padding="same", name="depthwise")(h)])
    model = keras.Model(x, L.Dense(5, activation=activation, name="out")(L.GlobalAveragePooling2D()(h)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("target", ["channels", "parameters", "macs", "size_bytes"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_target_is_met_and_used(target, scope):
    model = net()
    small, plan = prune_channels(model, **{target: 0.5}, scope=scope)
    cost = {
        "channels": lambda m: sum(w.shape[-1] for w in m.weights if w.name == "kernel" and w.shape[-1] != 5),
        "parameters": measure.parameters,
        "macs": measure.macs,
        "size_bytes": measure.size_bytes,
    }[target]
    share = cost(small) / cost(model)
    assert 0.42 < share <= 0.5 if target != "channels" else share <= 0.55
    assert plan.parameters == (measure.parameters(model), measure.parameters(small))
    assert plan.macs == (measure.macs(model), measure.macs(small))
    widths = {layer.layer: (layer.before, layer.after) for layer in plan.layers}
    for name in ("stem", "wide", "project", "down", "out"):
        weights = small.get_layer(name).kernel
        assert widths[name] == (model.get_layer(name).kernel.shape[-1], weights.shape[-1])
    assert widths["stem"] == widths["project"]
    assert widths["out"] == (5, 5)


def test_an_absolute_target_and_what_can_be_reached():
    model = net()
    small, _ = prune_channels(model, parameters=2000)
    assert 1500 < measure.parameters(small) <= 2000
    with pytest.raises(
        ReachedError, match=r"macs=0.001 .* cannot be reached: with all channels gone that may go, .*out"
    ):
        plan_channels(model, macs=0.001)


def test_the_weakest_go_first():
    """Kernels of known size: channel i of each layer is i times as large as the first one."""
    model = net()
    for name in ("stem", "wide", "project", "down"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.ones(kernel.shape) * np.arange(1, kernel.shape[-1] + 1))
    plan = plan_channels(model, channels=0.5, scope="layer")
    for _, _, places in plan.removed:
        assert places == tuple(range(len(places)))
    # Globally every group is compared by its own mean: width 24 loses as much of itself as width 16.
    widths = {layer.layer: layer.after / layer.before for layer in plan_channels(model, channels=0.5).layers}
    assert widths["wide"] == pytest.approx(widths["stem"], abs=0.05)


def test_rounding_and_the_least_width():
    small, plan = prune_channels(net(), macs=0.4, round_to=4, minimum=6)
    assert {layer.after % 4 for layer in plan.layers if layer.layer != "out"} == {0}
    assert min(layer.after for layer in plan.layers if layer.layer != "out") >= 8
    assert small.get_layer("stem").filters % 4 == 0


@pytest.mark.parametrize("criterion", ["l2", "fpgm", "lamp", "random", "taylor", "fisher", "gradient_norm"])
def test_every_criterion_ranks(criterion):
    model = net()
    data = (RNG.normal(size=(32, 8, 8, 3)).astype("float32"), RNG.integers(0, 5, 32))
    needs = {} if criterion in ("l2", "fpgm", "lamp", "random") else {"data": data}
    small, _ = prune_channels(model, macs=0.6, criterion=criterion, **needs)
    assert measure.macs(small) <= 0.6 * measure.macs(model)


def test_scales_of_batch_normalization_rank():
    x = keras.Input((6,))
    h = L.ReLU()(L.BatchNormalization(name="norm")(L.Dense(4, name="a")(x)))
    model = keras.Model(x, L.Dense(2, name="out")(h))
    model.get_layer("norm").gamma.assign([1.0, -0.1, 0.5, 0.2])
    plan = plan_channels(model, channels=0.5, criterion="bn_scale", layers=["a"])
    assert plan.removed == ((0, 1, (1, 3)),)


def test_channels_without_a_scale_stay_and_coupled_ones_have_that_of_the_others():
    x = keras.Input((6,))
    trunk = L.BatchNormalization(name="norm")(L.Dense(4, name="a")(x))
    h = L.Add()([trunk, L.Dense(4, name="bare")(L.Dense(3, name="alone")(trunk))])
    model = keras.Model(x, L.Dense(2, name="out")(h))
    model.get_layer("norm").gamma.assign([1.0, -0.1, 0.5, 0.2])
    with pytest.raises(ValueError, match="No channel .*BNScale has no score for 'alone'"):
        plan_channels(model, channels=0.5, criterion="bn_scale", layers=["alone"])
    plan = plan_channels(model, channels=0.5, criterion="bn_scale")
    assert [(layer.layer, layer.before, layer.after) for layer in plan.layers] == [
        ("a", 4, 2),
        ("alone", 3, 3),
        ("bare", 4, 2),
        ("out", 2, 2),
    ]
    assert plan.removed[0] == (0, 1, (1, 3))
    assert plan.layers[1].frozen == "BNScale has no score for 'alone': no BatchNormalization alone follows it"


def test_layers_and_exclusions():
    model = net()
    _, plan = prune_channels(model, macs=0.8, layers=["wide"])
    assert [layer.layer for layer in plan.layers if layer.after < layer.before] == ["wide"]
    _, plan = prune_channels(model, macs=0.6, exclude=["stem", "project"])
    assert {layer.layer for layer in plan.layers if layer.after < layer.before} == {"wide", "down"}


def test_a_plan_goes_through_a_file_and_knows_its_model(tmp_path):
    model = net()
    plan = plan_channels(model, macs=0.5)
    path = plan.save(tmp_path / "plan.json")
    assert ChannelPlan.load(path) == plan
    x = RNG.normal(size=(3, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(apply_plan(model, plan)(x), apply_plan(model, ChannelPlan.load(path))(x))
    other = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    with pytest.raises(ValueError, match="made for another model than"):
        apply_plan(other, plan)
    path.write_text(json.dumps({"removed": []}))
    with pytest.raises(ValueError, match="is no plan of this version"):
        ChannelPlan.load(path)


def test_channels_that_training_made_zero_are_lost_without_loss():
    """A dead channel's kernel, bias, gamma and beta are zero, so is what it gives: nothing changes."""
    model = net()
    sparse, _ = prune(model, 0.5, "l2", "channel", layers=["wide", "down"])
    # The depthwise layer's bias would make a constant of a dead channel; that of `down` is dead with it.
    small, plan = prune_channels(sparse, criterion="mask")
    x = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(small(x), sparse(x), atol=1e-6)
    widths = {layer.layer: layer.after for layer in plan.layers}
    assert (widths["wide"], widths["stem"], widths["down"]) == (12, 16, 10)


def test_latency_is_what_the_function_says():
    calls = []

    def latency_of(model):
        calls.append(model)
        return measure.parameters(model) / 1000

    small, _ = prune_channels(net(), latency=0.7, latency_of=latency_of)
    assert measure.parameters(small) <= 0.7 * measure.parameters(net())
    assert len(calls) < 15


def test_the_smaller_model_is_compiled_trains_and_the_old_one_is_left_alone():
    model = net()
    before = [weight.numpy() for weight in model.weights]
    small, _ = prune_channels(model, macs=0.5)
    data = RNG.normal(size=(16, 8, 8, 3)), RNG.integers(0, 5, 16)
    assert "accuracy" in small.fit(*data, verbose=0).history
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_normalized_axes_on_demand_are_told():
    x = keras.Input((6, 4))
    model = keras.Model(x, L.Dense(2)(L.LayerNormalization()(L.Dense(8, name="a")(x))))
    with pytest.raises(ValueError, match="No channel of .* may go: .*normalizes over it"):
        plan_channels(model, channels=0.5)
    with pytest.warns(UserWarning, match="with normalized channels gone, outputs differ by"):
        small, _ = prune_channels(model, channels=0.5, allow_normalized_axes=True)
    assert small.get_layer("a").units == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give one target of channels, parameters, macs, size_bytes, latency"),
        ({"macs": 0.5, "channels": 0.5}, "Give one target"),
        ({"macs": 0}, r"`macs` must be a fraction in \(0, 1\), or a number of 1 or more; got 0"),
        ({"macs": True}, "`macs` must be a fraction"),
        ({"latency": 0.5}, "`latency` and `latency_of`"),
        ({"macs": 0.5, "criterion": "mask"}, "a target has no meaning"),
        ({"macs": 0.5, "criterion": "tailor"}, "Did you mean"),
        ({"macs": 0.5, "scope": "all"}, "`scope` must be one of"),
        ({"macs": 0.5, "round_to": 0}, "`round_to` must be an integer >= 1"),
        ({"macs": 0.5, "layers": ["stm"]}, "Did you mean 'stem'"),
        ({"macs": 0.5, "exclude": ["stem", "wide", "project", "down"]}, "may go"),
        ({"macs": 0.5, "criterion": "taylor"}, "needs"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_channels(net(), **arguments)


def test_bad_models():
    model = net()
    model.get_layer("wide").kernel.assign(np.full((3, 3, 16, 24), np.nan))
    with pytest.raises(ValueError, match="'wide/kernel' are NaN"):
        plan_channels(model, macs=0.5)
    wrapped = keras.Sequential([keras.Input((4,)), Prunable(L.Dense(3), 0.5), L.Dense(2)])
    with pytest.raises(ValueError, match=r"take them off first, with `kdopt.pruning.strip`"):
        plan_channels(wrapped, macs=0.5)


def test_a_plan_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plan = plan_channels(net(), macs=0.5)
    figure = plot_channels(plan)
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [layer.before for layer in plan.layers] + [layer.after for layer in plan.layers]
    assert [label.get_text() for label in axes.get_yticklabels()] == [layer.layer for layer in plan.layers]
    figure.savefig(tmp_path / "plan.png")


def test_isomorphic_groups_are_ranked_together_and_every_kind_loses_the_same_share():
    """Two hidden layers alike, whose weights differ in size, beside a gated one."""
    x = keras.Input((8,))
    h = x
    for name in ("small", "large"):
        h = L.Add()([x, L.Dense(8)(L.Dense(20, name=name)(h))])
    gated = L.Multiply()([L.Dense(20, name="value")(h), L.Dense(20, name="gate")(h)])
    model = keras.Model(x, L.Dense(3, name="out")(gated))
    for name, low, high in (("small", 1, 2), ("large", 5, 6), ("value", 1, 2), ("gate", 1, 2)):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.ones(kernel.shape) * np.linspace(low, high, 20))
    widths = {}
    for scope in ("isomorphic", "layer", "global"):
        plan = plan_channels(model, channels=0.5, scope=scope, normalize=None if scope != "global" else False)
        widths[scope] = {layer.layer: layer.after for layer in plan.layers}
    assert [widths["isomorphic"][name] for name in ("small", "large", "value", "gate")] == [1, 19, 10, 10]
    assert [widths["layer"][name] for name in ("small", "large", "value", "gate")] == [10, 10, 10, 10]
    assert widths["global"]["large"] == 20
    assert widths["global"]["value"] < 10


def test_channels_of_gradients_are_compared_by_their_layers_means():
    """A layer whose gradients are small everywhere keeps its share."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    small = L.Rescaling(1e-3)(L.Dense(2)(L.Dense(12, activation="tanh", name="first")(x)))
    model = keras.Model(x, L.Add()([small, L.Dense(2)(L.Dense(12, activation="tanh", name="second")(x))]))
    model.compile("sgd", "mse")
    data = (RNG.normal(size=(64, 6)).astype("float32"), RNG.normal(size=(64, 2)).astype("float32"))
    plan = plan_channels(model, channels=0.5, criterion="taylor", data=data)
    widths = {layer.layer: layer.after for layer in plan.layers}
    assert (widths["first"], widths["second"]) == pytest.approx((6, 6), abs=2)
    plan = plan_channels(model, channels=0.5, criterion="taylor", data=data, normalize=False)
    assert {layer.layer: layer.after for layer in plan.layers}["first"] == 1
