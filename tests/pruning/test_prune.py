"""Pruning without training: against NumPy, and what it refuses."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.pruning import Budget, Threshold, prune

RANDOM = np.random.default_rng(0)


def net():
    """A residual net with a nested head; the head's layer shares its name with nothing."""
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 3, padding="same", name="conv")(x)
    h = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    h = layers.Add()([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h)])
    head = keras.Sequential([keras.Input((8,)), layers.Dense(16, name="hidden"), layers.Dense(4, name="logits")])
    return keras.Model(x, head(layers.GlobalAveragePooling2D()(h)))


SIZES = {"conv": 216, "depthwise": 72, "hidden": 128, "logits": 64}


def test_a_copy_is_pruned_and_the_report_says_how():
    model = net()
    model.compile(keras.optimizers.Adam(0.125), "mse")
    before = model.get_weights()
    sparse, report = prune(model, 0.75)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    kernel = before[0]
    cut = np.sort(np.abs(kernel), axis=None)[161]
    np.testing.assert_array_equal(sparse.get_layer("conv").kernel.numpy(), np.where(np.abs(kernel) > cut, kernel, 0))
    assert {layer.layer: (layer.weights, layer.zeros) for layer in report.layers} == {
        name: (size, round(0.75 * size)) for name, size in SIZES.items()
    }
    assert (report.asked, report.reached) == (0.75, 0.75)
    assert report.parameters == sum(weight.size for weight in before)
    assert report.nonzero == sum(np.count_nonzero(weight) for weight in sparse.get_weights())
    assert "sparsity of the kernels 0.7500 (asked: 0.7500)" in str(report)
    assert float(sparse.optimizer.learning_rate.numpy()) == 0.125
    assert sparse.optimizer is not model.optimizer


class Subclassed(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = layers.Dense(units, name="inner")

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {"units": self.units, **super().get_config()}


class Closed(Subclassed):
    def __init__(self):
        super().__init__(4)

    def get_config(self):
        raise NotImplementedError("nothing known")


def test_subclassed_models():
    model = Subclassed()
    model(np.ones((1, 6), "float32"))
    sparse, report = prune(model, 0.5)
    assert np.count_nonzero(sparse.inner.kernel.numpy()) == 12
    assert [layer.layer for layer in report.layers] == ["inner"]
    closed = Closed()
    closed(np.ones((1, 6), "float32"))
    with pytest.raises(ValueError, match=r"\(Closed\) cannot be made again from its config.*get_config"):
        prune(closed, 0.5)


def test_threshold_is_the_missions_formula():
    model = net()
    sparse, report = prune(model, threshold=0.1)
    for own, other in zip(model.trainable_variables, sparse.trainable_variables, strict=True):
        value = own.numpy()
        wanted = np.where(np.abs(value) > 0.1, value, 0) if "kernel" in own.path else value
        np.testing.assert_array_equal(other.numpy(), wanted)
    assert report.asked is None


@pytest.mark.parametrize("allocation", ["uniform", "global", "erdos_renyi"])
def test_budgets_are_met_and_used(allocation):
    model = net()
    fixed = sum(np.count_nonzero(w) for w in model.get_weights()) - sum(SIZES.values())
    sparse, report = prune(model, budget=Budget(parameters=fixed + 100), allocation=allocation)
    assert fixed + 100 - 4 <= report.nonzero <= fixed + 100
    sparse, _ = prune(model, budget=Budget(size_bytes=4 * (fixed + 200)), allocation=allocation)
    assert fixed + 200 - 4 <= sum(np.count_nonzero(w) for w in sparse.get_weights()) <= fixed + 200


def test_a_budget_of_macs():
    """Every weight of the convolutions is used at 36 places, of the dense layers once."""
    sparse, _ = prune(net(), budget=Budget(macs=3000), allocation="global")
    left = {
        name: np.count_nonzero(next(layer for layer in sparse._flatten_layers() if layer.name == name).kernel.numpy())
        for name in SIZES
    }
    macs = 36 * (left["conv"] + left["depthwise"]) + left["hidden"] + left["logits"]
    assert 3000 - 37 <= macs <= 3000


def test_a_budget_that_cannot_be_met_says_the_smallest():
    model = net()
    fixed = sum(np.count_nonzero(w) for w in model.get_weights()) - sum(SIZES.values())
    with pytest.raises(ValueError, match=f"cannot be met: with one unit left in every kernel, {fixed + 4} are left"):
        prune(model, budget=Budget(parameters=2))
    with pytest.raises(ValueError, match="takes one of parameters, size_bytes and macs; got none"):
        Budget()
    with pytest.raises(ValueError, match="`macs` must be an integer >= 1; got 0.5"):
        Budget(macs=0.5)


def test_bad_arguments_change_nothing():
    model = net()
    before = model.get_weights()
    for arguments, error, message in (
        ({}, ValueError, "Say how much to prune by one of .* got none of them"),
        ({"sparsity": 0.5, "threshold": 0.1}, ValueError, "got sparsity, threshold"),
        ({"sparsity": 0.5, "allocation": {"conv": 0.5}}, ValueError, "got sparsity, allocation"),
        ({"sparsity": 1.0}, ValueError, r"`sparsity` must be a fraction in \[0, 1\)"),
        ({"sparsity": 0.5, "criterion": "l3"}, ValueError, "Unknown criterion 'l3'"),
        ({"sparsity": 0.5, "pattern": "chanel"}, ValueError, "Did you mean 'channel'"),
        (
            {"sparsity": 0.5, "layers": ["cnv"]},
            ValueError,
            "no layer 'cnv' with a prunable kernel. Did you mean 'conv'",
        ),
        ({"sparsity": 0.5, "criterion": "wanda"}, ValueError, "data"),
        ({"budget": 100}, TypeError, "`budget` must be a Budget"),
        ({"sparsity": 0.8, "pattern": "n_m", "layers": ["hidden"]}, ValueError, "reaches a sparsity of 0.5 at most"),
    ):
        with pytest.raises(error, match=message):
            prune(model, **arguments)
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match="216 of 216 pruning scores of 'conv' are NaN or infinite"):
        prune(model, allocation=Threshold(0.1))
    for one, other in zip(before[1:], model.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_criteria_with_data():
    model = net()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = RANDOM.normal(size=(16, 6, 6, 3)).astype("float32"), RANDOM.integers(0, 4, 16)
    for criterion, data in (("taylor", (x, y)), ("wanda", x), ("gradient_norm", (x, y))):
        _, report = prune(model, 0.5, criterion, data=data, pattern="channel", layers=["conv", "hidden"])
        assert report.reached == 0.5


def test_a_budget_that_is_met_exactly_loses_nothing_more():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, use_bias=False)])
    _, report = prune(model, budget=Budget(parameters=48))
    assert report.nonzero == 48


def test_macs_of_a_layer_with_two_kernels_are_shared_out():
    """A separable convolution 4 -> 8 on 6 x 6: 36 * (9 * 4 + 4 * 8) multiply-accumulates for its 68 weights."""
    x = keras.Input((6, 6, 4))
    model = keras.Model(x, keras.layers.SeparableConv2D(8, 3, padding="same", use_bias=False)(x))
    _, report = prune(model, budget=Budget(macs=36 * 34))
    assert report.nonzero == 34
