"""Penalties on channels that layers share, against NumPy on slices written down by hand."""

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.pruning.structural import prune_channels
from kdopt.regularizers import (
    BatchNormScale,
    GroupLasso,
    OrderedL1,
    Proximal,
    SparseGroupLasso,
    SparseRegularized,
    attach,
    detach,
)

X = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
Y = np.zeros((32, 3), "float32")
# The 4 channels of the residual: what makes and follows them, and the axis on which they are. Then the 5 inside it.
TRUNK = [("stem", "kernel", 3), ("norm", "gamma", 0), ("norm", "beta", 0), ("back", "kernel", 3)]
BRANCH = [("into", "kernel", 3), ("into", "bias", 0), ("depthwise", "kernel", 2), ("depthwise", "bias", 0)]


def make_model(optimizer="sgd", **compile_args):
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    trunk = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    h = layers.Conv2D(5, 1, name="into")(trunk)
    h = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h)
    h = layers.Add()([trunk, layers.Conv2D(4, 1, use_bias=False, name="back")(h)])
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(h)))
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * np.linspace(0.1, 0.6, weight.shape[-1]))
    model.compile(optimizer, "mse", **compile_args)
    return model


def slices(model, parts):
    """For each channel the weights of all parts, one array."""
    values = [
        np.moveaxis(getattr(model.get_layer(layer), name).numpy().astype("float64"), axis, 0)
        for layer, name, axis in parts
    ]
    return [np.concatenate([value[c].reshape(-1) for value in values]) for c in range(len(values[0]))]


def lasso(model, scale=True):
    groups = slices(model, TRUNK) + slices(model, BRANCH)
    return sum((np.sqrt(group.size) if scale else 1) * np.linalg.norm(group) for group in groups)


@pytest.mark.parametrize("scale", [True, False])
def test_the_value_is_that_of_all_that_makes_a_channel(scale):
    model = make_model()
    handle = attach(model, GroupLasso(0.1, groups="coupled", scale_by_size=scale))
    assert handle.value() == pytest.approx(0.1 * lasso(model, scale), rel=1e-5)
    assert [(skip.name, skip.reason) for skip in handle.skipped] == [("out", "output 'out' of the model")]
    with_penalty = model.evaluate(X, Y, verbose=0)
    detach(handle)
    assert with_penalty == pytest.approx(model.evaluate(X, Y, verbose=0) + 0.1 * lasso(model, scale), rel=1e-4)


def test_sparse_group_lasso_counts_single_weights_too():
    model = make_model()
    single = sum(np.abs(group).sum() for group in slices(model, TRUNK) + slices(model, BRANCH))
    value = attach(model, SparseGroupLasso(0.1, 0.3, groups="coupled")).value()
    assert value == pytest.approx(0.1 * (0.3 * single + 0.7 * lasso(model)), rel=1e-5)


def test_the_gammas_of_a_channel_are_one_group():
    x = keras.Input((4,))
    h = layers.BatchNormalization(name="one")(layers.Dense(3)(x))
    h = layers.Add()([h, layers.BatchNormalization(name="two")(layers.Dense(3)(h))])
    model = keras.Model(x, layers.Dense(2)(h))
    one, two = (model.get_layer(name).gamma for name in ("one", "two"))
    one.assign([3.0, 1.0, 0.0])
    two.assign([4.0, 0.0, 0.0])
    assert attach(model, BatchNormScale(0.5, groups="coupled")).value() == pytest.approx(0.5 * (5 + 1 + 0))


def test_training_pulls_along_the_gradient():
    """Inputs and targets of zero leave the penalty alone: the stem's kernel moves along its own term."""
    model = make_model(keras.optimizers.SGD(0.01))
    for name in ("into", "depthwise", "out"):
        model.get_layer(name).bias.assign(model.get_layer(name).bias * 0)
    model.get_layer("norm").beta.assign(np.zeros(4))
    before, groups = model.get_layer("stem").kernel.numpy(), slices(model, TRUNK)
    norms = np.array([np.linalg.norm(group) for group in groups])
    handle = attach(model, GroupLasso(0.1, groups="coupled"))
    model.fit(X * 0, Y, batch_size=32, verbose=0)
    detach(handle)
    expected = before * (1 - 0.01 * 0.1 * np.sqrt(groups[0].size) / norms)
    np.testing.assert_allclose(model.get_layer("stem").kernel.numpy(), expected, rtol=1e-4)


def test_gradients_at_zero_are_finite():
    model = make_model()
    for weight in model.trainable_weights:
        weight.assign(np.zeros(weight.shape))
    handle = attach(model, GroupLasso(0.1, groups="coupled"))
    model.fit(X, Y, verbose=0)
    detach(handle)
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)


SETTINGS = {
    "plain": {},
    "eager": {"run_eagerly": True},
    "jit_compile": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 4},
}


def check_shrinking(model, updates):
    """The loss is constant, so that all the weights feel are the thresholds: eta * strength * sqrt(size) an update."""
    before = slices(model, TRUNK) + slices(model, BRANCH)
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Proximal(GroupLasso(1.7, groups="coupled"))])
    gone = 0
    for old, new in zip(before, slices(model, TRUNK) + slices(model, BRANCH), strict=True):
        left = max(np.linalg.norm(old) - updates * 0.05 * 1.7 * np.sqrt(old.size), 0)
        np.testing.assert_allclose(new, old * left / np.linalg.norm(old), atol=1e-6)
        gone += left == 0
    assert updates < 4 or 0 < gone < len(before)  # or the test shows less than it should
    after = slices(model, TRUNK)
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(np.concatenate(slices(model, TRUNK)), np.concatenate(after))  # the callback is gone


def constant(y_true, y_pred):
    return 0 * y_pred


_SLOW = ("jit_compile", "steps_per_execution")


@pytest.mark.parametrize(
    "setting", [pytest.param(one, marks=[pytest.mark.slow] * (one in _SLOW)) for one in (*SETTINGS, "accumulation")]
)
def test_a_channel_shrinks_as_a_whole_once_for_each_update(setting):
    args = {"gradient_accumulation_steps": 2} if setting == "accumulation" else {}
    model = make_model(keras.optimizers.SGD(0.05, **args))
    model.compile(model.optimizer, constant, **SETTINGS.get(setting, {}))
    check_shrinking(model, updates=2 if setting == "accumulation" else 4)


def check_gradient_then_shrinking(model):
    """The norms are those after the optimizer has moved all parts, not of some that wait for their update."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(X, training=True) - Y))
    moved = make_model()
    moved.set_weights(model.get_weights())
    for target, gradient in zip(moved.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True):
        target.assign(target - 2.0 * gradient)
    model.set_weights(make_model().get_weights())  # also the statistics that the pass above has moved
    model.fit(X, Y, batch_size=32, verbose=0, callbacks=[Proximal(GroupLasso(0.02, groups="coupled"))])
    for parts in (TRUNK, BRANCH):
        for old, new in zip(slices(moved, parts), slices(model, parts), strict=True):
            left = max(np.linalg.norm(old) - 2.0 * 0.02 * np.sqrt(old.size), 0)
            np.testing.assert_allclose(new, old * left / np.linalg.norm(old), atol=1e-5)


def test_a_channel_shrinks_after_all_its_parts_have_moved():
    model = make_model()
    model.compile(keras.optimizers.SGD(2.0), "mse")
    check_gradient_then_shrinking(model)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras")
def test_a_channel_waits_for_the_last_optimizer():
    model = make_model()
    # The first optimizer is that of the first layer: gamma and beta, in the middle of the model, are updated last.
    parts = {True: keras.optimizers.SGD(2.0), False: keras.optimizers.SGD(2.0)}
    model.compile(keras.optimizers.MultiOptimizer(lambda v: parts["norm" in v.path]), "mse")
    check_gradient_then_shrinking(model)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras")
def test_several_optimizers_update_one_channel():
    """The last one to be updated does the step, whatever the order of the layers."""
    model = make_model()
    parts = {True: keras.optimizers.SGD(0.05), False: keras.optimizers.SGD(0.05)}
    model.compile(keras.optimizers.MultiOptimizer(lambda v: parts["norm" in v.path]), constant)
    check_shrinking(model, updates=4)


@pytest.mark.slow
def test_two_replicas():
    code = f"""
    import sys
    import tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_coupling import check_shrinking, constant, keras, make_model
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_model()
        model.compile(keras.optimizers.SGD(0.05), constant)
    check_shrinking(model, updates=4)
    stem = model.get_layer("stem").kernel
    assert all((value.numpy() == stem.numpy()).all() for value in stem.value.values)
    print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]


def test_shrinking_after_training_loses_nothing():
    model = make_model(keras.optimizers.Adam(0.01))
    model.fit(X, Y, batch_size=8, epochs=10, verbose=0, callbacks=[Proximal(GroupLasso(1.0, groups="coupled"))])
    before = model.predict(X, verbose=0)
    small, plan = prune_channels(model, criterion="mask")
    assert sum(layer.before - layer.after for layer in plan.layers) > 0
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(small.predict(X, verbose=0), before, atol=1e-6)


def test_a_penalty_goes_through_its_config():
    for penalty in (GroupLasso(0.1, groups="coupled"), BatchNormScale(0.1, groups="coupled")):
        again = type(penalty).from_config(penalty.get_config())
        assert again.groups == "coupled"
        assert again.get_config() == penalty.get_config()


def test_what_cannot_see_the_whole_model_is_refused():
    with pytest.raises(ValueError, match="needs the whole model: attach"):
        GroupLasso(groups="coupled")(np.ones((2, 2), "float32"))
    with pytest.raises(ValueError, match="needs the whole model: attach"):
        SparseRegularized(layers.Dense(2), GroupLasso(groups="coupled")).build((None, 3))
    with pytest.raises(ValueError, match="groups"):
        OrderedL1(0.1, groups="coupled")
    with pytest.raises(ValueError, match="block_shape"):
        GroupLasso(groups="coupled", block_shape=(1, 4))
    with pytest.raises(ValueError, match="scaling='decoupled'"):
        Proximal(BatchNormScale(groups="coupled"), scaling="preconditioned")
    with pytest.raises(ValueError, match="no weight that GroupLasso can be on.*an output"):
        attach(keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")]), GroupLasso(groups="coupled"))
