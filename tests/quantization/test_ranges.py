"""Ranges from histograms, beside a search over the values themselves."""

import keras
import numpy as np
import pytest

from kdopt.quantization import RANGES
from kdopt.quantization.ranges import BINS, Percentile, ZScore, rounded

RANDOM = np.random.default_rng(0)
VALUES = {
    "normal": RANDOM.normal(size=50_000),
    "relu": np.maximum(RANDOM.normal(size=50_000), 0),
    "outliers": np.concatenate([RANDOM.normal(size=50_000), [60.0, -5.0]]),
    "uniform": RANDOM.uniform(-1, 2, 50_000),
    "negative": -np.abs(RANDOM.laplace(size=50_000)),
}


def limits(method, x, bits=8):
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    counts, _ = np.histogram(x, BINS, (low, high))
    return RANGES.get(method).limits(counts, low, high, bits)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("method", RANGES.names())
def test_every_range_lies_in_the_values_and_holds_zero(name, method):
    x = VALUES[name]
    low, high = limits(method, x)
    assert min(x.min(), 0) - 1e-9 <= low <= 0 <= high <= max(x.max(), 0) + 1e-9
    assert low < high
    made = RANGES.get(keras.saving.serialize_keras_object(RANGES.get(method)))
    assert made.get_config() == RANGES.get(method).get_config()


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("method", "p"), [("mse", 2.0), ("lp", 2.4)])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_range_of_the_search_has_a_smaller_error(name, method, p, bits):
    x = VALUES[name]
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)

    def error(pair):
        return np.mean(np.abs(x - rounded(x, *pair, bits)) ** p)

    found = error(limits(method, x, bits))
    tried = [(low * a, high * b) for a in np.linspace(0.1, 1, 12) for b in np.linspace(0.1, 1, 12)]
    assert found <= min(map(error, tried)) * 1.02
    assert found <= error((low, high)) * 1.001


def test_shares_and_deviations():
    x = VALUES["normal"]
    low, high = Percentile(0.01).limits(np.histogram(x, BINS, (x.min(), x.max()))[0], x.min(), x.max())
    assert (low, high) == pytest.approx(np.quantile(x, [0.01, 0.99]), abs=0.01)
    low, high = ZScore(2.0).limits(np.histogram(x, BINS, (x.min(), x.max()))[0], x.min(), x.max())
    assert (low, high) == pytest.approx((x.mean() - 2 * x.std(), x.mean() + 2 * x.std()), abs=0.01)


def test_divergence_clips_outliers_and_nothing_else():
    assert limits("kl", VALUES["outliers"])[1] < 6
    x = VALUES["uniform"]
    assert limits("kl", x) == pytest.approx((x.min(), x.max()), rel=0.04)
    # A ReLU's zeros are half of all values; they must not decide.
    assert limits("kl", VALUES["relu"])[1] > 3


def test_rounding_is_the_affine_grid():
    x = np.array([-1.0, -0.004, 0.0, 0.4, 2.0, 9.0])
    step = 3.0 / 255
    zero = np.round(1.0 / step)
    wanted = (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(rounded(x, -1.0, 2.0), wanted)


def test_bad_arguments():
    with pytest.raises(ValueError, match="share"):
        Percentile(1.0)
    with pytest.raises(ValueError, match="z"):
        ZScore(0)
    with pytest.raises(ValueError, match="Did you mean 'mse'"):
        RANGES.get("mes")
