"""Ordered weighted l1: prunes rows and ties similar ones."""

from typing import Any

import numpy as np
from keras import ops

from kdopt.core.validation import check_fraction, check_positive
from kdopt.regularizers.base import PENALTIES, Tensor
from kdopt.regularizers.grouping import Layout
from kdopt.regularizers.groupwise import GroupPenalty
from kdopt.regularizers.strength import Strength


def order_weights(count: int, slope: float, fraction: float) -> np.ndarray:
    """Weights of the ordered norms, largest first, never increasing.

        c_i = 1 + slope * max(p - i + 1, 0) / p,     i = 1 ... count,     p = max(round(fraction * count), 1)

    Returns: float32 array of shape (count,).
    """
    p = max(round(fraction * count), 1)
    return (1 + slope * np.maximum(p - np.arange(count), 0) / p).astype("float32")


def not_increasing(values: Tensor) -> Tensor:
    """The sequence x_1 >= x_2 >= ... with the least sum of (x_i - values_i)^2.

    Pools adjacent violators, all there are at once, until there are none: a few rounds on most inputs,
    each of them linear in the length. Runs in a compiled step.

    Args:
        values: Float tensor of shape (n,).
    """
    count = values.shape[0]
    ones = ops.ones_like(values)

    def means(blocks: Tensor) -> Tensor:
        total = ops.segment_sum(values, blocks, num_segments=count)
        size = ops.segment_sum(ones, blocks, num_segments=count)
        return ops.take(total / ops.maximum(size, 1.0), blocks)

    def pool(blocks: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        starts = ops.logical_and(blocks[1:] != blocks[:-1], pooled[1:] <= pooled[:-1])
        blocks = ops.concatenate([blocks[:1], ops.cumsum(ops.cast(starts, "int32"))])
        return blocks, means(blocks)

    blocks = ops.arange(count, dtype="int32")
    _, pooled = ops.while_loop(lambda _, x: ops.any(x[1:] > x[:-1]), pool, (blocks, values))
    return pooled


def ordered_l1(values: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights_i * |values|_[i], |values|_[1] >= |values|_[2] >= ..."""
    return ops.sum(weights * ops.flip(ops.sort(ops.abs(values))))


def ordered_threshold(sizes: Tensor, cuts: Tensor) -> Tensor:
    """argmin_x 0.5 * ||x - sizes||^2 + sum_i cuts_i * |x|_[i] for `sizes` >= 0 and `cuts` that never increase."""
    order = ops.argsort(-sizes)
    kept = ops.maximum(not_increasing(ops.take(sizes, order) - cuts), 0.0)
    return ops.take(kept, ops.argsort(order))


@PENALTIES.register("ordered_l1")
class OrderedL1(GroupPenalty):
    """GrOWL: the larger a group, the dearer; removes groups and makes similar ones equal in norm.

        penalty(W) = strength * sum_i c_i * ||W||_[i],     ||W||_[1] >= ||W||_[2] >= ... the norms of the groups
        c_i = 1 + slope * max(p - i + 1, 0) / p,           p = fraction * number of groups, at least 1

    Correlated inputs get equal norms instead of one of them being chosen at random, so their weights can be
    shared after training. Its proximal operator sorts the norms and pools neighbors, inside the compiled
    step; it costs more than the others, most on kernels with thousands of groups.

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        slope: Float >= 0, how much dearer the largest group is than those beyond the slope; 0 is `GroupLasso`
            without the size factor. Defaults to `1.0`.
        fraction: Float in [0, 1], share of the groups on the slope: below 1 the paper's "PLD", at 1 its form like
            OSCAR. Defaults to `0.5`. The division by p is ours: slope and strength keep their meaning for any number
            of groups.
        groups: As in `GroupLasso`. Defaults to `"in_channels"`, as in the paper.
        block_shape, layout: As in `GroupLasso`.

    Example:
    ```
    float(OrderedL1(0.1, fraction=1.0)([[3.0, 4.0], [0.0, 1.0]]))      # 0.1 * (2 * 5 + 1.5 * 1) = 1.15
    ```

    Reference: Zhang et al., "Learning to Share: Simultaneous Parameter Tying and Sparsification in Deep
        Learning", ICLR 2018; prox: Bogdan et al., "SLOPE - Adaptive variable
        selection via convex optimization", Ann. Appl. Stat. 2015, algorithm 3.
    """

    def __init__(
        self,
        strength: Strength = 1e-4,
        slope: float = 1.0,
        fraction: float = 0.5,
        groups: str = "in_channels",
        block_shape: tuple[int, int] | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(strength, groups, block_shape, layout)
        self.slope = check_positive("slope", slope, zero=True)
        self.fraction = check_fraction("fraction", fraction, one=True)

    def measure(self, weights: Tensor) -> Tensor:
        norms = ops.reshape(self.grouping.norms(self.grouping.split(weights)), (-1,))
        return ordered_l1(norms, self._order_weights(norms))

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        parts = self.grouping.split(weights)
        norms = self.grouping.norms(parts)
        flat = ops.reshape(norms, (-1,))
        kept = ops.reshape(ordered_threshold(flat, threshold * self._order_weights(flat)), norms.shape)
        return self.grouping.merge(parts * (kept / ops.where(norms > 0, norms, 1.0)), weights.shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slope": self.slope, "fraction": self.fraction}

    def _order_weights(self, norms: Tensor) -> Tensor:
        return ops.cast(order_weights(norms.shape[0], self.slope, self.fraction), norms.dtype)
