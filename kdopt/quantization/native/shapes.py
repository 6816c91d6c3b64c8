"""Several axes as one, in the ways that TFLite transposes and reshapes without a rounding."""

import math
from collections.abc import Callable
from typing import Any

from keras import ops


def together(x: Any, axes: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Some axes as one, the last, and the function that puts them back.

    Args:
        x: Tensor (batch, ...), all sizes but the batch known.
        axes: Integer or integers, none of them 0.

    Example: of (batch, 4, 5, 6) and `axes=(1, 3)` it makes (batch, 5, 24).
    """
    rank = len(x.shape)
    moved = sorted(axis % rank for axis in ([axes] if isinstance(axes, int) else axes))
    if moved == [rank - 1]:
        return x, lambda y: y
    order = [*(axis for axis in range(rank) if axis not in moved), *moved]
    sizes = [x.shape[axis] for axis in order]
    kept = rank - len(moved)
    ordered = x if order == sorted(order) else ops.transpose(x, order)
    flat = ops.reshape(ordered, (-1, *sizes[1:kept], math.prod(sizes[kept:])))

    def back(y: Any) -> Any:
        y = ops.reshape(y, (-1, *sizes[1:]))
        return y if order == sorted(order) else ops.transpose(y, [order.index(axis) for axis in range(rank)])

    return flat, back
