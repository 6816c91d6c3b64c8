"""Losses on inner layers without a model around them, and gradients by differences, for the tests."""

import numpy as np
import tensorflow as tf
from keras import ops

from kdopt.core.recording import Attention, Recorded
from kdopt.distillation.taps import Tapped


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def many(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def tapped(shape, operation=None, name="tap", attends=False):
    after = (
        (shape[1], shape[-2] * shape[-1]) if attends else shape[1:]
    )  # an attention layer gives its heads side by side
    return Tapped(name, operation, 0, 1, (None, *after), attends)


def recorded(tensor, mask=None):
    """A call that returned this."""
    tensor = ops.convert_to_tensor(tensor)
    if mask is not None:
        tensor._keras_mask = ops.convert_to_tensor(mask)
    return Recorded(None, tensor)


def attending(packed, mask=None, causal=False):
    """A call of an attention layer; `packed` holds query, key and value: (batch, length, 3, heads, size)."""
    packed = ops.convert_to_tensor(packed)
    query, key, value = (packed[:, :, place] for place in range(3))
    return Recorded(None, packed, Attention(query, key, value, mask, causal))


def bound(loss, teacher, student, operation=None, attends=False):
    """The loss, built for features of these shapes."""
    loss.build(
        [tapped(np.shape(one), operation, attends=attends) for one in many(teacher)],
        [tapped(np.shape(one), attends=attends) for one in many(student)],
    )
    return loss


def values_of(loss, teacher, student, record=recorded):
    """The first of the values of a built loss."""
    return loss.compute([record(one) for one in many(teacher)], [record(one) for one in many(student)])[0]


def computed(loss, teacher, student, **options):
    """Values of a loss for one pair of features, as NumPy."""
    return np.asarray(values_of(bound(loss, teacher, student, **options), teacher, student))


def by_position(function, teacher, student):
    """A function of two vectors, called at every position in float64."""
    teacher, student = (np.asarray(one, "float64") for one in (teacher, student))
    found = np.empty(student.shape[:-1])
    for place in np.ndindex(found.shape):
        found[place] = function(teacher[place], student[place])
    return found


def gradient(function, x):
    """By automatic differentiation, of the sum of all values."""
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        total = ops.sum(function(variable.value()))
    return tape.gradient(total, variable).numpy()


def numeric_gradient(function, x, places, step):
    """By differences of fourth order at some places, of the sum of all values in float64.

    Args:
        function: Array -> values.
        x: Array; its dtype is kept.
        places: Indices into the flat array.
        step: Float; 1e-3 for a function in float64, about 3e-2 for one in float32.
    """

    def total(place, distance):
        moved = np.array(x)
        moved.reshape(-1)[place] += distance
        return np.sum(np.asarray(function(moved), "float64"))

    def slope(place):
        return sum(weight * total(place, count * step) for count, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)))

    return np.array([slope(place) for place in places]) / (12 * step)


def assert_gradient(function, oracle, x, rtol=1e-3, places=None, step=1e-3):
    """The gradient of `function`, in float32, is that of `oracle`, in float64 by differences."""
    found = gradient(function, x)
    assert np.isfinite(found).all()
    if places is None:
        places = np.random.default_rng(0).choice(found.size, size=min(8, found.size), replace=False)
    expected = numeric_gradient(oracle, np.asarray(x, "float64"), places, step)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found.reshape(-1)[places], expected, rtol=rtol, atol=rtol * scale)
