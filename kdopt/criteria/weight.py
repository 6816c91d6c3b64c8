"""Criteria that look at each weight alone."""

from typing import Any

import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.core.ordering import ascending
from kdopt.core.validation import check_integer
from kdopt.criteria.base import CRITERIA, Criterion


def magnitude(weights: np.ndarray) -> np.ndarray:
    """score = |w|"""
    return np.abs(weights)


def energy(weights: np.ndarray) -> np.ndarray:
    """score = w^2"""
    return np.square(weights)


def lamp(weights: np.ndarray) -> np.ndarray:
    """score = w^2 / sum of w'^2 over the weights of the kernel with |w'| >= |w|; 0 for w = 0

    Args:
        weights: Float array of any shape.

    Returns: array of the same shape, in [0, 1].
    """
    magnitudes = np.abs(weights).ravel()
    order = ascending(magnitudes)
    rising = np.square(magnitudes[order], dtype="float64")
    survivors = np.cumsum(rising[::-1])[::-1]
    # Equal weights share the sum that begins at the first of them.
    is_first = np.concatenate([[True], rising[1:] != rising[:-1]])
    survivors = survivors[np.maximum.accumulate(np.where(is_first, np.arange(rising.size), 0))]
    scores = np.empty(weights.size, weights.dtype)
    scores[order] = np.divide(rising, survivors, out=np.zeros_like(rising), where=rising != 0)
    return scores.reshape(weights.shape)


@CRITERIA.register("l1")
class L1(Criterion):
    """Magnitude of each weight.

        score = |w|

    Free: needs no data. A channel has its L1 norm. Across layers (`scope="global"`) it favors layers with large
    weights.

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
        section 3; for channels Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    """

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        return magnitude(weights)


@CRITERIA.register("l2")
class L2(Criterion):
    """Energy of each weight.

        score = w^2

    Free: needs no data. Orders single weights as `l1` does; a channel has its squared L2 norm, so channels and blocks
    are ordered by L2 norm.

    Reference: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
        equation 2 with p = 2.
    """

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        return energy(weights)


@CRITERIA.register("lamp")
class LAMP(Criterion):
    """Layer-adaptive magnitude: what a weight is of all that would be left in its kernel after it.

        score = w^2 / sum of w'^2 over the weights of the kernel with |w'| >= |w|

    Needs no data. Cost: a sort of each kernel, in eleven times its memory. Inside a kernel it orders as `l1`;
    it is made to be compared across kernels (`scope="global"`), where the largest weight of every kernel scores 1, so
    no kernel dies. Equal magnitudes share a score here (1/n for n largest ones); the paper breaks ties
    by position, as the allocation `"lamp"` does.

    Reference: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    """

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        return lamp(weights)


@CRITERIA.register("random")
class Random(Criterion):
    """Random scores, the baseline every criterion must beat.

        score ~ uniform[0, 1), one draw for each position

    Free. The same seed, kernel index and shape give the same scores, at every update of a schedule too: what was
    pruned stays pruned.

    Args:
        seed: Integer >= 0. Defaults to `0`.

    Reference: none; a common control, e.g. Blalock et al., "What is the State of Neural Network Pruning?", MLSys 2020.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = check_integer("seed", seed, minimum=0)

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0 if view is None else view.index])
        return rng.random(weights.shape, "float32")

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}
