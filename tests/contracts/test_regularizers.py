"""Every registered penalty keeps these promises."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdopt.regularizers import PENALTIES
from kdopt.schedules import Constant

# Loops where the cases are many and short: clearing the session after a test takes longer than they do.
SHAPES = [(7,), (5, 4), (3, 3, 2, 4), (3, 3, 6, 1), (2, 2, 2, 3, 3)]
WITH_PROX = [name for name in PENALTIES.names() if PENALTIES.get(name).has_prox]


def gradient(penalty, weights):
    weights = tf.Variable(weights)
    with tf.GradientTape() as tape:
        value = penalty(weights)
    return value, tape.gradient(value, weights).numpy()


@pytest.mark.parametrize("name", PENALTIES.names())
def test_round_trip(name):
    for strength in (1e-4, 0.25, Constant(0.3)):
        penalty = type(PENALTIES.get(name))(strength=strength)
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(penalty)))
        again = PENALTIES.get(config)
        assert type(again) is type(penalty)
        assert again.get_config() == penalty.get_config()
        assert float(again.strength) == pytest.approx(0.3 if callable(strength) else strength)


def test_its_name_is_the_registered_one():
    for name in PENALTIES.names():
        assert PENALTIES.get(name).name == name


@pytest.mark.parametrize("name", PENALTIES.names())
def test_scalar_float32_not_negative_and_finite(name):
    penalty = type(PENALTIES.get(name))(0.3)
    for shape, dtype in itertools.product(SHAPES, ("float32", "float16")):
        weights = np.random.default_rng(0).normal(size=shape).astype("float32")
        weights.flat[0] = 0
        value, slope = gradient(penalty, weights.astype(dtype))
        assert value.dtype == "float32"
        assert value.shape == ()
        assert value > 0
        assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", PENALTIES.names())
def test_zero_weights_cost_nothing_and_have_a_finite_gradient(name):
    penalty = type(PENALTIES.get(name))(0.3)
    for shape in SHAPES:
        value, slope = gradient(penalty, np.zeros(shape, "float32"))
        assert value == 0
        assert np.all(np.isfinite(slope))
        _, slope = gradient(penalty, np.full(shape, 1e-30, "float32"))
        assert np.all(np.isfinite(slope))


def test_the_value_is_proportional_to_the_strength():
    weights = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    for kind in (type(PENALTIES.get(name)) for name in PENALTIES.names()):
        assert float(kind(0.0)(weights)) == 0
        np.testing.assert_allclose(float(kind(0.6)(weights)), 2 * float(kind(0.3)(weights)), rtol=1e-6)


def test_a_strength_that_is_none_is_refused():
    for name, strength in itertools.product(
        PENALTIES.names(), [-0.1, float("nan"), float("inf"), "strong", None, True]
    ):
        with pytest.raises(ValueError, match="`strength` must be a number >= 0"):
            type(PENALTIES.get(name))(strength)


@pytest.mark.parametrize("name", WITH_PROX)
def test_prox_minimizes(name):
    """No point nearby, none far off, and no point with some weights or all of them at zero is better."""
    for shape in [(7,), (5, 4), (3, 3, 2, 4)]:
        check_prox(name, shape)


def check_prox(name, shape):
    rng = np.random.default_rng(1)
    penalty, t = type(PENALTIES.get(name))(0.3), 0.7
    weights = rng.normal(size=shape)  # float64: differences of 1e-9 count

    price = tf.function(penalty, input_signature=[tf.TensorSpec(shape, "float64")])

    def objective(x):
        return 0.5 * np.sum((x - weights) ** 2) + t * float(price(x))

    x = penalty.prox(weights, t).numpy()
    assert x.shape == shape
    assert x.dtype == weights.dtype
    best = objective(x)
    for scale in (1e-4, 1e-2, 1e-1, 1.0):
        for _ in range(10):
            noise = rng.normal(size=shape) * scale
            assert objective(x + noise) >= best - 1e-9
            assert objective(x + noise * (x != 0)) >= best - 1e-9
            assert objective(x + noise * (rng.random(shape) < 0.1)) >= best - 1e-9
    assert objective(weights) >= best
    assert objective(np.zeros(shape)) >= best - 1e-9
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1):
        assert objective(x * factor) >= best - 1e-9


@pytest.mark.parametrize("name", WITH_PROX)
def test_prox_keeps_zeros_makes_zeros_and_does_nothing_for_no_step(name):
    penalty = type(PENALTIES.get(name))(1.0)
    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype("float32")
    assert not penalty.prox(np.zeros_like(weights), 0.5).numpy().any()
    np.testing.assert_allclose(penalty.prox(weights, 0.0), weights, rtol=1e-5)
    if name != "l1l2":  # its l1 part alone makes zeros
        assert not penalty.prox(weights, 1e3).numpy().any()
    assert penalty.prox(weights.astype("float16"), 0.1).dtype == "float16"


@pytest.mark.parametrize("name", sorted(set(PENALTIES.names()) - set(WITH_PROX)))
def test_without_a_prox_it_says_which_have_one(name):
    with pytest.raises(NotImplementedError, match="group_lasso, l1, l1l2"):
        PENALTIES.get(name).prox(np.zeros(3, "float32"), 0.1)


@pytest.mark.parametrize("name", PENALTIES.names())
def test_in_a_layer_it_saves_and_loads(name, tmp_path):
    penalty = type(PENALTIES.get(name))(0.5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer=penalty)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(float(again.losses[0]), float(penalty(model.layers[0].kernel)), rtol=1e-6)


def test_names():
    wanted = {
        "batch_norm_scale",
        "group_lasso",
        "hoyer_square",
        "l1",
        "l1l2",
        "ordered_l1",
        "sparse_group_lasso",
        "transformed_l1",
    }
    assert set(PENALTIES.names()) >= wanted
    with pytest.raises(ValueError, match="Did you mean 'group_lasso'"):
        PENALTIES.get("grouplasso")


def test_the_criterion_of_the_same_name_is_another_class():
    from kdopt.criteria import CRITERIA

    for registry in (CRITERIA, PENALTIES):
        member = registry.get("l1")
        assert type(registry.get(keras.saving.serialize_keras_object(member))) is type(member)
