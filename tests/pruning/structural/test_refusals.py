"""Wrong arguments of plans are named, with the way out; layers of one's own make zeros of zeros."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.graph import channel_rule, resize_rule
from kdopt.pruning.structural import apply_plan, measure_round_to, plan_channels, prune_channels
from kdopt.quantization import quantize_aware


def chain():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2))
    h = L.Conv2D(8, 3, padding="same", name="a")(x)
    h = L.Conv2D(8, 3, padding="same", name="b")(h)
    return keras.Model(x, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(h)))


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"macs": 0.5, "exclude": "a"}, ValueError, r"`exclude` must be a list, e\.g\. \['a'\]"),
        ({"macs": 0.5, "exclude": []}, ValueError, "`exclude` is empty"),
        ({"macs": 0.5, "exclude": [int]}, ValueError, "in `exclude` selects none"),
        ({"latency": 0.5, "latency_of": 5}, TypeError, "`latency_of` must be a function"),
        ({"latency": 0.5, "latency_of": lambda m: None}, TypeError, "`latency_of` must return a number.*None"),
        ({"latency": 0.5, "latency_of": lambda m: "fast"}, TypeError, "`latency_of` must return a number.*fast"),
        ({"macs": 0.5, "normalize": "yes"}, TypeError, "`normalize` must be True or False; got 'yes'"),
        ({"macs": 0.5, "allow_normalized_axes": 1}, TypeError, "`allow_normalized_axes` must be True or False; got 1"),
    ],
)
def test_wrong_arguments(arguments, kind, told):
    with pytest.raises(kind, match=told):
        plan_channels(chain(), **arguments)


def test_other_wrong_calls():
    with pytest.raises(TypeError, match="`latency_of` must be a function"):
        measure_round_to("x")
    model = chain()
    plan = plan_channels(model, macs=0.5)
    (index, axis, _), *others = plan.removed
    for entry in ((index, axis, (999,)), (index, 9, (0,)), (99, 0, (0,))):
        with pytest.raises(ValueError, match="The plan is damaged"):
            apply_plan(model, replace(plan, removed=(entry, *others)))
    with pytest.raises(TypeError, match="`check` must be True or False; got 'no'"):
        apply_plan(model, plan, check="no")


def test_a_model_that_trains_with_rounding_is_shrunk_before():
    qat = quantize_aware(chain(), calibration=np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype("float32"))
    with pytest.raises(TypeError, match=r"shrink first and quantize then, or shrink `model\.strip\(\)`"):
        prune_channels(qat, macs=0.5)
    assert prune_channels(qat.strip(), macs=0.6)[1].macs[1] > 0


def own_dense(keeps, returned=None, argument="units"):
    class Own(L.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
            self.b = self.add_weight(shape=(self.units,), initializer="ones", name="b")

        def call(self, x):
            return keras.ops.matmul(x, self.w) + self.b

        def get_prunable_weights(self):
            return [self.w]

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    @channel_rule(Own, keeps_zeros=keeps)
    def rule(labels, layer, call):
        labels.reads(layer, layer.w, 0, call.x.at(-1))
        made = labels.makes(layer, layer.w, 1)
        labels.follows(layer, layer.b, 0, made)
        return call.x.given(call.shape, {-1: made}) if returned is None else call.x

    resize_rule(Own)(lambda layer, size, outputs: {argument: size(layer.w)[-1]})
    x = keras.Input((5,))
    return keras.Model(x, L.Dense(2, name="out")(Own(6, name="own")(L.Dense(4, name="a")(x))))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_layer_of_ones_own_makes_zeros_of_zero_weights(keeps):
    model = own_dense(keeps)
    layer = model.get_layer("own")
    alive = np.array([0, 0, 0, 1, 1, 1], "float32")
    layer.w.assign(layer.w * alive)
    layer.b.assign(np.array([0, 0, 1, 0, 1, 1], "float32"))  # the third channel is 1 everywhere: not zero
    small, plan = prune_channels(model, criterion="mask")
    assert (plan.dead, small.get_layer("own").units) == ((2, 4) if keeps else (0, 6))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5)
    row = next(layer for layer in plan.layers if layer.layer == "own")
    assert row.frozen.startswith("its kernel is zero, but it is no constant where it is read")


def test_rules_of_the_wrong_size():
    with pytest.raises(TypeError, match=r"channel_rule of Own returned a Flow of the shape \(None, 4\).*labels\.makes"):
        plan_channels(own_dense(False, "x"), parameters=0.5)
    with pytest.raises(TypeError, match="resize_rule of Own changes 'unit', which its get_config.. does not have"):
        prune_channels(own_dense(False, argument="unit"), parameters=0.5)


def test_constants_that_a_padding_reader_cannot_take_over_are_told():
    model = chain()
    model.get_layer("a").kernel.assign(model.get_layer("a").kernel * np.array([0, 0, 0, 1, 1, 1, 1, 1]))
    model.get_layer("a").bias.assign(np.ones(8))
    plan = plan_channels(model, criterion="mask")
    rows = {layer.layer: layer for layer in plan.layers}
    assert rows["a"].after == 8
    assert rows["a"].frozen.endswith("the reader cannot take that over (padding, no bias)")
    assert not rows["b"].frozen


def test_layers_that_go_as_a_whole_are_told():
    x = keras.Input((6,))
    h = L.Dense(8, name="stem")(x)
    branch = L.Dense(8, name="two")(L.Dense(5, name="one")(h))
    model = keras.Model(x, L.Dense(2, name="head")(L.Add()([h, branch])))
    model.get_layer("two").set_weights([np.zeros((5, 8)), np.zeros(8)])
    plan = plan_channels(model, criterion="mask", minimum=0)
    assert "layers that go as a whole: one, two" in plan.summary()
    assert "no channels are to go" not in plan.summary()
