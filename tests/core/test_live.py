import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from kdopt.core.live import Live, callback_list
from kdopt.core.optimizers import averages, updates

N, IN, OUT = 64, 5, 4
X = np.random.default_rng(0).normal(size=(N, IN)).astype("float32")
Y = np.random.default_rng(1).normal(size=(N, OUT)).astype("float32")
MASK = (np.indices((IN, OUT)).sum(0) % 2).astype("float32")


def make_model(optimizer=None, dtype=None, **compile_args):
    layer = keras.layers.Dense(OUT, dtype=dtype, name="dense")
    model = keras.Sequential([keras.Input((IN,)), layer])
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **compile_args)
    return model, layer.kernel


def fit(model, **kwargs):
    return model.fit(X, Y, batch_size=8, verbose=0, **kwargs)


SETTINGS = {
    "plain": ({}, {}, None),
    "eager": ({}, {"run_eagerly": True}, None),
    "jit_compile": ({}, {"jit_compile": True}, None),
    "steps_per_execution": ({}, {"steps_per_execution": 4}, None),
    "gradient_accumulation": ({"gradient_accumulation_steps": 4}, {}, None),
    "mixed_float16": ({}, {}, "mixed_float16"),
    "ema": ({"use_ema": True, "ema_overwrite_frequency": 1}, {}, None),
    "static_loss_scale": ({"loss_scale_factor": 8.0}, {}, None),
}


_SLOW = ("eager", "steps_per_execution", "static_loss_scale")
_MARKED = [pytest.param(one, marks=[pytest.mark.slow] * (one in _SLOW)) for one in SETTINGS]


@pytest.mark.parametrize("setting", _MARKED)
def test_constraint_acts_in_a_model_that_was_fit_before_and_goes_without_a_trace(setting):
    optimizer_args, compile_args, dtype = SETTINGS[setting]
    model, kernel = make_model(keras.optimizers.Adam(0.01, **optimizer_args), dtype, **compile_args)
    if dtype == "mixed_float16":
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)), "mse")
    fit(model)
    assert np.count_nonzero(kernel.numpy()) == MASK.size
    live = Live(model)
    live.constrain(kernel, lambda value: value * MASK)
    live.rebuild()
    fit(model)
    final_average = setting == "ema"  # Keras puts the average in after the last constraint
    if not final_average:
        np.testing.assert_array_equal(kernel.numpy()[MASK == 0], 0)
    assert np.all(kernel.numpy()[MASK == 1] != 0)
    live.release()
    assert kernel.constraint is None
    fit(model)
    assert np.count_nonzero(kernel.numpy()) == MASK.size


def test_without_rebuild_keras_ignores_the_constraint():
    """The trap `rebuild` exists for; if Keras ever retraces by itself, `rebuild` can go."""
    model, kernel = make_model()
    fit(model)
    Live(model).constrain(kernel, lambda value: value * MASK)
    fit(model)
    assert np.count_nonzero(kernel.numpy()) == MASK.size


def test_users_constraint_and_regularizer_act_next_to_ours_and_come_back():
    model, kernel = make_model()
    own_constraint, own_regularizer = keras.constraints.UnitNorm(axis=0), keras.regularizers.L2(0.5)
    kernel.constraint, kernel.regularizer = own_constraint, own_regularizer
    live = Live(model)
    live.constrain(kernel, lambda value: value * MASK)
    live.penalize(kernel, lambda value: 3.0 * keras.ops.sum(value))
    live.rebuild()
    value = kernel.numpy()
    expected = np.mean((X @ value - Y) ** 2) + 0.5 * np.sum(value**2) + 3 * value.sum()
    np.testing.assert_allclose(model.evaluate(X, Y, batch_size=N, verbose=0), expected, rtol=1e-4)
    fit(model)
    np.testing.assert_array_equal(kernel.numpy()[MASK == 0], 0)
    np.testing.assert_allclose(np.linalg.norm(kernel.numpy(), axis=0), 1, rtol=1e-4)  # of the weights that stay
    live.release()
    assert kernel.constraint is own_constraint
    assert kernel.regularizer is own_regularizer


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_owners_release_in_any_order(order):
    model, kernel = make_model()
    lives = [Live(model), Live(model)]
    masks = [MASK, 1 - np.eye(IN, OUT, k=1, dtype="float32")]
    for live, mask in zip(lives, masks, strict=True):
        live.constrain(kernel, lambda value, mask=mask: value * mask)
        live.rebuild()
    fit(model)
    np.testing.assert_array_equal(kernel.numpy()[masks[0] * masks[1] == 0], 0)
    lives[order[0]].release()
    fit(model)
    np.testing.assert_array_equal(kernel.numpy()[masks[order[1]] == 0], 0)
    assert np.any(kernel.numpy()[masks[order[0]] == 0] != 0)
    lives[order[1]].release()
    assert kernel.constraint is None


def test_release_keeps_a_constraint_the_user_has_set_meanwhile():
    model, kernel = make_model()
    live = Live(model)
    live.constrain(kernel, lambda value: value)
    kernel.constraint = keras.constraints.NonNeg()
    live.release()
    assert isinstance(kernel.constraint, keras.constraints.NonNeg)


def test_leftovers_of_an_interrupted_run_go_when_the_next_run_attaches():
    model, kernel = make_model()
    first, second, lasting = Live(model, run=object()), Live(model, run=object()), Live(model)
    lasting.constrain(kernel, lambda value: value * 3)
    first.constrain(kernel, lambda value: value * 0)
    second.constrain(kernel, lambda value: value * 2)
    np.testing.assert_array_equal(kernel.constraint(np.ones(2, "float32")), 6)


def test_updates_counts_real_updates_only():
    accumulating, _ = make_model(keras.optimizers.SGD(0.01, gradient_accumulation_steps=4))
    fit(accumulating)
    assert updates(accumulating.optimizer) == 2  # 8 batches
    scaled, _ = make_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    fit(scaled)
    x = X.copy()
    x[0] = np.inf  # one batch of eight is skipped
    scaled.fit(x, Y, batch_size=8, verbose=0, shuffle=False)
    assert updates(scaled.optimizer) == 8 + 7


def numpy_gradient(kernel, bias, rows):
    error = X[rows] @ kernel + bias - Y[rows]
    return X[rows].T @ error * 2 / error.size


@pytest.mark.parametrize("setting", [s for s in _MARKED if s.values != ("mixed_float16",)])
def test_accumulated_gradients_equal_numpy(setting):
    optimizer_args, compile_args, dtype = SETTINGS[setting]
    # A learning rate of zero keeps the weights, so that every batch has a gradient NumPy can compute.
    model, kernel = make_model(keras.optimizers.SGD(0.0, **optimizer_args), dtype, **compile_args)
    fit(model)
    live = Live(model)
    first = live.accumulate([kernel])
    second = live.accumulate([kernel], lambda w, g: (w * g) ** 2)
    live.rebuild()
    fit(model, shuffle=False)
    bias = np.zeros(OUT)
    gradients = [numpy_gradient(kernel.numpy(), bias, slice(i, i + 8)) for i in range(0, N, 8)]
    np.testing.assert_allclose(first.sums()[0], np.sum(gradients, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        second.sums()[0], np.sum([(kernel.numpy() * g) ** 2 for g in gradients], 0), rtol=1e-4, atol=1e-8
    )
    assert first.batches() == 8
    first.reset()
    assert first.batches() == 0
    assert not first.sums()[0].any()
    live.release()
    fit(model)
    assert first.batches() == 0
    assert "apply" not in vars(model.optimizer)


def test_accumulated_gradients_are_unscaled_and_skip_non_finite_batches():
    model, kernel = make_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0)))
    live = Live(model)
    accumulator = live.accumulate([kernel])
    x = X.copy()
    x[:8] = np.inf
    model.fit(x, Y, batch_size=8, shuffle=False, verbose=0)
    gradients = [numpy_gradient(kernel.numpy(), np.zeros(OUT), slice(i, i + 8)) for i in range(8, N, 8)]
    np.testing.assert_allclose(accumulator.sums()[0], np.sum(gradients, 0), rtol=1e-3, atol=1e-5)
    assert accumulator.batches() == 7


def test_averages_are_those_of_the_variable():
    model, kernel = make_model(keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.0))
    fit(model)
    (average,) = averages(model.optimizer, kernel)
    np.testing.assert_array_equal(average.numpy(), kernel.numpy())
    plain, kernel = make_model()
    fit(plain)
    assert averages(plain.optimizer, kernel) == []


def test_a_callback_finds_its_list():
    seen = {}

    class Probe(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen["list"] = callback_list(self)
            seen["stranger"] = callback_list(keras.callbacks.Callback())

    probe = Probe()
    model, _ = make_model()
    fit(model, callbacks=[probe])
    assert probe in seen["list"].callbacks
    assert seen["stranger"] is None


@pytest.mark.slow
def test_two_replicas():
    code = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from kdopt.core.live import Live
    from kdopt.core.optimizers import updates
    from kdopt.pruning import GradualPruning
    from kdopt.schedules import Polynomial

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 5)).astype("float32"), rng.normal(size=(64, 4)).astype("float32")
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
        model.compile(keras.optimizers.SGD(0.0), "mse")
    kernel = model.layers[0].kernel
    model.fit(x, y, batch_size=16, verbose=0)
    live = Live(model)
    accumulator = live.accumulate([kernel])
    live.rebuild()
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    error = x @ kernel.numpy() - y
    gradients = [x[i : i + 16].T @ error[i : i + 16] * 2 / 64 for i in range(0, 64, 16)]
    np.testing.assert_allclose(accumulator.sums()[0], np.sum(gradients, 0), rtol=1e-4, atol=1e-6)
    assert accumulator.batches() == 4 and updates(model.optimizer) == 8
    live.release()

    model.optimizer.learning_rate = 0.1
    callback = GradualPruning(Polynomial(0.5, end_step=4, frequency=1))
    logs = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[callback]).history
    assert logs["sparsity"] == [0.5, 0.5], logs
    for value in kernel.value.values:
        assert np.count_nonzero(value.numpy()) == 10
    assert kernel.constraint is None
    model.fit(x, y, batch_size=16, verbose=0)
    assert np.count_nonzero(kernel.numpy()) == 20
    print("done")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
