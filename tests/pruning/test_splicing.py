"""Masked weights that go on learning: against dynamic network surgery written in NumPy."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.sidecar import Sidecar
from kdopt.pruning import GradualPruning
from kdopt.pruning.loop import pruning_loop
from kdopt.schedules import Constant, Polynomial

RATE, EPOCHS, BATCHES = 0.05, 6, 4
RNG = np.random.default_rng(4)
X = (RNG.normal(size=(32, 12)) * np.linspace(0.3, 1.5, 12)).astype("float32")
Y = (X @ RNG.normal(size=(12, 1)) + 0.1 * RNG.normal(size=(32, 1))).astype("float32")
START = RNG.normal(size=(12, 1)).astype("float32") / 3
SCHEDULE = Polynomial(0.75, 0.5, end_step=16, frequency=4)


def make_model(strategy=None, **compile_args):
    with strategy.scope() if strategy else tf.init_scope():
        model = keras.Sequential([keras.Input((12,)), layers.Dense(1, use_bias=False, name="dense")])
        model.set_weights([START])
        model.compile(keras.optimizers.SGD(RATE), "mse", **compile_args)
    return model


def surgery(updates, size=32 // BATCHES):
    """(weights, masks at each change) of full dense SGD on the gradient at the masked weights."""
    dense, mask, masks = START.astype(float).copy(), np.ones_like(START, bool), []
    for step in range(updates):
        if step in (0, 4, 8, 12, 16):
            order = np.argsort(np.abs(dense[:, 0]), kind="stable")
            mask = np.ones_like(mask)
            mask[order[: round(SCHEDULE(step) * 12)]] = False
            masks.append(mask)
        at = slice(size * (step % (32 // size)), size * (step % (32 // size)) + size)
        error = X[at] @ (dense * mask) - Y[at]
        dense -= RATE * 2 * X[at].T @ error / size
    return dense * mask, masks


def fit(model, *callbacks, epochs=EPOCHS, batch_size=8):
    pruning = GradualPruning(SCHEDULE, splicing=True)
    model.fit(X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=[pruning, *callbacks])
    return pruning


def test_the_oracle_takes_weights_back():
    _, masks = surgery(EPOCHS * BATCHES)
    returned = [np.count_nonzero(new & ~old) for old, new in itertools.pairwise(masks)]
    assert len(masks) == 5
    assert sum(returned) >= 2


@pytest.mark.parametrize(
    "modes",
    [
        {},
        {"jit_compile": True},
        {"strategy": True},
        pytest.param({"steps_per_execution": 4}, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_dynamic_network_surgery(modes):
    if modes.pop("strategy", False):
        modes = {"strategy": tf.distribute.MirroredStrategy(["CPU:0"])}
    model = make_model(**modes)
    pruning = fit(model)
    expected, masks = surgery(EPOCHS * BATCHES)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-5)
    np.testing.assert_array_equal(pruning.masks["dense"], masks[-1])
    assert np.count_nonzero(model.get_weights()[0]) == 3


def test_accumulated_batches_are_one_update():
    model = make_model()
    model.compile(keras.optimizers.SGD(RATE, gradient_accumulation_steps=2), "mse")
    fit(model, epochs=12)
    expected, _ = surgery(12 * 2, size=16)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-5)


def test_a_loop_of_ones_own_does_the_same():
    model, optimizer = make_model(), keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)
    with pruning_loop(model, GradualPruning(SCHEDULE, splicing=True), optimizer) as loop:

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

        for i in range(EPOCHS * BATCHES):
            at = slice(8 * (i % 4), 8 * (i % 4) + 8)
            step(X[at], Y[at])
            loop.step()
    np.testing.assert_allclose(model.get_weights()[0], surgery(EPOCHS * BATCHES)[0], atol=1e-5)
    with pruning_loop(model, GradualPruning(SCHEDULE, splicing=True), optimizer) as loop:
        step(X[:8], Y[:8])  # traced before this loop
        with pytest.raises(RuntimeError, match=r"saw none although the optimizer made updates.*inside the `with`\.$"):
            loop.step()


def test_a_resumed_fit_knows_what_masked_weights_have_learned(tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path), double_checkpoint=True, delete_checkpoint=False)

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), backup(), Kill())
    assert any(entry.values for entry in entries(tmp_path))
    model = make_model()
    fit(model, backup())
    assert int(model.optimizer.iterations) == EPOCHS * BATCHES
    np.testing.assert_allclose(model.get_weights()[0], surgery(EPOCHS * BATCHES)[0], atol=1e-5)


def entries(folder):
    name = next(folder.glob("kdopt-*.npz")).name
    sidecar = Sidecar(folder, name.removeprefix("kdopt-").rsplit("-", 1)[0])
    return [sidecar.read(step) for step in sidecar.steps()]


def test_what_is_kept_survives_the_disk(tmp_path):
    fit(make_model(), keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False), epochs=1)
    last = entries(tmp_path)[-1]
    assert last.step == BATCHES
    assert np.all(last.values[0][last.masks[0]] == 0)
    assert np.all(last.values[0][~last.masks[0]] != 0)


def test_a_backup_of_the_other_kind_is_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
    fit(make_model(), backup, epochs=2)
    with pytest.raises(RuntimeError, match="splicing=True; this run has splicing=False"):
        make_model().fit(X, Y, verbose=0, epochs=3, callbacks=[GradualPruning(SCHEDULE), backup])


def test_nothing_is_left_on_the_optimizer():
    model = make_model()
    fit(model)
    before = np.count_nonzero(model.get_weights()[0])
    assert "update_step" not in vars(model.optimizer)
    model.fit(X, Y, verbose=0)
    assert before == 3 < np.count_nonzero(model.get_weights()[0])


def test_criteria_of_gradients_are_refused():
    with pytest.raises(ValueError, match="Taylor needs gradients. Use a criterion of the weights"):
        GradualPruning(Constant(0.5), "taylor", splicing=True)
