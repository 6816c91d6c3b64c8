"""Learned ranges and percentiles against their papers' formulas in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from kdopt.quantization.learned_ranges import LearnedStepAndOffset, LearnedStepRange, ParameterizedClipping
from kdopt.quantization.observers import OBSERVERS, Percentile

X = np.random.default_rng(5).normal(0.3, 1.0, (40, 9)).astype("float32")
UPSTREAM = np.random.default_rng(6).normal(size=X.shape).astype("float32")


def trained(observer, pair, positive, x=X):
    """(rounded, gradient of the pair, gradient of x)."""
    held, given = tf.Variable(pair), tf.Variable(x)
    with tf.GradientTape() as tape:
        low, high = observer.limits(held, positive, 9)
        made = observer.quantize(given, low, high)
        loss = tf.reduce_sum(made * UPSTREAM)
    by_pair, by_x = tape.gradient(loss, [held, given])
    return np.asarray(made), np.asarray(by_pair), np.asarray(by_x)


@pytest.mark.parametrize("positive", [True, False])
def test_lsq_has_the_papers_values_and_gradient(positive):
    x = np.maximum(X, 0) if positive else X
    least, most = (0, 255) if positive else (-128, 127)
    high = np.float32(1.5)
    step = high / most
    low = np.float32(0 if positive else -0.1)
    made, by_pair, by_x = trained(LearnedStepRange(), np.array([low, high]), positive, x)
    ratio = x / step
    np.testing.assert_allclose(made, np.clip(np.round(ratio), least, most) * step, atol=1e-5)
    inside = (ratio > least) & (ratio < most)
    np.testing.assert_allclose(by_x[np.abs(ratio) > 1e-3], (UPSTREAM * inside)[np.abs(ratio) > 1e-3], atol=1e-6)
    slope = np.where(inside, np.round(ratio) - ratio, np.where(ratio >= most, most, least))
    expected = (UPSTREAM * slope).sum() / np.sqrt(9 * most)
    np.testing.assert_allclose(by_pair[1] / most, expected, rtol=1e-3, atol=1e-3)


def test_lsq_plus_moves_both_limits():
    low, high = np.float32(-0.7), np.float32(1.5)
    made, by_pair, _ = trained(LearnedStepAndOffset(), np.array([low, high]), False)
    step = (high - low) / 255
    zero = np.round(-low / step)
    q = np.clip(np.round(X / step) + zero, 0, 255)
    np.testing.assert_allclose(made, (q - zero) * step, atol=1e-5)
    raw = np.round(X / step) + zero
    # d/dstep and d/dzero by the chain rule, then d/dlow and d/dhigh; the scale of both is 255^2 / sqrt(9 * 255).
    by_step = np.where(raw < 0, -zero, np.where(raw > 255, 255 - zero, np.round(X / step) - X / step))
    by_zero = np.where((raw < 0) | (raw > 255), -step, 0.0)
    ds, dz = (UPSTREAM * by_step).sum(), (UPSTREAM * by_zero).sum()
    scale = 255**2 / np.sqrt(9 * 255)
    np.testing.assert_allclose(by_pair[1], scale * (ds / 255 + dz * low / step**2 / 255), rtol=2e-3)
    np.testing.assert_allclose(by_pair[0], scale * (-ds / 255 + dz * (-1 / step - low / step**2 / 255)), rtol=2e-3)


def test_pact_learns_from_what_it_clips():
    x = np.maximum(X, 0)
    _, by_pair, _ = trained(ParameterizedClipping(), np.array([0.0, 1.2], "float32"), True, x)
    np.testing.assert_allclose(by_pair[1], UPSTREAM[x > 1.2].sum(), rtol=1e-4)
    penalty = ParameterizedClipping(decay=0.1).penalty(tf.constant([[0.0, 2.0], [-1.0, 3.0]]))
    np.testing.assert_allclose(penalty, 0.1 * (4 + 1 + 9), rtol=1e-6)
    assert ParameterizedClipping(decay=0).penalty(tf.constant([[0.0, 2.0]])) is None


def test_percentiles_of_a_batch():
    observer = Percentile(q=95)
    np.testing.assert_allclose(observer.limits_of(X), np.percentile(X, [5, 95]), rtol=1e-4)
    np.testing.assert_allclose(observer.limits_of(np.abs(X)), [0, np.percentile(np.abs(X), 95)], rtol=1e-4)
    with pytest.raises(ValueError, match="percentile"):
        Percentile(q=50)


@pytest.mark.parametrize("name", OBSERVERS.names())
def test_observers_come_back_from_their_config(name):
    observer = OBSERVERS.get(name)
    assert type(observer).from_config(observer.get_config()).get_config() == observer.get_config()
