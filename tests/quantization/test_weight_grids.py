"""Grids of weights against their papers' formulas in NumPy."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kdopt.quantization.weight_grids import WEIGHT_GRIDS, Binary, LearnedStep, PowerOfTwo, Ternary, Uniform, grid_of

WEIGHTS = np.random.default_rng(3).normal(0, 0.3, (5, 4, 6)).astype("float32")


def by_channel(grid, weights=WEIGHTS, axes=(-1,), learned=None):
    values, step = grid.rounded(tf.constant(weights), axes, learned)
    return np.asarray(values), np.asarray(step)


@pytest.mark.parametrize("name", WEIGHT_GRIDS.names())
@pytest.mark.parametrize("axes", [(-1,), (0, 2), ()])
def test_values_are_few_integers_times_a_step(name, axes):
    grid = WEIGHT_GRIDS.get(name)
    learned = tf.constant(np.full((1, 1, 1), 0.5, "float32")) if grid.learned else None
    values, step = by_channel(grid, axes=axes, learned=learned)
    if not grid.learned:
        assert step.shape == tuple(size if axis in {a % 3 for a in axes} else 1 for axis, size in enumerate((5, 4, 6)))
    integers = values / step
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)
    assert np.abs(integers).max() <= 127.001
    assert type(grid).from_config(grid.get_config()).get_config() == grid.get_config()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_is_the_nearest_of_all(bits):
    values, _ = by_channel(Uniform(bits))
    for channel in range(6):
        w, most = WEIGHTS[..., channel], 2 ** (bits - 1) - 1
        levels = np.arange(-most, most + 1) * np.abs(w).max() / most
        nearest = levels[np.abs(w[..., None] - levels).argmin(-1)]
        np.testing.assert_allclose(values[..., channel], nearest, atol=1e-6)


def test_ternary_is_the_papers():
    values, step = by_channel(Ternary())
    for channel in range(6):
        w = WEIGHTS[..., channel]
        delta = 0.7 * np.abs(w).mean()
        alpha = np.abs(w)[np.abs(w) > delta].mean()
        np.testing.assert_allclose(step[0, 0, channel], alpha, rtol=1e-6)
        np.testing.assert_allclose(
            values[..., channel], np.where(w > delta, alpha, np.where(w < -delta, -alpha, 0)), 1e-6
        )


def test_binary_is_the_papers_and_zero_is_positive():
    weights = WEIGHTS.copy()
    weights[0, 0, 0] = 0
    values, _ = by_channel(Binary(), weights)
    alpha = np.abs(weights).mean(axis=(0, 1))
    np.testing.assert_allclose(values, np.where(weights < 0, -alpha, alpha), rtol=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
def test_powers_of_two_are_the_papers(bits):
    values, _ = by_channel(PowerOfTwo(bits))
    for channel in range(6):
        w = WEIGHTS[..., channel]
        n1 = int(np.floor(np.log2(4 * np.abs(w).max() / 3)))
        n2 = n1 + 1 - 2 ** (bits - 1) // 2
        levels = [0.0, *(2.0**n for n in range(n2, n1 + 1))]
        for value, got in zip(w.ravel(), values[..., channel].ravel(), strict=True):
            # Equation 4: beta where (alpha + beta) / 2 <= |w| < 3 beta / 2, for neighbors alpha < beta.
            pairs = itertools.pairwise(levels)
            chosen = [b for a, b in pairs if (a + b) / 2 <= abs(value) < 1.5 * b]
            expected = np.sign(value) * max(chosen, default=0.0)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_gradient_of_a_learned_step_is_the_papers():
    most, weights = 7, WEIGHTS
    step = np.array([0.02, 0.05, 0.08, 0.1, 0.2, 0.3], "float32")
    limit = tf.Variable((step * most).reshape(1, 1, 6))
    upstream = np.random.default_rng(0).normal(size=weights.shape).astype("float32")
    held = tf.Variable(weights)
    with tf.GradientTape() as tape:
        values, _ = LearnedStep(4).rounded(held, (-1,), limit)
        loss = tf.reduce_sum(values * upstream)
    by_limit, by_weights = tape.gradient(loss, [limit, held])
    ratio = weights / step
    inside = np.abs(ratio) < most
    np.testing.assert_allclose(values, np.clip(np.round(ratio), -most, most) * step, atol=1e-6)
    np.testing.assert_allclose(by_weights, upstream * inside, atol=1e-6)
    slope = np.where(inside, np.round(ratio) - ratio, most * np.sign(ratio))
    gradient = (upstream * slope).sum(axis=(0, 1)) / np.sqrt(20 * most)
    # One step of SGD on the limit moves the step by what one on the step itself would.
    np.testing.assert_allclose(np.ravel(by_limit) / most, gradient, rtol=2e-4, atol=1e-5)


def test_learned_steps_start_at_the_papers_or_at_the_largest_weight():
    start = np.asarray(LearnedStep(4).step(tf.constant(WEIGHTS), (-1,))).ravel()
    papers = 2 * np.abs(WEIGHTS).mean(axis=(0, 1)) / np.sqrt(7)
    np.testing.assert_allclose(start, np.minimum(papers, np.abs(WEIGHTS).max(axis=(0, 1)) / 7), rtol=1e-6)


@pytest.mark.parametrize("bad", [1, 9, True, "unifrom", 4.0])
def test_unknown_grids_are_refused(bad):
    with pytest.raises((TypeError, ValueError)):
        grid_of(bad)


def test_five_bits_of_powers_of_two_do_not_fit_int8():
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        PowerOfTwo(5)
