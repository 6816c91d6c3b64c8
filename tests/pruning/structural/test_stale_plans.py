"""Plans for other weights or models, and what a model carries beside its weights."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core.copying import copy_model
from kdopt.pruning.structural import apply_plan, plan_channels, prune_channels


def net(width=8):
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 3))
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same", name="stem")(x)))
    b = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same", name="in")(h)))
    b = L.BatchNormalization(name="gate")(L.Conv2D(width, 3, padding="same", name="back")(b))
    return keras.Model(x, L.Dense(3, name="out")(L.GlobalAveragePooling2D()(L.Add()([h, b]))))


def kill(model, *layers, count=3):
    for name in layers:
        layer = model.get_layer(name)
        for variable in layer.weights[:2]:
            value = variable.numpy()
            value[..., :count] = 0
            variable.assign(value)


def test_channels_that_came_back_to_life_are_not_removed():
    dead, alive = net(), net()
    kill(dead, "in")
    plan = plan_channels(dead, criterion="mask")
    assert plan.dead == 3
    with pytest.raises(ValueError, match="With 3 of the channels that go nothing was lost .* that holds for 0"):
        apply_plan(alive, plan)
    kill(alive, "in")
    apply_plan(alive, plan)


def test_a_branch_that_came_back_to_life_is_not_kept_in_silence():
    gone, alive = net(), net()
    kill(gone, "gate", count=8)
    plan = plan_channels(gone, criterion="mask", minimum=0)
    assert {layer.layer: layer.after for layer in plan.layers}["back"] == 0
    with pytest.raises(ValueError, match="Make a new plan for these weights"):
        apply_plan(alive, plan)


def test_a_plan_of_a_model_with_the_same_shapes_that_is_coupled_otherwise():
    def made(residual):
        keras.utils.set_random_seed(0)
        x = keras.Input((6,))
        h = L.Dense(6, name="a")(x)
        y = L.Dense(6, name="b")(h)
        return keras.Model(x, L.Dense(2)(L.Add()([h, y]) if residual else y))

    plan = plan_channels(made(False), channels=0.5)
    with pytest.raises(ValueError, match="here other channels of '[ab]' hang together"):
        apply_plan(made(True), plan)


@pytest.mark.parametrize("criterion", ["l1", "mask"])
@pytest.mark.parametrize("where", ["kernel", "moving_variance"])
def test_nan_weights_are_refused_whatever_the_criterion(criterion, where):
    model = net()
    weight = next(w for w in model.weights if w.name == where)
    weight.assign(weight * np.nan)
    with pytest.raises(ValueError, match=f"{where}' are NaN: training has diverged"):
        prune_channels(model, criterion=criterion, **({} if criterion == "mask" else {"macs": 0.5}))


@pytest.mark.parametrize(
    "loss", [pytest.param("lambda", marks=pytest.mark.slow), "class", pytest.param("dict", marks=pytest.mark.slow)]
)
def test_ones_own_loss_metric_and_schedule_need_not_be_registered(loss):
    def squares(true, predicted):
        return keras.ops.mean((true - predicted) ** 2)

    class Loss(keras.losses.Loss):
        def call(self, true, predicted):
            return squares(true, predicted)

    class Slower(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-3 / (1 + keras.ops.cast(step, "float32"))

        def get_config(self):
            return {}

    class Largest(keras.metrics.Mean):
        def update_state(self, true, predicted, sample_weight=None):
            return super().update_state(keras.ops.max(predicted))

    model = net()
    own = {"lambda": lambda t, p: squares(t, p), "class": Loss(), "dict": {"out": squares}}[loss]
    largest = Largest(name="largest")
    model.compile(keras.optimizers.Adam(Slower()), own, metrics=[squares, largest, "mae"])
    x, y = np.random.default_rng(0).normal(size=(8, 8, 8, 3)), np.ones((8, 3))
    model.fit(x, y, verbose=0)
    made = copy_model(model) if loss == "dict" else prune_channels(model, macs=0.7)[0]
    assert made.optimizer.built
    history = made.fit(x, y, verbose=0).history
    assert {"loss", "squares", "largest", "mae"} == set(history)
    assert made.optimizer is not model.optimizer
    assert int(made.optimizer.iterations) == 1
    assert isinstance(made.optimizer._learning_rate, Slower)
    held = [one for metric in made.metrics for one in (metric, *getattr(metric, "metrics", []))]
    assert not any(metric is largest for metric in held)
    assert any(isinstance(metric, Largest) for metric in held)
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("make", [prune_channels, copy_model])
def test_a_vocabulary_goes_along(make):
    x = keras.Input((4,), dtype="string")
    lookup = L.StringLookup()
    lookup.adapt(np.array(["a", "b", "c"]))
    h = L.Flatten()(L.Embedding(5, 6)(lookup(x)))
    model = keras.Model(x, L.Dense(2)(L.Dense(8, name="a")(h)))
    words = np.array([["a", "c", "zz", "b"]])
    if make is copy_model:
        np.testing.assert_allclose(make(model)(words), model(words), rtol=1e-6)
        return
    model.get_layer("a").kernel.assign(model.get_layer("a").kernel * np.array([0, 0, 1, 1, 1, 1, 1, 1]))
    with pytest.warns(UserWarning, match="not compared"):
        small, plan = make(model, criterion="mask", check=True)
    assert plan.dead == 2
    np.testing.assert_allclose(small(words), model(words), rtol=1e-5, atol=1e-6)


def test_open_sizes_are_tried_until_the_model_takes_one():
    x = keras.Input((None, None, 1))
    h = L.GlobalAveragePooling2D()(L.Conv2D(6, 70)(x))  # refuses 64 x 64
    small, _ = prune_channels(keras.Model(x, L.Dense(2)(h)), channels=0.5)
    assert small.layers[1].filters == 3


def test_layers_that_a_subclassed_model_does_not_call():
    class Auxiliary(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.out, self.head = L.Dense(8, name="a"), L.Dense(2), L.Dense(3)

        def build(self, shape):
            self.a.build(shape)
            self.out.build((None, 8))
            self.head.build((None, 8))

        def call(self, x):
            return self.out(self.a(x))

    model = Auxiliary()
    model(np.zeros((1, 5)))
    small, plan = prune_channels(model, channels=0.5)
    assert plan.parameters[0] == model.count_params()
    assert small.count_params() == 5 * 4 + 4 + 4 * 2 + 2
