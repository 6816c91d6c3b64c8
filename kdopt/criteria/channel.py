"""Criteria that look at the weights of a whole channel at once."""

import keras
import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.criteria.base import CRITERIA, Criterion, per_weight


def distances_to_all(filters: np.ndarray) -> np.ndarray:
    """Sum of the Euclidean distances of each filter to all others.

        g(i) = sum_j ||F_i - F_j||_2

    Args:
        filters: Float array of shape (channels, weights of a channel).

    Returns: array of shape (channels,), float64.
    """
    centered = filters.astype("float64")
    centered -= centered.mean(axis=0)  # distances stay; their differences lose fewer digits
    products = centered @ centered.T
    energies = np.diag(products)
    squares = energies[:, None] + energies[None, :] - 2 * products
    np.fill_diagonal(squares, 0)
    return np.sqrt(np.maximum(squares, 0)).sum(axis=1)


@CRITERIA.register("fpgm")
class FPGM(Criterion):
    """Distance of each filter from the others: the ones near the geometric median can be replaced by the rest.

        score(filter i) = sum_j ||F_i - F_j||_2,    an equal share to each of its weights

    Needs no data. Cost: one (channels x channels) product in float64. A large filter next to others like it scores
    low, so it says nothing inside a channel: use it to prune channels.

    Reference: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
        CVPR 2019.
    """

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        axis = -1 if view is None else view.channel_axis
        filters = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
        return per_weight(distances_to_all(filters), (axis,), weights.shape).astype(weights.dtype)


@CRITERIA.register("bn_scale")
class BNScale(Criterion):
    """Scale of the BatchNormalization behind each channel.

        score(channel c) = |gamma_c|,    an equal share to each of its weights

    Free: needs no data. Meant for models trained with an L1 penalty on gamma (network slimming). For kernels whose
    layer is followed by a BatchNormalization alone, in a Functional or Sequential model.

    Raises: ValueError that names a layer without such a BatchNormalization.

    Reference: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    """

    def reason(self, view: KernelView) -> str | None:
        if view.norm is None:
            return "no BatchNormalization alone follows it"
        return "its BatchNormalization has scale=False" if view.norm.gamma is None else None

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        reason = "nothing is known of its layer" if view is None else self.reason(view)
        if view is None or reason is not None:
            name = "a kernel without a view" if view is None else repr(view.name)
            raise ValueError(
                f"Criterion 'bn_scale' needs a BatchNormalization that alone follows the layer, with one gamma a "
                f"channel; {name}: {reason}. Leave it out with `layers=`, or use another criterion, e.g. 'l2'."
            )
        assert view.norm is not None
        values = np.abs(keras.ops.convert_to_numpy(view.norm.gamma).astype("float32"))
        return per_weight(values, (view.channel_axis,), weights.shape).astype(weights.dtype)
