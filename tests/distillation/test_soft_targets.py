"""The math of soft targets, against NumPy and against the formulas of the paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import hinton, softmax

from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets, soft_targets


def logits(shape=(5, 4), seed=0, scale=5.0):
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=shape) * scale).astype("float32") for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 7)])
def test_softmax_equals_the_numpy_oracle(temperature, shape):
    teacher, student = logits(shape)
    got = soft_targets(teacher, student, temperature)
    assert got.shape == shape[:-1]
    np.testing.assert_allclose(got, hinton(teacher, student, temperature), rtol=2e-5, atol=3e-7 * temperature**2)


def test_sigmoid_is_the_two_class_softmax_of_each_unit_averaged():
    teacher, student = logits()
    pairs = [np.stack([z, np.zeros_like(z)], axis=-1) for z in (teacher, student)]
    expected = hinton(*pairs, 4.0).mean(axis=-1)
    np.testing.assert_allclose(soft_targets(teacher, student, 4.0, "sigmoid"), expected, rtol=2e-5, atol=2e-6)


def test_gradient_is_temperature_times_the_difference_of_probabilities():
    teacher, student = logits()
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(soft_targets(teacher, variable, 4.0))
    expected = 4.0 * (softmax(student / 4.0) - softmax(teacher / 4.0))
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_extreme_logits_stay_finite(activation):
    big = np.array([[65504.0, -65504.0, 0.0]], "float32")
    variable = tf.Variable(-big)
    with tf.GradientTape() as tape:
        loss = soft_targets(big, variable, 1.0, activation)
    gradient = tape.gradient(loss, variable).numpy()
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0.3  # not silenced either
    np.testing.assert_allclose(loss, [131008.0 if activation == "softmax" else 131008.0 / 3], rtol=1e-6)


def test_the_documented_example():
    loss = SoftTargets(temperature=2.0)
    got = loss.compute_loss(np.array([[2.0, 0.0]], "float32"), np.array([[0.0, 0.0]], "float32"))
    np.testing.assert_allclose(got, [0.4438], atol=1e-4)
    np.testing.assert_allclose(got, hinton([[2.0, 0.0]], [[0.0, 0.0]], 2.0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "4", None, True])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number > 0"):
        SoftTargets(temperature)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="'softmax', 'sigmoid'"):
        SoftTargets(activation="softmx")
    with pytest.raises(TypeError, match="`output`"):
        SoftTargets(output=1.5)
    with pytest.raises(TypeError, match="`name`"):
        SoftTargets(name="")
    with pytest.raises(NotImplementedError, match="compute_loss"):
        DistillationLoss().compute_loss(None, None)


def test_config_and_registry():
    loss = SoftTargets(3.0, activation="sigmoid", output="a", name="kd")
    again = DISTILLATION_LOSSES.get(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == {"temperature": 3.0, "activation": "sigmoid", "output": "a", "name": "kd"}
    assert DISTILLATION_LOSSES.get("soft_targets").temperature == 4.0
    with pytest.raises(ValueError, match="Did you mean 'soft_targets'"):
        DISTILLATION_LOSSES.get("soft_target")
