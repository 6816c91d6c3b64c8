"""GradualPruning with other criteria, patterns, allocations and schedules."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from pruning_net import Watch, X, Y, fit, kernels, make_model, zeros

from kdopt.core.optimizers import slots
from kdopt.criteria import CRITERIA
from kdopt.pruning import GradualPruning
from kdopt.schedules import Constant, Epochs, MultiStep, OneShot, Polynomial


@pytest.mark.slow
def test_a_schedule_in_epochs():
    model = make_model()
    watch = Watch()
    schedule = MultiStep({Epochs(0.5): 0.25, Epochs(1): 0.5})
    fit(model, GradualPruning(schedule, layers=["conv"]), watch)  # 8 updates an epoch
    assert [z[0] for z in watch.zeros] == [0] * 4 + [18] * 4 + [36] * 8


def test_masks_come_back_at_zero_and_without_momentum():
    """Cyclic: half the weights go, then all are free; a weight that comes back has to start from nothing."""
    model = make_model()
    state = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(model.optimizer.iterations) == 4:  # after the masks have changed
                state["kernel"] = kernels(model)[0].numpy()
                state["slots"] = [slot.numpy() for slot in slots(model.optimizer, kernels(model)[0])]

    fit(model, GradualPruning(MultiStep({0: 0.5, 4: 0.0}), layers=["conv"]), Look(), epochs=1)
    gone = state["kernel"] == 0
    assert np.count_nonzero(gone) == 36
    for slot in state["slots"]:
        assert np.all(slot[gone] == 0)
        assert np.any(slot[~gone] != 0)
    assert zeros(model)[0] == 0


def test_gradients_of_the_running_fit_score_the_weights():
    """OBD at update 4 with SGD(0): 1/2 w^2 * mean g^2 over the four batches before, by GradientTape."""
    model = make_model(keras.optimizers.SGD(0.0))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    model.compile(keras.optimizers.SGD(0.0), model.loss)
    kernel = kernels(model)[2]
    start = kernel.numpy()
    squares = []
    for i in range(0, 32, 8):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=None, y=Y[i : i + 8], y_pred=model(X[i : i + 8], training=True))
        squares.append(tape.gradient(loss, kernel.value).numpy() ** 2)
    scores = start**2 * np.mean(squares, axis=0) / 2
    fit(model, GradualPruning(OneShot(0.5, begin_step=4), "obd", layers=["hidden"]), epochs=1, shuffle=False)
    expected = np.ones(32, bool)
    expected[np.argsort(scores.reshape(-1), kind="stable")[:16]] = False
    np.testing.assert_array_equal((kernel.numpy() != 0).reshape(-1), expected)
    assert "apply" not in vars(model.optimizer)


def test_channels_with_a_global_allocation_in_fit():
    model = make_model()
    pruning = GradualPruning(Polynomial(0.5, end_step=6, frequency=2), "l2", pattern="channel", layers=["conv"])
    fit(model, pruning)
    conv, norm = model.get_layer("conv"), model.get_layer("norm")
    gone = (conv.kernel.numpy() == 0).all(axis=(0, 1, 2))
    assert gone.sum() == 2
    for variable in (conv.bias, norm.gamma, norm.beta):
        np.testing.assert_array_equal(variable.numpy() == 0, gone)
        assert variable.constraint is None


def test_what_a_pattern_is_not_for_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="leaves out layers that the pattern InputChannel is not for. 'depthwise'"):
        fit(make_model(), GradualPruning(Constant(0.5), pattern="input_channel"), epochs=1)


def test_bad_combinations():
    with pytest.raises(ValueError, match="criterion Wanda needs samples: pass `data=`"):
        GradualPruning(Constant(0.5), "wanda")
    with pytest.raises(ValueError, match="`scope` and `allocation` say the same"):
        GradualPruning(Constant(0.5), scope="global", allocation="lamp")
    with pytest.raises(ValueError, match="NM reaches a sparsity of 0.5 at most; got 0.8"):
        fit(make_model(), GradualPruning(Constant(0.8), pattern="n_m", layers=["hidden"]))
    model = make_model()
    kernels(model)[0].assign(np.full((3, 3, 2, 4), np.inf))
    with pytest.raises(ValueError, match="72 of 72 pruning scores of 'conv' are NaN or infinite"):
        fit(model, GradualPruning(Constant(0.5)))


NO_DATA = [name for name in CRITERIA.names() if CRITERIA.get(name).needs != "data"]
FAST = ("taylor", "movement", "bn_scale")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in NO_DATA]
)
def test_every_criterion_that_needs_no_data_prunes_exactly(name):
    model = make_model()
    fit(model, GradualPruning(Polynomial(0.5, end_step=6, frequency=3), name, layers=["conv"]), epochs=1)
    assert np.count_nonzero(kernels(model)[0].numpy()) == 36
    assert not {"apply", "update_step"} & set(vars(model.optimizer))


def test_a_criterion_with_data_of_its_own():
    model = make_model()
    fit(model, GradualPruning(OneShot(0.5, begin_step=2), "gradient_norm", pattern="channel", data=(X, Y)), epochs=1)
    assert (kernels(model)[0].numpy() == 0).all(axis=(0, 1, 2)).sum() == 2


def test_gradients_of_masked_weights_count_in_a_global_norm():
    """One step of SGD(1) with a clip of 0.01: every living weight moves by g * 0.01 / norm of all g, masked or not."""
    model = make_model(keras.optimizers.SGD(1.0, global_clipnorm=0.01))
    state = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x=None, y=Y[:8], y_pred=model(X[:8], training=True))
            variables = [v.value for v in model.trainable_variables]
            state["gradients"] = [g.numpy() for g in tape.gradient(loss, variables)]
            state["kernel"] = kernels(model)[2].numpy()

    pruning = GradualPruning(Constant(0.75), layers=["conv", "hidden"])
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0, shuffle=False, callbacks=[pruning, Look()])
    norm = np.sqrt(sum(np.square(g).sum() for g in state["gradients"]))
    index = next(i for i, v in enumerate(model.trainable_variables) if v is kernels(model)[2])
    alive = state["kernel"] != 0
    moved = kernels(model)[2].numpy() - state["kernel"]
    assert np.any(state["gradients"][index][~alive] != 0)
    np.testing.assert_allclose(moved[alive], -0.01 / norm * state["gradients"][index][alive], rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(moved[~alive], 0)


def test_a_schedule_above_its_end_asks_no_layer_for_more_than_its_share():
    model = make_model()
    watch = Watch()
    schedule = MultiStep({0: 0.8, 8: 0.4})
    fit(model, GradualPruning(schedule, allocation={"hidden": 0.5}), watch)
    assert {z[2] for z in watch.zeros} == {16}


def test_gradients_are_those_since_the_last_change():
    pruning = GradualPruning(MultiStep({4: 0.25, 8: 0.5}), "taylor")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(pruning._run._rule._sums.batches())

    fit(make_model(), pruning, Look())
    assert seen == [1, 2, 3, 4, 1, 2, 3, 4, *range(1, 9)]


def test_validation_sees_masks_that_are_due():
    found = []

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            found.append(zeros(self.model)[2])

    fit(make_model(), Look(), GradualPruning(OneShot(0.5, begin_step=8)), epochs=1, validation_data=(X, Y))
    assert found == [16]


def test_epochs_are_of_updates_not_of_batches():
    model = make_model(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2))
    watch = Watch()
    fit(model, GradualPruning(OneShot(0.5, begin_step=Epochs(1)), layers=["hidden"]), watch, epochs=2)
    assert [z[2] for z in watch.zeros] == [0] * 8 + [16] * 8
