"""Weights that move: what is dropped, what grows, and that it is exact all along."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.optimizers import slots
from kdopt.pruning import RegrowPruning
from kdopt.pruning.regrow import moved

X = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)


def make_model(optimizer=None):
    model = keras.Sequential([keras.Input((12,)), layers.Dense(20, "relu", name="a"), layers.Dense(3, name="b")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss)
    return model


class Watch(keras.callbacks.Callback):
    """Mask and zeros of the first kernel after every batch."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning, self.used = pruning, []

    def on_train_batch_end(self, batch, logs=None):
        mask = self.pruning._run._stored[0].copy()
        assert not self.model.get_layer("a").kernel.numpy()[~mask].any()
        self.used.append(mask)


def fit(model, *callbacks, epochs=2, **options):
    """8 updates an epoch."""
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


def test_moved_by_hand():
    weights = np.array([[0.5, -0.1, 0.0], [0.3, 0.0, -0.4]])
    mask = weights != 0
    growth = np.array([[0, 9, 1], [0, 5, 0]])
    # Half of four go: -0.1 and 0.3; of the free ones 9 (again -0.1's place) and 5 grow.
    np.testing.assert_array_equal(moved(weights, mask, 0.5, growth), [[True, True, False], [False, True, True]])
    np.testing.assert_array_equal(moved(weights, mask, 0.0, growth), mask)
    np.testing.assert_array_equal(moved(weights, np.ones((2, 3), bool), 0.5, growth), np.ones((2, 3), bool))


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_the_sparsity_stays_while_the_weights_move(method):
    model, pruning = make_model(), RegrowPruning(0.75, 12, method, frequency=4, allocation="uniform")
    watch = Watch(pruning)
    logs = fit(model, pruning, watch)
    assert all(np.count_nonzero(used) == 60 for used in watch.used)
    changed = [i for i in range(1, 16) if np.any(watch.used[i] != watch.used[i - 1])]
    assert changed == ([4, 8] if method == "rigl" else [4, 8, 12])  # the cosine is 0 at end_step
    moving = [np.count_nonzero(watch.used[i] & ~watch.used[i - 1]) for i in changed]
    assert all(0 < m <= 18 for m in moving)
    # A weight that grows at a unit whose ReLU is off has no gradient, so there may be more zeros than the masks have.
    assert all(0.75 <= value < 0.85 for value in logs.history["sparsity"])
    assert np.mean(model.get_layer("a").kernel.numpy() == 0) == pytest.approx(0.75, abs=0.1)
    assert all(v.constraint is None for v in model.trainable_variables)
    assert "apply" not in vars(model.optimizer)


def test_rigl_grows_where_the_gradient_is_largest_from_zero_and_without_momentum():
    model = make_model(keras.optimizers.SGD(0.0, momentum=0.9))
    pruning = RegrowPruning(0.75, 100, "rigl", fraction=0.25, frequency=4, allocation="uniform", layers=["a"])
    state = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            step = int(model.optimizer.iterations)
            if step == 3:
                state["before"] = model.get_layer("a").kernel.numpy()
                state["bias"] = [v.numpy() for v in model.trainable_variables]
            if step == 4:
                state["mask"] = pruning._run._stored[0].copy()
                state["slots"] = [slot.numpy() for slot in slots(model.optimizer, model.get_layer("a").kernel)]

    fit(model, pruning, Look(), epochs=1, shuffle=False)
    before = state["before"]
    used = before != 0
    kernel = model.get_layer("a").kernel
    kernel.assign(before)
    gradients = []
    for i in range(0, 32, 8):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=None, y=Y[i : i + 8], y_pred=model(X[i : i + 8], training=True))
        gradients.append(tape.gradient(loss, kernel.value).numpy())
    fraction = 0.25 / 2 * (1 + np.cos(np.pi * 4 / 100))
    count = round(fraction * 60)
    order = np.argsort(np.where(used, np.abs(before), np.inf), axis=None)
    expected = used.reshape(-1).copy()
    expected[order[:count]] = False
    size = np.where(expected, -1, np.abs(np.sum(gradients, axis=0)).reshape(-1))
    expected[np.argsort(-size, kind="stable")[:count]] = True
    np.testing.assert_array_equal(state["mask"].reshape(-1), expected)
    grown = state["mask"] & ~used
    assert np.count_nonzero(grown) > 0
    assert all(np.all(slot[grown] == 0) for slot in state["slots"])


def test_a_trained_model_keeps_its_largest_weights_and_a_seed_draws_the_same():
    model = make_model(keras.optimizers.SGD(0.0))
    start = model.get_layer("a").kernel.numpy()
    fit(model, RegrowPruning(0.5, 1, frequency=5, initial="l1", allocation="uniform"), epochs=1)
    expected = np.abs(start) > np.sort(np.abs(start), axis=None)[119]
    np.testing.assert_array_equal(model.get_layer("a").kernel.numpy() != 0, expected)
    masks = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(0)
        model = make_model(keras.optimizers.SGD(0.0))
        fit(model, RegrowPruning(0.5, 9, "set", frequency=4, seed=seed), epochs=2)
        masks.append(model.get_layer("a").kernel.numpy() != 0)
    np.testing.assert_array_equal(masks[0], masks[1])
    assert np.any(masks[0] != masks[2])


def test_a_resumed_run_ends_like_an_undisturbed_one(tmp_path):
    def run(folder, stop_at=None):
        class Stop(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == stop_at:
                    raise KeyboardInterrupt

        keras.utils.set_random_seed(0)
        model = make_model()
        pruning = RegrowPruning(0.75, 20, "set", frequency=4)
        backup = keras.callbacks.BackupAndRestore(str(folder), double_checkpoint=True)
        try:
            fit(model, Stop(), pruning, backup, epochs=4, shuffle=False)
        except KeyboardInterrupt:
            pruning.release()
        return model

    undisturbed = run(tmp_path / "a")
    run(tmp_path / "b", stop_at=2)
    resumed = run(tmp_path / "b")
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_stopping_early_warns_and_bad_arguments():
    with pytest.warns(UserWarning, match="RegrowPruning: training ended after 8 updates.*to move until update 100"):
        fit(make_model(), RegrowPruning(0.5, 100, frequency=4), epochs=1)
    with pytest.raises(ValueError, match="`method` must be one of 'set', 'rigl'; got 'snip'"):
        RegrowPruning(0.5, 10, "snip")
    with pytest.raises(ValueError, match=r"`sparsity` must be a fraction in \[0, 1\)"):
        RegrowPruning(1.0, 10)
