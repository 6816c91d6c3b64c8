"""What every registered distillation loss keeps: a new member inherits these tests."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DISTILLATION_LOSSES

LOSSES = DISTILLATION_LOSSES.names()
ACTIVATIONS = ("softmax", "sigmoid")


def logits(shape=(6, 4), seed=0):
    generator = np.random.default_rng(seed)
    return [(3 * generator.normal(size=shape)).astype("float32") for _ in range(2)]


def linear_model(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_one_finite_float32_value_a_sample(name, shape, activation):
    loss = DISTILLATION_LOSSES.get(name)
    teacher, student = logits(shape)
    values = loss.compute_loss(teacher, student, activation)
    assert values.shape == shape[:-1]
    assert values.dtype == "float32"
    assert np.isfinite(values).all()
    # A sample's value is its own: it does not change with who else is in the batch.
    alone = loss.compute_loss(teacher[:1], student[:1], activation)
    np.testing.assert_allclose(values[:1], alone, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_least_when_the_student_is_the_teacher(name, activation):
    loss = DISTILLATION_LOSSES.get(name)
    teacher, other = logits()
    student = tf.Variable(teacher)
    with tf.GradientTape() as tape:
        least = loss.compute_loss(teacher, student, activation)
    np.testing.assert_allclose(tape.gradient(least, student), np.zeros_like(teacher), atol=1e-4)
    for step in (0.1, 1.0):
        moved = loss.compute_loss(teacher, teacher + step * (other - teacher), activation)
        assert np.all(moved > least)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_descends_and_reaches_the_student_only(name):
    student, teacher = linear_model(1), linear_model(2)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=name, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.01))
    x = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
    with tf.GradientTape() as tape:
        loss = distiller.compute_loss(x, y_pred=distiller(x))
    gradients = tape.gradient(loss, [v.value for v in (*student.trainable_variables, *teacher.trainable_variables)])
    assert all(np.abs(g).max() > 0 for g in gradients[:2])
    assert gradients[2:] == [None, None]
    losses = distiller.fit(x, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert np.all(np.diff(losses) < 0)


@pytest.mark.parametrize("name", LOSSES)
def test_sample_weight_zero_leaves_a_sample_out(name):
    student, teacher = linear_model(1), linear_model(2)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=name, student_loss_weight=0.0)
    distiller.compile("sgd")
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    weight = np.array([1, 1, 1, 1, 0, 0, 0, 0], "float32")
    y = np.zeros(8)
    whole = distiller.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0, return_dict=True)["loss"]
    half = distiller.evaluate(x[:4], y[:4], batch_size=8, verbose=0, return_dict=True)["loss"]
    assert whole == pytest.approx(half / 2, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_round_trip(name):
    loss = DISTILLATION_LOSSES.get(name)
    again = DISTILLATION_LOSSES.get(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    named = type(loss).from_config({**loss.get_config(), "name": "mine", "output": 0, "activation": "sigmoid"})
    assert (named.name, named.output, named.activation) == ("mine", 0, "sigmoid")
    assert again.name == name
