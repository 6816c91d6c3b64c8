"""Ranges of activations from a histogram of their values: what to clip, so that what is left has finer steps.

A method gets the counts of equal bins over [min, max] of a tensor and gives the range to round it with. With c the
middles of the bins, n their counts and q(c) the middles rounded to a range,

    mse         sum n (c - q)^2          least over ranges, each side shrunk in 32 parts
    lp          sum n |c - q|^p          the same, p = 2.4 by default
    kl          the histogram's divergence from its rounded self, least over the same ranges
    percentile  all but a share of the values on each side
    z_score     mean -+ z standard deviations

Reference: Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.1 (mse, cross-entropy);
    Migacz, "8-bit Inference with TensorRT", GTC 2017 (kl); Nahshan et al., "Loss Aware Post-Training Quantization",
    2021 (lp).
"""

from typing import Any

import numpy as np

from kdopt.core.registry import Registry
from kdopt.core.validation import check_fraction, check_positive

BINS = 2048
_PARTS = 32

Limits = tuple[float, float]


class RangeMethod:
    """How a range is chosen; subclass it and register it in `RANGES`."""

    def limits(self, counts: np.ndarray, low: float, high: float, bits: int = 8) -> Limits:
        """The range.

        Args:
            counts: Array (bins,), how many values lie in each of the equal bins over [low, high].
            low, high: Smallest value, <= 0, and largest, >= 0, of the tensor.
            bits: Integer, of the grid. Defaults to `8`.

        Returns: (min, max), not wider than [low, high], with 0 in it.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RangeMethod":
        return cls(**config)


RANGES: Registry[RangeMethod] = Registry("range method", RangeMethod)


@RANGES.register("min_max")
class Extremes(RangeMethod):
    """All values: nothing is clipped."""

    def limits(self, counts: np.ndarray, low: float, high: float, bits: int = 8) -> Limits:
        return low, high


@RANGES.register("percentile")
class Percentile(RangeMethod):
    """All but a share of the values on each side.

    Args:
        share: Float in [0, 1). Defaults to `1e-4`: the 99.99th percentile.
    """

    def __init__(self, share: float = 1e-4) -> None:
        self.share = check_fraction("share", share)

    def limits(self, counts: np.ndarray, low: float, high: float, bits: int = 8) -> Limits:
        edges, below = np.linspace(low, high, counts.size + 1), np.cumsum(counts) / counts.sum()
        first = int(np.searchsorted(below, self.share, side="right"))
        last = int(np.searchsorted(below, 1 - self.share))
        return min(float(edges[first]), 0.0), max(float(edges[min(last, counts.size - 1) + 1]), 0.0)

    def get_config(self) -> dict[str, Any]:
        return {"share": self.share}


@RANGES.register("z_score")
class ZScore(RangeMethod):
    """What lies within `z` standard deviations of the mean; values beyond are outliers.

    Args:
        z: Float > 0. Defaults to `8`.
    """

    def __init__(self, z: float = 8.0) -> None:
        self.z = check_positive("z", z)

    def limits(self, counts: np.ndarray, low: float, high: float, bits: int = 8) -> Limits:
        middles = _middles(counts, low, high)
        mean = np.average(middles, weights=counts)
        spread = self.z * np.sqrt(np.average((middles - mean) ** 2, weights=counts))
        return min(max(low, float(mean - spread)), 0.0), max(min(high, float(mean + spread)), 0.0)

    def get_config(self) -> dict[str, Any]:
        return {"z": self.z}


class _Searched(RangeMethod):
    """The best of all ranges whose sides are shrunk in equal parts."""

    def limits(self, counts: np.ndarray, low: float, high: float, bits: int = 8) -> Limits:
        kept = counts > 0
        middles, weights = _middles(counts, low, high)[kept], counts[kept].astype("float64")
        shares = np.arange(1, _PARTS + 1) / _PARTS
        pairs = [(low * a, high * b) for a in (shares if low < 0 else [1.0]) for b in (shares if high > 0 else [1.0])]
        # The widest of those that are as good.
        costs = [self.cost(middles, weights, rounded(middles, *pair, bits), pair) for pair in pairs]
        return pairs[len(pairs) - 1 - int(np.argmin(costs[::-1]))]

    def cost(self, x: np.ndarray, weights: np.ndarray, q: np.ndarray, limits: Limits) -> float:
        """What a range costs: values, how often they occur, what is left of them, the range."""
        raise NotImplementedError


@RANGES.register("lp")
class Lp(_Searched):
    """Least sum of |x - q|^p.

    Args:
        p: Float > 0. Defaults to `2.4`.
    """

    def __init__(self, p: float = 2.4) -> None:
        self.p = check_positive("p", p)

    def cost(self, x: np.ndarray, weights: np.ndarray, q: np.ndarray, limits: Limits) -> float:
        return float(weights @ np.abs(x - q) ** self.p)

    def get_config(self) -> dict[str, Any]:
        return {"p": self.p}


@RANGES.register("mse")
class MeanSquaredError(Lp):
    """Least mean squared error."""

    def __init__(self) -> None:
        super().__init__(2.0)

    def get_config(self) -> dict[str, Any]:
        return {}


@RANGES.register("kl")
class KullbackLeibler(_Searched):
    """Least divergence of the values, clipped, from what is left of those that are not.

    P has all values, those beyond the range in its outermost bins; Q only those within, each step's share spread over
    the bins in it that are not empty:  sum P log(P / Q). The bin at zero is left out.
    """

    def cost(self, x: np.ndarray, weights: np.ndarray, q: np.ndarray, limits: Limits) -> float:
        weights = np.where(np.abs(x) == np.abs(x).min(), 0, weights)  # zeros of a ReLU would decide alone
        inside = (x >= limits[0]) & (x <= limits[1]) & (weights > 0)
        if not inside.any():
            return float("inf")
        p = weights[inside].copy()
        p[0] += weights[x < limits[0]].sum()
        p[-1] += weights[x > limits[1]].sum()
        _, steps = np.unique(q[inside], return_inverse=True)
        spread = (np.bincount(steps, weights[inside]) / np.bincount(steps))[steps]
        p, spread = p / p.sum(), spread / spread.sum()
        return float(np.sum(p * np.log(p / spread)))


def rounded(x: np.ndarray, low: float, high: float, bits: int = 8) -> np.ndarray:
    """`x` on the affine grid of a range."""
    step = (high - low) / (2**bits - 1)
    if step == 0:
        return np.zeros_like(x)
    zero = np.round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


def _middles(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    edges = np.linspace(low, high, counts.size + 1)
    return (edges[:-1] + edges[1:]) / 2
