"""A function that runs once after each real update, and what an optimizer keeps of a Variable."""

import itertools

import keras
import numpy as np
import pytest

from kdopt.core.live import Live
from kdopt.core.optimizers import slots

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")


def make_model(optimizer, **options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    model.compile(optimizer, "mse", **options)
    return model


def fit(model, epochs=2):
    """4 batches an epoch."""
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


SETTINGS = {
    "plain": ({}, {}, 8),
    "jit_compile": ({}, {"jit_compile": True}, 8),
    "steps_per_execution": ({}, {"steps_per_execution": 4}, 8),
    "accumulation": ({"gradient_accumulation_steps": 4}, {}, 2),
}


@pytest.mark.parametrize(
    "setting",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "steps_per_execution")) for name in SETTINGS],
)
def test_runs_once_an_update_also_after_a_first_fit_and_goes(setting):
    options, compiled, wanted = SETTINGS[setting]
    model = make_model(keras.optimizers.SGD(0.0, **options), **compiled)
    fit(model)
    kernel, bias = model.get_layer("dense").kernel, model.get_layer("dense").bias
    start, bias_before = kernel.numpy(), bias.numpy()
    live = Live(model)
    live.after_update(kernel, lambda value, update: value + 1)
    live.rebuild()
    fit(model)
    np.testing.assert_allclose(kernel.numpy(), start + wanted, rtol=1e-5)
    np.testing.assert_array_equal(bias.numpy(), bias_before)
    live.release()
    fit(model)
    np.testing.assert_allclose(kernel.numpy(), start + wanted, rtol=1e-5)
    assert "update_step" not in vars(model.optimizer)


def test_skipped_batches_of_mixed_precision_are_no_updates():
    model = make_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=1.0))
    kernel = model.get_layer("dense").kernel
    start = kernel.numpy()
    live = Live(model)
    live.after_update(kernel, lambda value, update: value + 1)
    live.rebuild()
    bad = Y.copy()
    bad[8:16] = np.inf
    model.fit(X, bad, batch_size=8, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(kernel.numpy(), start + 3, rtol=1e-5)
    live.release()


def test_learning_rate_step_and_second_moment_are_the_optimizers():
    rate, beta = 0.125, 0.9
    model = make_model(keras.optimizers.Adam(rate, beta_2=beta))
    kernel = model.get_layer("dense").kernel
    seen = [keras.Variable(np.zeros((4, 3), "float32")), keras.Variable(0.0), keras.Variable(0.0)]

    def note(value, update):
        seen[0].assign(update.second_moment)
        seen[1].assign(update.learning_rate)
        seen[2].assign(keras.ops.cast(update.step, "float32"))
        return value

    live = Live(model)
    live.after_update(kernel, note)
    live.rebuild()
    moment = np.zeros((4, 3))
    for start in range(0, 32, 8):  # the formula of Kingma & Ba 2015, by hand
        x, y = X[start : start + 8], Y[start : start + 8]
        error = x @ kernel.numpy() + model.get_layer("dense").bias.numpy() - y
        moment = beta * moment + (1 - beta) * (2 / error.size * x.T @ error) ** 2
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(seen[0].numpy(), moment / (1 - beta**4), rtol=1e-4)
    assert (float(seen[1].numpy()), float(seen[2].numpy())) == (rate, 4.0)


def test_slots_are_the_optimizers_own():
    model = make_model(keras.optimizers.Adam(0.01, use_ema=True))
    kernel = model.get_layer("dense").kernel
    assert slots(model.optimizer, kernel) == []
    fit(model)
    found = slots(model.optimizer, kernel)
    assert [slot.path.rsplit("_", 1)[-1] for slot in found] == ["momentum", "velocity"]
    assert all(np.any(slot.numpy() != 0) for slot in found)
    plain = make_model(keras.optimizers.SGD(0.1))
    fit(plain)
    assert slots(plain.optimizer, plain.get_layer("dense").kernel) == []


def test_what_an_interrupted_run_left_goes_when_the_next_attaches():
    model = make_model(keras.optimizers.SGD(0.0))
    kernel = model.get_layer("dense").kernel
    start = kernel.numpy()
    old, new = Live(model, run=object()), Live(model, run=object())
    old.after_update(kernel, lambda value, update: value + 100)
    old_sums = old.accumulate([kernel])
    new.after_update(kernel, lambda value, update: value + 1)
    sums = new.accumulate([kernel])
    new.rebuild()
    fit(model, epochs=1)
    np.testing.assert_allclose(kernel.numpy(), start + 4, rtol=1e-5)
    assert (old_sums.batches(), sums.batches()) == (0, 4)
    new.release()
    assert not {"apply", "update_step"} & set(vars(model.optimizer))


def test_a_penalty_is_in_the_loss_of_evaluate_also_after_a_first_one():
    model = make_model(keras.optimizers.SGD(0.0))
    kernel = model.get_layer("dense").kernel
    plain = model.evaluate(X, Y, verbose=0)
    live = Live(model)
    live.penalize(kernel, lambda value: keras.ops.sum(keras.ops.abs(value)))
    live.rebuild()
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(plain + np.abs(kernel.numpy()).sum(), rel=1e-5)
    live.release()
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(plain, rel=1e-5)


def test_the_second_moment_is_what_divides_the_step():
    """amsgrad keeps the largest; RMSprop adds epsilon before the root."""
    found = []
    for optimizer in (
        keras.optimizers.Adam(0.01, beta_2=0.5, amsgrad=True),
        keras.optimizers.RMSprop(0.01, epsilon=1e-3),
    ):
        model = make_model(optimizer, run_eagerly=True)
        kernel = model.get_layer("dense").kernel
        live = Live(model)
        live.after_update(kernel, lambda value, update: (found.append(update), value)[1])
        live.rebuild()
        fit(model)
        live.release()
    adam, rms = found[7], found[-1]
    assert adam.epsilon == 1e-7
    assert rms.epsilon == 0
    assert np.all(np.asarray(rms.second_moment) >= 1e-3)
    # The running maximum never falls, so neither does v_hat * (1 - beta^t).
    raw = [np.asarray(u.second_moment) * (1 - 0.5 ** float(u.step)) for u in found[:8]]
    assert all(np.all(later >= earlier * (1 - 1e-4)) for earlier, later in itertools.pairwise(raw))


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras")
def test_every_part_of_a_multi_optimizer_is_hooked():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="a"), keras.layers.Dense(3, name="b")])
    a, b = (model.get_layer(name).kernel for name in "ab")
    parts = [keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]
    model.compile(keras.optimizers.MultiOptimizer(lambda v: parts["/a/" not in v.path]), "mse")
    starts = [a.numpy(), b.numpy()]
    live = Live(model)
    for kernel in (a, b):
        live.after_update(kernel, lambda value, update: value + 1)
    live.rebuild()
    fit(model)
    for kernel, start in zip((a, b), starts, strict=True):
        np.testing.assert_allclose(kernel.numpy(), start + 8, rtol=1e-5)
