import keras
import numpy as np
import pytest
import tensorflow as tf

from kdopt.regularizers import (
    L1,
    L1L2,
    BatchNormScale,
    GroupLasso,
    HoyerSquare,
    OrderedL1,
    Proximal,
    SparseGroupLasso,
    attach,
    detach,
)

N, IN, OUT = 64, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, IN)).astype("float32")
TRUE = RNG.normal(size=(IN, OUT)) * np.array([[1.0], [0.0], [2.0], [0.05], [0.0], [1.0]])
Y = (X @ TRUE + 0.1 * RNG.normal(size=(N, OUT))).astype("float32")


def make_model(optimizer, dtype=None, **compile_args):
    model = keras.Sequential([keras.Input((IN,)), keras.layers.Dense(OUT, use_bias=False, dtype=dtype, name="dense")])
    model.compile(optimizer, "mse", **compile_args)
    return model, model.layers[0].kernel


def soft(w, t):
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


def group_soft(w, t):
    norms = np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300)
    return w * np.maximum(1 - t / norms, 0)


def gradient(w, x=X, y=Y):
    return 2 * x.T @ (x @ w - y) / y.size


SETTINGS = {
    "plain": ({}, {}, None, 8),
    "eager": ({}, {"run_eagerly": True}, None, 8),
    "jit_compile": ({}, {"jit_compile": True}, None, 8),
    "no_jit": ({}, {"jit_compile": False}, None, 8),
    "steps_per_execution": ({}, {"steps_per_execution": 4}, None, 8),
    "gradient_accumulation": ({"gradient_accumulation_steps": 4}, {}, None, 2),
    "accumulation_in_an_execution": ({"gradient_accumulation_steps": 4}, {"steps_per_execution": 8}, None, 2),
    "mixed_float16": ({}, {}, "mixed_float16", 8),
}


RARE = ("accumulation_in_an_execution", "no_jit")


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in SETTINGS]
)
def test_one_step_for_each_real_update_in_a_trained_model(setting):
    """Inputs of zero have no gradient, so that all the weights feel are the thresholds."""
    optimizer_args, compile_args, dtype, updates = SETTINGS[setting]
    optimizer = keras.optimizers.Adam(0.05, **optimizer_args)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model, kernel = make_model(optimizer, dtype, **compile_args)
    model.fit(X * 0, Y, batch_size=8, verbose=0)
    before = kernel.numpy()
    history = model.fit(X * 0, Y, batch_size=8, verbose=0, callbacks=[Proximal(L1(0.7))]).history
    np.testing.assert_allclose(kernel.numpy(), soft(before, updates * 0.05 * 0.7), atol=1e-6)
    np.testing.assert_allclose(history["penalty/l1"][0], 0.7 * np.abs(kernel.numpy()).sum(), rtol=1e-5)
    assert history["sparsity"] == [np.mean(kernel.numpy() == 0)]
    after = kernel.numpy()
    model.fit(X * 0, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(kernel.numpy(), after)  # gone


def test_a_batch_that_the_loss_scaling_skips_is_no_update():
    model, kernel = make_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05)))
    x = X * 0
    x[:8] = np.inf
    before = kernel.numpy()
    model.fit(x, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[Proximal(L1(0.7))])
    np.testing.assert_allclose(kernel.numpy(), soft(before, 7 * 0.05 * 0.7), atol=1e-6)


@pytest.mark.parametrize("accumulate", [None, 4])
def test_steps_equal_numpy(accumulate):
    model, kernel = make_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulate))
    w = kernel.numpy().astype("float64")
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, epochs=3, callbacks=[Proximal(GroupLasso(0.2, "rows"))])
    size = 8 * (accumulate or 1)
    for start in list(range(0, N, size)) * 3:
        w = w - 0.1 * gradient(w, X[start : start + size], Y[start : start + size])
        w = group_soft(w, 0.1 * 0.2 * OUT**0.5)
    np.testing.assert_allclose(kernel.numpy(), w, atol=2e-6)


def test_preconditioned_steps_equal_numpy():
    model, kernel = make_model(keras.optimizers.Adam(0.02, beta_1=0.8, beta_2=0.9, epsilon=1e-7))
    w = kernel.numpy().astype("float64")
    proximal = Proximal(L1(0.3), scaling="preconditioned")
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, epochs=2, callbacks=[proximal])
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, start in enumerate([*range(0, N, 8)] * 2, start=1):
        g = gradient(w, X[start : start + 8], Y[start : start + 8])
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        rate = 0.02 / (np.sqrt(v / (1 - 0.9**t)) + 1e-7)
        w = soft(w - rate * m / (1 - 0.8**t), rate * 0.3)
    np.testing.assert_allclose(kernel.numpy(), w, atol=2e-6)
    assert np.count_nonzero(w == 0) > 0
    np.testing.assert_array_equal(kernel.numpy() == 0, w == 0)


def optimum(shrink, strength):
    """Proximal gradient descent in float64, until nothing moves."""
    w, rate = np.zeros((IN, OUT)), 1 / np.linalg.eigvalsh(2 * X.T @ X / Y.size).max()
    for _ in range(5000):
        w = shrink(w - rate * gradient(w), rate * strength)
    assert np.abs(shrink(w - rate * gradient(w), rate * strength) - w).max() < 1e-12
    return w


def train_on_all(model, callbacks, steps=1000):
    data = tf.data.Dataset.from_tensors((X, Y)).repeat(steps)
    return model.fit(data, verbose=0, callbacks=callbacks)


CONVEX = {
    "lasso": (L1(0.2), soft, 0.2),
    "group_lasso": (GroupLasso(0.2, "in_channels"), group_soft, 0.2 * OUT**0.5),
    "group_lasso_unscaled": (GroupLasso(0.3, "in_channels", scale_by_size=False), group_soft, 0.3),
    "sparse_group_lasso": (
        SparseGroupLasso(0.2, 0.5, "in_channels", scale_by_size=False),
        lambda w, t: group_soft(soft(w, t / 2), t / 2),
        0.2,
    ),
    "elastic_net": (L1L2(0.2, 0.5), lambda w, t: soft(w, t / 2) / (1 + t / 2), 0.2),
}


@pytest.mark.parametrize("name", CONVEX)
def test_sgd_reaches_the_optimum_of_a_convex_problem(name):
    penalty, shrink, strength = CONVEX[name]
    model, kernel = make_model(keras.optimizers.SGD(0.2), steps_per_execution=100)
    train_on_all(model, [Proximal(penalty)])
    wanted = optimum(shrink, strength)
    np.testing.assert_allclose(kernel.numpy(), wanted, atol=1e-5)
    assert 0 < np.count_nonzero(wanted) < wanted.size
    np.testing.assert_array_equal(kernel.numpy() == 0, wanted == 0)


def test_preconditioned_adam_reaches_the_lasso_and_decoupled_does_not():
    rate = keras.optimizers.schedules.CosineDecay(0.02, 3000)
    distance = {}
    for scaling in ("preconditioned", "decoupled"):
        model, kernel = make_model(keras.optimizers.Adam(rate), steps_per_execution=100)
        train_on_all(model, [Proximal(L1(0.2), scaling=scaling)], steps=3000)
        distance[scaling] = np.abs(kernel.numpy() - optimum(soft, 0.2)).max()
    assert distance["preconditioned"] < 1e-4
    assert distance["decoupled"] > 1e-2


def test_momentum_divides_the_strength_as_stated():
    model, kernel = make_model(keras.optimizers.SGD(0.02, momentum=0.9), steps_per_execution=100)
    train_on_all(model, [Proximal(L1(0.2 / (1 - 0.9)))], steps=1500)
    np.testing.assert_allclose(kernel.numpy(), optimum(soft, 0.2), atol=1e-5)


def test_a_subgradient_with_adam_gives_no_zero_and_proximal_does():
    model, kernel = make_model(keras.optimizers.Adam(0.01), steps_per_execution=100)
    handle = attach(model, L1(0.5))
    train_on_all(model, [handle])
    assert np.count_nonzero(kernel.numpy()) == kernel.numpy().size
    assert np.abs(kernel.numpy()).min() < 1e-2  # it did pull
    detach(handle)
    history = train_on_all(model, [Proximal(L1(0.5))]).history
    assert np.mean(kernel.numpy() == 0) > 0.4
    assert history["sparsity"] == [np.mean(kernel.numpy() == 0)]


def test_the_ordered_prox_runs_inside_the_compiled_step():
    model, kernel = make_model(keras.optimizers.SGD(0.1), jit_compile=True)
    w = kernel.numpy()
    penalty = OrderedL1(0.3)
    model.fit(X * 0, Y, batch_size=32, verbose=0, callbacks=[Proximal(penalty)])
    for _ in range(2):
        w = penalty.prox(w, 0.1).numpy()
    np.testing.assert_allclose(kernel.numpy(), w, atol=1e-6)


def test_the_strength_follows_a_schedule_by_real_updates():
    model, kernel = make_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    model.fit(X * 0, Y, batch_size=8, verbose=0)
    before = kernel.numpy()
    proximal = Proximal(L1(lambda step: 0.1 * step))
    logs = model.fit(X * 0, Y, batch_size=8, verbose=0, callbacks=[proximal]).history
    np.testing.assert_allclose(kernel.numpy(), soft(before, 0.1 * 0.1 * (0 + 1 + 2 + 3)), atol=1e-6)
    np.testing.assert_allclose(logs["strength/l1"], [0.4], rtol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([keras.layers.Conv1D(4, 3), keras.layers.BatchNormalization()], name="body")
        self.head = keras.layers.Dense(OUT)

    def call(self, x, training=False):
        return self.head(keras.ops.mean(self.body(x[..., None], training=training), axis=1))


def test_a_subclassed_model_that_fit_builds_and_chosen_layers():
    model = Subclassed()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    proximal = Proximal(GroupLasso(20.0), layers=["body"])
    model.fit(X, Y, batch_size=8, verbose=0, epochs=2, callbacks=[proximal])
    assert [view.layer for view in proximal.kernels] == [model.body.layers[0]]
    assert not model.body.layers[0].kernel.numpy().any()
    assert model.head.kernel.numpy().all()


def test_batch_norm_scales_become_zero_exactly():
    model = Subclassed()
    model(X)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    proximal = Proximal(BatchNormScale(20.0))
    model.fit(X, Y, batch_size=8, verbose=0, epochs=2, callbacks=[proximal])
    assert not model.body.layers[1].gamma.numpy().any()
    assert model.body.layers[0].kernel.numpy().all()


def test_what_an_interrupted_fit_left_does_not_act_twice():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model, kernel = make_model(keras.optimizers.SGD(0.05))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X * 0, Y, batch_size=8, verbose=0, callbacks=[Proximal(L1(0.7)), Stop()])
    before = kernel.numpy()
    model.fit(X * 0, Y, batch_size=8, verbose=0, callbacks=[Proximal(L1(0.7))])
    np.testing.assert_allclose(kernel.numpy(), soft(before, 8 * 0.05 * 0.7), atol=1e-6)


def test_two_at_once_on_different_layers():
    inputs = keras.Input((IN,))
    hidden = keras.layers.Dense(4, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(OUT, name="b")(hidden))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    a, b = model.get_layer("a").kernel, model.get_layer("b").kernel
    before = a.numpy(), b.numpy()
    both = [Proximal(L1(1.0), layers=["a"]), Proximal(L1(2.0), layers=["b"])]
    logs = model.fit(X * 0, Y * 0, batch_size=8, verbose=0, callbacks=both).history
    np.testing.assert_allclose(a.numpy(), soft(before[0], 0.08), atol=1e-6)
    np.testing.assert_allclose(b.numpy(), soft(before[1], 0.16), atol=1e-6)
    np.testing.assert_allclose(logs["penalty/l1"][0], np.abs(a.numpy()).sum() + 2 * np.abs(b.numpy()).sum(), rtol=1e-5)


def test_what_cannot_work_is_refused():
    with pytest.raises(NotImplementedError, match="HoyerSquare has no proximal operator in closed form"):
        Proximal(HoyerSquare())
    with pytest.raises(ValueError, match="Did you mean 'decoupled'"):
        Proximal("l1", scaling="decouple")
    with pytest.raises(ValueError, match="GroupLasso has no proximal"):
        Proximal("group_lasso", scaling="preconditioned")
    with pytest.raises(TypeError, match="A regularizer must be one of"):
        Proximal(keras.regularizers.L1(0.1))
    model, _ = make_model(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="needs an optimizer that keeps a second moment"):
        model.fit(X, Y, verbose=0, callbacks=[Proximal("l1", scaling="preconditioned")])
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="There is no layer 'dens' .* Did you mean 'dense'"):
        model.fit(X, Y, verbose=0, callbacks=[Proximal("l1", layers=["dens"])])
    with pytest.raises(ValueError, match="this model has no weight that BatchNormScale can be on"):
        model.fit(X, Y, verbose=0, callbacks=[Proximal("batch_norm_scale")])
    averaging, _ = make_model(keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="use_ema=False"):
        averaging.fit(X, Y, verbose=0, callbacks=[Proximal("l1")])
