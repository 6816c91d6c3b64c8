"""Criteria that look at the weights alone."""

import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.criteria.base import CRITERIA, Criterion


def magnitude(weights: np.ndarray) -> np.ndarray:
    """score = |w|"""
    return np.abs(weights)


@CRITERIA.register("l1")
class L1(Criterion):
    """Magnitude of each weight.

        score = |w|

    Free: needs no data. Across layers (`scope="global"`) it favors layers with large weights.

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
        NeurIPS 2015, section 3.
    """

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        return magnitude(weights)
