"""Gates that are learned: the oracle is gradient descent on the outputs' scales of a model made by hand."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core import measure
from kdopt.core.kernels import find_kernels
from kdopt.criteria import CRITERIA, Gates
from kdopt.pruning.structural import plan_channels, prune_channels

RNG = np.random.default_rng(0)


def task(count=256, features=6):
    x = RNG.normal(size=(count, features)).astype("float32")
    return x, (x[:, :3] @ np.array([[1.0], [-2.0], [0.5]], "float32"))


def planted(x, y):
    """A trained net; then of six hidden units the first two hear nothing but noise, and add it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(1, name="out")(L.Dense(6, activation="tanh", name="hidden")(inputs)))
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    model.fit(x, y, epochs=30, verbose=0)
    hidden, out = model.get_layer("hidden"), model.get_layer("out")
    kernel, read = hidden.kernel.numpy(), out.kernel.numpy()
    kernel[:, :2] = 0
    kernel[3:, :2] = 2.0
    read[:2] = 1.0
    hidden.kernel.assign(kernel)
    out.kernel.assign(read)
    return model


@pytest.fixture(scope="module")
def shared():
    """(model, x, y); the tests leave the model as it is."""
    x, y = task()
    return planted(x, y), x, y


def gates_of(model, data, **arguments):
    views = [view for view in find_kernels(model)[0] if view.name == "hidden"]
    (score,) = Gates(**arguments).scores(model, views, data)
    return score.sum(0)


def test_gates_of_channels_that_harm_close_first(shared):
    model, x, y = shared
    gates = gates_of(model, (x, y))
    assert set(np.argsort(gates)[:2]) == {0, 1}
    assert gates[:2].max() < gates[2:].min() - 0.1
    plan = plan_channels(model, channels=4, criterion="gates", data=(x, y))
    assert plan.removed[0][2] == (0, 1)


def test_the_steps_are_those_of_adam_on_exp_of_beta_over_n():
    """One batch, three epochs, beside a loop of its own over the formula, with numerical gradients."""
    x, y = task(32)
    model = planted(x, y)
    rate, penalty = 0.05, 0.3
    found = gates_of(model, (x, y), epochs=3, learning_rate=rate, penalty=penalty, batch_size=32)
    kernel, bias, read, shift = (weight.astype("float64") for weight in model.get_weights())

    def loss(beta):
        gate = np.exp(beta) / 6
        made = np.tanh(x @ (kernel * gate) + bias * gate) @ read + shift
        return np.mean((made - y) ** 2) + penalty * gate.mean()

    beta, first, second = np.full(6, np.log(6)), np.zeros(6), np.zeros(6)
    for step in range(1, 4):
        slope = np.array([(loss(beta + h) - loss(beta - h)) / 2e-6 for h in np.eye(6) * 1e-6])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        beta = beta - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-7)
    np.testing.assert_allclose(found, np.exp(beta) / 6, rtol=2e-4)


def test_without_steps_to_speak_of_all_gates_are_open_and_the_model_stays(shared):
    model, x, y = shared
    before = model.get_weights()
    np.testing.assert_allclose(gates_of(model, (x, y), learning_rate=1e-9), np.ones(6), rtol=1e-5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_penalty_closes_what_the_loss_does_not_hold_open(shared):
    model, x, y = shared
    assert gates_of(model, (x, y), penalty=2.0).mean() < gates_of(model, (x, y), penalty=0.0).mean()


def test_convolutions_normalization_and_half_precision():
    keras.utils.set_random_seed(0)
    for policy in ("float32", "mixed_float16"):
        inputs = keras.Input((8, 8, 2), dtype="float32")
        h = L.ReLU(dtype=policy)(L.BatchNormalization(dtype=policy)(L.Conv2D(6, 3, dtype=policy)(inputs)))
        h = L.Add(dtype=policy)([h, L.DepthwiseConv2D(3, padding="same", dtype=policy)(h)])
        model = keras.Model(inputs, L.Dense(3, dtype="float32")(L.GlobalAveragePooling2D(dtype=policy)(h)))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = (RNG.normal(size=(64, 8, 8, 2)).astype("float32"), RNG.integers(0, 3, 64))
        small, _ = prune_channels(model, macs=0.6, criterion="gates", data=data)
        assert measure.macs(small) <= 0.6 * measure.macs(model)


def test_configs_and_bad_arguments():
    gates = Gates(2, 0.1, 0.0, 8)
    assert Gates.from_config(gates.get_config()).get_config() == gates.get_config()
    assert isinstance(CRITERIA.get("gates"), Gates)
    for wrong in ({"epochs": 0}, {"learning_rate": 0}, {"penalty": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Gates(**wrong)
    x, y = task(8)
    uncompiled = keras.Sequential([keras.Input((6,)), L.Dense(1)])
    views = find_kernels(uncompiled)[0]
    with pytest.raises(ValueError, match="needs a loss: compile the model first"):
        gates.scores(uncompiled, views, (x, y))
