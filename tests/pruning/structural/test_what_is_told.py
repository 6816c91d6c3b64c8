"""What a plan tells: rows, reasons, targets, and errors that say what is wrong."""

import inspect
import re

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core import measure
from kdopt.graph import channel_rule, resize_rule
from kdopt.pruning.structural import ChannelPlan, apply_plan, plan_channels, plot_channels, prune_channels
from kdopt.pruning.structural.apply import _difference


def chain(**options):
    """conv -> depthwise -> conv -> out"""
    keras.utils.set_random_seed(0)
    x = keras.Input((9, 9, 3))
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, name="first", **options)(x)))
    h = L.Conv2D(12, 1, name="last")(L.DepthwiseConv2D(3, name="dw")(h))
    return keras.Model(x, L.Dense(4, name="out")(L.GlobalAveragePooling2D()(h)))


def widths(plan):
    return {layer.layer: layer.after for layer in plan.layers}


def reasons(plan):
    return {layer.layer: layer.frozen for layer in plan.layers}


def test_an_excluded_depthwise_layer_keeps_its_channels_and_says_so():
    plan = plan_channels(chain(), parameters=0.85, exclude=["dw"])
    assert widths(plan)["first"] == 16
    assert widths(plan)["last"] < 12
    assert (reasons(plan)["first"], reasons(plan)["last"]) == ("'dw' is excluded", "")
    with pytest.raises(ValueError, match=r"`exclude` must be a list, e.g. \['dw'\]"):
        plan_channels(chain(), parameters=0.7, exclude="dw")


def test_layers_that_were_not_chosen_or_are_not_trained_say_so():
    assert reasons(plan_channels(chain(), parameters=0.8, layers=["last"]))["first"] == "'first' is not among `layers`"
    frozen = chain(trainable=False)
    plan = plan_channels(frozen, parameters=0.8)
    assert reasons(plan)["first"] == "'first' has a kernel that is not trained (trainable=False)"
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"No channel of .* may go: .*not trained \(trainable=False\)"):
        plan_channels(frozen, parameters=0.8)
    whole = plan_channels(chain(), parameters=0.9, round_to=12)
    assert reasons(whole)["last"] == "`round_to` or `minimum` keeps all"


class Mixer(L.Layer):
    """A kernel of its own."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.width))

    def call(self, x):
        return x @ self.kernel

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Scored(Mixer):
    def get_prunable_weights(self):
        return [self.kernel]


@channel_rule(Mixer)
def _mixer(labels, layer, call):
    labels.reads(layer, layer.kernel, 0, call.x.at(-1))
    return call.x.given(call.shape, {-1: labels.makes(layer, layer.kernel, 1)})


@resize_rule(Mixer)
def _mixer_size(layer, size, outputs):
    return {"width": size(layer.kernel)[-1]}


def test_a_layer_of_ones_own_without_scores_says_what_it_lacks():
    def made(kind):
        keras.utils.set_random_seed(0)
        x = keras.Input((5,))
        return keras.Model(x, L.Dense(2)(kind(8, name="own")(L.Dense(6, name="a")(x))))

    plan = plan_channels(made(Mixer), parameters=0.7)
    assert widths(plan)["own"] == 8
    assert reasons(plan)["own"].endswith("give the layer a method get_prunable_weights()")
    plan = plan_channels(made(Scored), parameters=0.5)
    assert widths(plan)["own"] < 8
    assert not reasons(plan)["own"]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_layer_of_ones_own_says_whether_zeros_stay_zeros(keeps):
    class Own(L.Layer):
        def call(self, x):
            return 2 * x

    channel_rule(Own, keeps_zeros=keeps)(lambda labels, layer, call: call.x)
    x = keras.Input((5,))
    model = keras.Model(x, L.Dense(2, name="out")(Own()(L.Dense(6, name="a")(x))))
    kernel = model.get_layer("a").kernel
    kernel.assign(kernel * np.array([0, 0, 1, 1, 1, 1]))
    small, plan = prune_channels(model, criterion="mask")
    assert plan.dead == (2 if keeps else 0)
    assert ("no channels are to go" in plan.summary()) is not keeps
    np.testing.assert_allclose(small(np.ones((1, 5))), model(np.ones((1, 5))), rtol=1e-5)


def test_rules_that_are_written_wrong():
    with pytest.raises(TypeError, match=r"Write @channel_rule\(MyLayer\)"):
        channel_rule("Mixer")
    with pytest.raises(TypeError, match=r"Write @resize_rule\(MyLayer\)"):
        resize_rule()

    class Wrong(L.Layer):
        def call(self, x):
            return x

    channel_rule(Wrong)(lambda labels, layer, call: None)
    x = keras.Input((5,))
    model = keras.Model(x, L.Dense(2)(Wrong()(L.Dense(6)(x))))
    with pytest.raises(TypeError, match="channel_rule of Wrong must return a Flow"):
        plan_channels(model, parameters=0.5)
    channel_rule(Wrong)(lambda labels, layer, call: call.x)
    resize_rule(Wrong)(lambda layer, size, outputs: None)
    with pytest.raises(TypeError, match="resize_rule of Wrong must return a dict"):
        prune_channels(model, parameters=0.5)


def test_rows_of_layers_with_several_kinds_of_channels():
    x = keras.Input((7, 16))
    h = L.Bidirectional(L.LSTM(6), name="both")(L.LSTM(8, return_sequences=True, name="lstm")(x))
    attended = L.MultiHeadAttention(4, 2, name="mha")(x, x)
    model = keras.Model(x, [L.Dense(3, name="one")(h), L.Dense(3, name="two")(attended)])
    plan = plan_channels(model, parameters=0.6, scope="layer")
    rows = [layer.layer for layer in plan.layers]
    assert len(set(rows)) == len(rows)
    assert {"lstm", "both: forward_lstm", "both: backward_lstm", "mha: query", "mha: key axis 1"} <= set(rows)
    found = {layer.layer: layer for layer in plan.layers}
    small = apply_plan(model, plan)
    assert (found["lstm"].before, found["lstm"].after) == (8, small.get_layer("lstm").units)
    assert found["both: forward_lstm"].after == small.get_layer("both").forward_layer.units
    told = [layer.macs for layer in plan.layers if layer.layer.startswith("mha") and layer.macs]
    assert len(told) == 1
    assert sum(layer.macs[0] for layer in plan.layers if layer.macs) <= plan.macs[0]


def test_the_target_is_told(tmp_path):
    model = chain()
    plan = plan_channels(model, latency=0.7, latency_of=lambda m: measure.parameters(m) / 1000)
    assert plan.target == ("latency", measure.parameters(model) / 1000, plan.parameters[1] / 1000)
    told = r"^latency: 0\.\d+ -> 0\.\d+ \(at most 0\.700 of it asked for, 0\.\d{3} left\)$"
    assert re.search(told, plan.summary(), re.M)
    assert plan.asked == pytest.approx(0.7 * measure.parameters(model) / 1000)
    assert ChannelPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert plan_channels(model, size_bytes=0.5).target[0] == "size_bytes"
    assert len(repr(plan)) < 150
    assert "print(plan.summary())" in repr(plan)
    with pytest.raises(ValueError, match=r"latency=1e-05 \(\d\.\d+e-06 of 0\.\d+\) cannot be reached"):
        plan_channels(model, latency=1e-5, latency_of=lambda m: measure.parameters(m) / 1000)
    with pytest.raises(ValueError, match=r"macs=50 .*A fraction is below 1\."):
        plan_channels(model, macs=50)


def test_a_latency_target_measures_the_model_that_is_made():
    """Branches that vanish and biases that take constants over are in what `latency_of` gets."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    h = L.Conv2D(12, 3, padding="same")(x)
    branch = L.BatchNormalization(name="last", gamma_initializer="zeros")(L.Conv2D(12, 3, padding="same")(h))
    model = keras.Model(x, L.Dense(3)(L.GlobalAveragePooling2D()(L.Add()([h, branch]))))
    plan = plan_channels(model, latency=0.9, latency_of=measure.parameters, minimum=0)
    assert plan.target[2] == plan.parameters[1] == measure.parameters(apply_plan(model, plan))


def test_arguments_of_the_wrong_kind(tmp_path):
    model = chain()
    with pytest.raises(TypeError, match="`model` must be a built keras.Model; got str"):
        prune_channels("model.keras", macs=0.5)
    with pytest.raises(TypeError, match="`plan` must be a ChannelPlan, e.g. ChannelPlan.load"):
        apply_plan(model, "plan.json")
    with pytest.raises(TypeError, match="`plan` must be a ChannelPlan; got tuple"):
        plot_channels(prune_channels(model, macs=0.9))
    with pytest.raises(TypeError, match="prune_channels has no argument 'mac'"):
        prune_channels(model, mac=0.5)
    with pytest.raises(ValueError, match="looks at the weights alone"):
        prune_channels(model, criterion="mask", data=3)
    (tmp_path / "plan.json").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 1000)
    with pytest.raises(ValueError, match="is no plan of this version") as caught:
        ChannelPlan.load(tmp_path / "plan.json")
    assert len(str(caught.value)) < 400
    told = inspect.signature(prune_channels).parameters
    assert [*inspect.signature(plan_channels).parameters, "check"] == list(told)


def test_numbers_that_are_none():
    assert np.isnan(_difference([np.array([np.nan, np.inf])], [np.array([np.inf, np.nan])]))
    assert _difference([np.array([1.0, np.nan])], [np.array([1.5, np.nan])]) == 0.5
    assert _difference([np.array([1.0, 2.0])], [np.array([1.0, np.nan])]) == np.inf
    assert _difference([np.array([np.nan]), np.array([2.0])], [np.array([np.nan]), np.array([3.0])]) == 0.5
