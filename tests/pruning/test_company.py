"""What happens with callbacks that keep a best epoch, before and after us in the list."""

import keras
import numpy as np
import pytest

from kdopt.pruning import GradualPruning
from kdopt.schedules import Polynomial

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = X[:, :2]
SIZE = 6 * 8


# Our place in the list; the other one is in the slow suite.
BEFORE = [pytest.param(True, id="before"), pytest.param(False, id="after", marks=pytest.mark.slow)]
AFTER = [pytest.param(True, id="before", marks=pytest.mark.slow), pytest.param(False, id="after")]


class Worse(keras.callbacks.Callback):
    """A metric that is best in the first epoch, when the model is least sparse."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = -float(epoch)


def make_model():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")])
    model.compile("adam", "mse")
    return model


def zeros(model):
    return int(np.count_nonzero(model.get_layer("a").kernel.numpy() == 0))


def fit(model, callbacks, epochs=5):
    """4 updates an epoch; sparsity is final after 10, in the third epoch."""
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks)


def pruning(end_step=10):
    return GradualPruning(Polynomial(0.75, end_step=end_step, frequency=2))


def in_order(first, ours, others):
    return [Worse(), *([ours, *others] if first else [*others, ours])]


@pytest.mark.parametrize("first", BEFORE)
def test_early_stopping_restores_the_best_epoch_of_the_final_sparsity(first):
    model = make_model()
    stopping = keras.callbacks.EarlyStopping("score", mode="max", patience=9, restore_best_weights=True)
    fit(model, in_order(first, pruning(), [stopping]))
    assert stopping.best_epoch == 2
    assert zeros(model) == 36


@pytest.mark.parametrize("first", AFTER)
def test_checkpoint_keeps_the_best_epoch_of_the_final_sparsity(first, tmp_path):
    path = str(tmp_path / "best.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, "score", mode="max", save_best_only=True)
    fit(make_model(), in_order(first, pruning(), [checkpoint]))
    assert zeros(keras.models.load_model(path)) == 36


@pytest.mark.parametrize("first", BEFORE)
def test_stopping_before_the_final_sparsity_warns_and_keeps_the_zeros(first):
    model = make_model()
    stopping = keras.callbacks.EarlyStopping("score", mode="max", patience=1, restore_best_weights=True)
    with pytest.warns(UserWarning, match="GradualPruning") as caught:
        fit(model, in_order(first, pruning(end_step=100), [stopping]))
    messages = [str(w.message) for w in caught if "GradualPruning" in str(w.message)]
    assert len(messages) == 2
    assert "put in weights that were not pruned like the last epoch's" in messages[0]
    assert "ended after 8 updates, before the schedule did" in messages[1]
    step_8 = round(SIZE * Polynomial(0.75, end_step=100)(8))
    assert zeros(model) == step_8


@pytest.mark.parametrize("first", AFTER)
def test_a_checkpoint_that_never_improves_again_warns(first, tmp_path):
    path = str(tmp_path / "best.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, "score", mode="max", save_best_only=True)
    model = make_model()
    fit(model, [Worse(), checkpoint], epochs=1)  # the dense model is the best of all
    with pytest.warns(
        UserWarning, match="no epoch since the final sparsity was better than .*best.keras holds an earlier"
    ):
        model.fit(
            X, Y, batch_size=8, epochs=6, initial_epoch=1, verbose=0, callbacks=in_order(first, pruning(), [checkpoint])
        )
    assert zeros(keras.models.load_model(path)) == 0


@pytest.mark.parametrize("first", BEFORE)
def test_any_callback_that_restores_dense_weights_is_caught(first):
    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.weights = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.weights)

    model = make_model()
    with pytest.warns(UserWarning, match="They were masked again: evaluate the model"):
        fit(model, in_order(first, pruning(), [Restore()]))
    assert zeros(model) == 36


@pytest.mark.parametrize("first", BEFORE)
def test_averaged_weights_are_masked(first, tmp_path):
    path = str(tmp_path / "{epoch}.keras")
    model = make_model()
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9), "mse")
    swap, save = keras.callbacks.SwapEMAWeights(swap_on_epoch=True), keras.callbacks.ModelCheckpoint(path)
    model.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=in_order(first, pruning(), [swap, save]))
    assert zeros(model) == 36
    assert zeros(keras.models.load_model(path.format(epoch=3))) == 36


def test_all_callbacks_see_the_sparsity_and_the_progress_bar_is_short(capsys):
    seen = {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch] = dict(logs)

    model = make_model()
    logs = model.fit(X, Y, batch_size=8, epochs=3, verbose=2, callbacks=[See(), pruning()])
    assert {"sparsity", "sparsity/a", "sparsity/b"} <= set(seen[0])
    assert logs.history["sparsity"][-1] == 0.75
    printed = capsys.readouterr().out
    assert "sparsity: 0.75" in printed
    assert "sparsity/a" not in printed
