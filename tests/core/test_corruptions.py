"""Corruptions of images: their formulas, and what they leave as it is."""

import functools
import math

import numpy as np
import pytest

from kdopt.core.corruptions import blur, blur_kernel, brightness, contrast, corruptions, gaussian_noise

X = np.random.default_rng(0).random((6, 36, 32, 3)).astype("float32")
EVERY = {**corruptions(), "brightness": functools.partial(brightness, value_range=(0, 1))}


def test_noise_has_the_stated_deviation_and_is_white():
    gray = np.full((8, 64, 64, 3), 0.5, "float32")
    for severity in (0.5, 1, 2):
        noise = gaussian_noise(gray, severity, value_range=(0, 1)) - gray
        # 98,304 values: the standard error of the deviation is 0.23 %, of the mean 0.32 % of the deviation.
        assert noise.std() == pytest.approx(0.04 * severity, rel=0.01)
        assert abs(noise.mean()) < 0.012 * 0.04 * severity
        assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.015
    wide = gaussian_noise(gray * 255, 1, value_range=(0, 255)) - gray * 255
    assert wide.std() == pytest.approx(0.04 * 255, rel=0.01)


def test_noise_is_seeded_grows_with_severity_and_stays_in_range():
    one, two = gaussian_noise(X, 0.1, seed=3, value_range=(-9, 9)), gaussian_noise(X, 0.2, seed=3, value_range=(-9, 9))
    np.testing.assert_array_equal(one, gaussian_noise(X, 0.1, seed=3, value_range=(-9, 9)))
    np.testing.assert_allclose(two - X, 2 * (one - X), atol=1e-6)
    assert np.abs(one - gaussian_noise(X, 0.1, seed=4, value_range=(-9, 9))).max() > 0.1
    strong = gaussian_noise(X, 5)
    assert (strong.min(), strong.max()) == (X.min(), X.max())


def test_blur_of_an_impulse_is_the_kernel():
    image = np.zeros((1, 128, 160, 2))
    image[0, 64, 80, 1] = 3.0
    for severity, sigma in ((1, 0.8), (2.5, 2.0)):  # 0.4 * severity * sqrt(128 / 32)
        radius = math.ceil(4 * sigma)
        weights = [math.exp(-(a**2) / (2 * sigma**2)) for a in range(-radius, radius + 1)]
        expected = np.zeros_like(image)
        expected[0, 64 - radius : 65 + radius, 80 - radius : 81 + radius, 1] = (
            3 * np.outer(weights, weights) / sum(weights) ** 2
        )
        np.testing.assert_allclose(blur(image, severity), expected, atol=1e-12)


def test_blur_mirrors_at_the_border_and_keeps_the_mean():
    assert blur_kernel(0).tolist() == [1]
    a, b = blur_kernel(0.25)[:2]  # radius 1
    row = np.array([[1.0, 2, 4, 8]] * 8).reshape(1, 8, 4, 1)
    expected = [b + a + 2 * a, a + 2 * b + 4 * a, 2 * a + 4 * b + 8 * a, 4 * a + 8 * b + 8 * a]
    np.testing.assert_allclose(blur(row, 1.25 * 2**0.5)[0, 5, :, 0], expected, atol=1e-12)  # sigma = 0.25
    np.testing.assert_allclose(blur(X, 5).mean((1, 2)), X.mean((1, 2)), rtol=1e-5)
    assert blur(X, 5).std() < 0.4 * X.std()
    np.testing.assert_array_equal(blur(X, 1e-9), X)
    assert np.isfinite(blur(X, 500)).all()  # a radius beyond the image


def test_contrast_leaves_the_mean_and_scales_the_deviation():
    worse = contrast(X, 2)
    np.testing.assert_allclose(worse.mean((1, 2)), X.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(worse.std((1, 2)), 0.49 * X.std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(worse[2, 3, 4, 1], X[2, :, :, 1].mean() * 0.51 + 0.49 * X[2, 3, 4, 1], rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_contract(name, dtype):
    x = X.astype(dtype)
    before = x.copy()
    unchanged = EVERY[name](x, 0)
    np.testing.assert_array_equal(unchanged, x)
    assert not np.shares_memory(unchanged, x)
    changes = [np.abs(EVERY[name](x, severity).astype("float64") - x).mean() for severity in (1, 3, 5)]
    assert changes == sorted(changes)
    assert changes[0] > 1e-3
    worse = EVERY[name](x, 2)
    assert (worse.dtype, worse.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(worse, EVERY[name](x, 2))
    np.testing.assert_array_equal(x, before)
    alone = EVERY[name](x[:1], 2) if name != "gaussian_noise" else worse[:1]
    np.testing.assert_allclose(worse[:1], alone, rtol=1e-3)  # an image does not depend on the others
    for wrong in (float("nan"), -1, "3"):
        with pytest.raises(ValueError, match="`severity` must be a number >= 0"):
            EVERY[name](x, wrong)
    with pytest.raises(TypeError, match="must be a float NumPy array, e.g. x.astype.*got an array of uint8"):
        EVERY[name]((255 * x).astype("uint8"), 1)
    with pytest.raises(ValueError, match=r"the shape \(samples, height, width, channels\); got \(36, 32, 3\)"):
        EVERY[name](x[0], 1)


def test_brightness_adds_to_all_up_to_the_highest_value():
    lighter = brightness(X * 200 - 50, 2, value_range=(-50, 150))
    np.testing.assert_allclose(lighter, np.minimum(X * 200 - 10, 150), atol=1e-4)
    assert 0.15 < (lighter == 150).mean() < 0.25
    assert brightness(X, 1).max() == X.max()
    with pytest.raises(ValueError, match="`value_range` must be"):
        brightness(X * 255, 1, value_range=(0, 1))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`value_range` must be \(low, high\) around the values of the images"):
        gaussian_noise(X * 255, 1, value_range=(0, 1))
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        gaussian_noise(X, 1, seed=-1)
