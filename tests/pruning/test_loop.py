"""A training loop of one's own ends where `fit` with the callback ends."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kdopt.pruning.callbacks import GradualPruning
from kdopt.pruning.loop import pruning_loop
from kdopt.pruning.regrow import RegrowPruning
from kdopt.schedules import Constant, Epochs, Linear, MultiStep, OneShot, Polynomial

X = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(dtype=None):
    keras.utils.set_random_seed(3)
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, padding="same", name="conv", dtype=dtype)(x)
    h = layers.ReLU()(layers.BatchNormalization(name="norm", dtype=dtype)(h))
    h = layers.Add()([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise", dtype=dtype)(h)])
    head = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, name="hidden"), layers.Dense(3, name="logits")], name="head"
    )
    return keras.Model(x, head(layers.GlobalAveragePooling2D()(h)))


def batches(epochs=2):
    for _ in range(epochs):
        for i in range(0, 64, 8):
            yield X[i : i + 8], Y[i : i + 8]


def make_step(model, optimizer, how, jit=False):
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, ops.cast(model(x, training=True), "float32"))
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(scaled, [v.value for v in variables]), variables)
        return loss

    return step if how == "eager" else tf.function(step, jit_compile=jit)


def by_fit(pruning, optimizer, dtype=None, epochs=2):
    model = make_model(dtype)
    model.compile(optimizer, LOSS)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[pruning])
    return model


def by_loop(pruning, optimizer, how="function", dtype=None, epochs=2, **options):
    model = make_model(dtype)
    optimizer.build(model.trainable_variables)
    with pruning_loop(model, pruning, optimizer, **options) as loop:
        step = make_step(model, optimizer, how)
        for x, y in batches(epochs):
            step(x, y)
            loop.step()
    return model


def assert_equal_and_sparse(one, two, atol=2e-5):
    zeros = 0
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, atol=atol)
        zeros += np.count_nonzero(a == 0)
    assert zeros > 40


def momentum():
    return keras.optimizers.SGD(0.1, momentum=0.9)  # Adam makes steps of noise where a gradient is zero


CALLBACKS = {
    "polynomial": lambda: GradualPruning(Polynomial(0.75, end_step=10, frequency=3)),
    "channel": lambda: GradualPruning(Linear(0.5, end_step=9, frequency=3), "l2", pattern="channel", layers=["conv"]),
    "taylor": lambda: GradualPruning(OneShot(0.5, begin_step=5), "taylor"),
    "cyclic": lambda: GradualPruning(MultiStep({0: 0.75, 6: 0.5})),
    "set": lambda: RegrowPruning(0.75, 12, "set", frequency=4),
    "rigl": lambda: RegrowPruning(0.75, 12, "rigl", frequency=4),
}


_SLOW = ("channel", "cyclic", "set")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in CALLBACKS])
def test_the_loop_ends_with_the_weights_of_fit(name):
    pruning = CALLBACKS[name]()
    looped = by_loop(pruning, momentum())
    assert_equal_and_sparse(looped, by_fit(CALLBACKS[name](), momentum()))
    for view in pruning.kernels:
        assert view.variable.constraint is None
        assert not view.numpy()[~pruning.masks[view.path]].any()


def test_an_eager_loop_and_a_schedule_in_epochs():
    def pruning():
        return GradualPruning(MultiStep({Epochs(0.5): 0.25, Epochs(1): 0.75}))

    assert_equal_and_sparse(by_loop(pruning(), momentum(), "eager", updates_per_epoch=8), by_fit(pruning(), momentum()))
    with pytest.raises(ValueError, match="not known"):
        by_loop(pruning(), momentum(), "eager")


def test_with_gradient_accumulation_updates_count_not_batches():
    def optimizer():
        return keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)

    def pruning():
        return GradualPruning(Polynomial(0.75, end_step=6, frequency=2))

    assert_equal_and_sparse(by_loop(pruning(), optimizer()), by_fit(pruning(), optimizer()))


def test_mixed_precision_with_loss_scaling():
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(momentum())

    looped, pruning = optimizer(), GradualPruning(Polynomial(0.75, end_step=10, frequency=3))
    model = by_loop(pruning, looped, dtype="mixed_float16")
    assert [round(float(np.mean(view.numpy() == 0)), 2) for view in pruning.kernels] == [0.75] * 4
    assert {str(view.variable.dtype) for view in pruning.kernels} == {"float32"}
    assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()


@pytest.mark.parametrize("jit", [False, True])
def test_a_function_that_was_traced_before_is_pruned_too(jit):
    """And goes on without masks after the loop."""
    model, optimizer = make_model(), momentum()
    optimizer.build(model.trainable_variables)
    step = make_step(model, optimizer, "function", jit)
    step(X[:8], Y[:8])
    seen = []
    with pruning_loop(model, GradualPruning(Constant(0.75), layers=["conv"]), optimizer) as pruning:
        for x, y in batches(1):
            step(x, y)
            pruning.step()
            seen.append(model.get_layer("conv").kernel.numpy())
    gone = seen[0] == 0
    assert gone.sum() == 54
    assert pruning.sparsity == 0.75
    for kernel in seen:
        np.testing.assert_array_equal(kernel == 0, gone)
    step(X[:8], Y[:8])
    assert np.count_nonzero(model.get_layer("conv").kernel.numpy()) == 72


def test_gradients_that_are_not_seen_are_refused():
    model, optimizer = make_model(), momentum()
    optimizer.build(model.trainable_variables)
    step = make_step(model, optimizer, "function")
    step(X[:8], Y[:8])
    pruning = GradualPruning(OneShot(0.5, begin_step=2), "taylor")

    def run():
        with pruning_loop(model, pruning, optimizer) as loop:
            for x, y in batches():
                step(x, y)
                loop.step()

    with pytest.raises(RuntimeError, match="traced before the loop began. Make the tf.function inside"):
        run()
    assert "apply" not in vars(optimizer)
    assert pruning._loop_optimizer is None
    data = GradualPruning(OneShot(0.5, begin_step=2), "taylor", data=(X, Y))
    model.compile(optimizer, LOSS)
    with pruning_loop(model, data, optimizer) as loop:
        for x, y in batches(1):
            step(x, y)
            loop.step()
    assert loop.sparsity == 0.5


def test_the_callback_serves_a_fit_afterwards():
    pruning = GradualPruning(Constant(0.75))
    model = by_loop(pruning, momentum())
    model.compile(momentum(), LOSS)
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[pruning])
    assert {round(float(np.mean(view.numpy() == 0)), 2) for view in pruning.kernels} == {0.75}


def test_an_unfinished_schedule_is_said():
    with pytest.warns(UserWarning, match="ended after 16 updates, before the schedule did"):
        by_loop(GradualPruning(Polynomial(0.5, end_step=100, frequency=5)), momentum())


def test_misuse():
    model, pruning = make_model(), GradualPruning(Constant(0.5))
    with pytest.raises(TypeError, match="must be a pruning callback"):
        pruning_loop(model, 0.5, momentum())
    with pytest.raises(ValueError, match="pass `optimizer=`, or compile the model; got None"):
        pruning_loop(model, pruning)
    with pytest.raises(ValueError, match="no weights yet"):
        pruning_loop(keras.Sequential([layers.Dense(3)]), pruning, momentum())
    loop = pruning_loop(model, pruning, momentum())
    with pytest.raises(RuntimeError, match="inside the `with` only"):
        loop.step()
    with loop, pytest.raises(RuntimeError, match="not inside a tf.function"):
        tf.function(loop.step, autograph=False)()
    with pytest.raises(RuntimeError, match="has begun already"), loop:
        pass
