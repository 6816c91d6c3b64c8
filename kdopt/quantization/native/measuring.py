"""Ranges of all tensors of a model, measured on data with the weights as they are."""

from typing import Any

import numpy as np
from keras import ops

from kdopt.quantization.native.execution import Limits, Pass
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.observers import extremes_of
from kdopt.quantization.ranges import BINS, Extremes, RangeMethod

# The range of a tensor that is always zero: any will do, a tiny one would overflow the int32 biases.
DEAD = 1.0


def measured_ranges(placement: Placement, batches: list[list[np.ndarray]], method: RangeMethod) -> np.ndarray:
    """Smallest and largest value of each range in float, as a method clips them: (ranges, 2).

    Raises: ValueError that names the layer if a tensor is not finite.
    """
    found = np.stack(_over(placement, batches, lambda row, x: extremes_of(x), widest))
    low, high = found[..., 0].min(axis=0), found[..., 1].max(axis=0)
    if not np.isfinite(found).all():
        worst = placement.names[int(np.argmin(np.isfinite(low) & np.isfinite(high)))]
        raise ValueError(f"{worst.rpartition('.')[0]!r} is not finite on the calibration data ({worst}).")
    high = np.where(low == high, DEAD, high)
    if isinstance(method, Extremes):
        return np.stack([low, high], axis=1)
    counts = np.sum(
        _over(placement, batches, lambda row, x: _histogram(x, float(low[row]), float(high[row])), _sum), axis=0
    )
    bits = placement.bits or 8
    pairs = [method.limits(*row, bits=bits) if row[0].sum() else row[1:] for row in zip(counts, low, high, strict=True)]
    clipped = np.array(pairs, "float32")
    return np.where(clipped[:, :1] == clipped[:, 1:], np.stack([low, high], axis=1), clipped)


def _over(placement: Placement, batches: list[list[np.ndarray]], measure: Any, join: Any) -> list[np.ndarray]:
    """For each batch what `measure(row, tensor)` gives of all ranges, several tensors of one range joined."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def run(*arrays: Any) -> Any:
        seen: dict[int, list[Any]] = {}

        def observe(row: int, x: Any) -> Limits:
            seen.setdefault(row, []).append(measure(row, x))
            return 0.0, 0.0

        Pass(placement, [(0.0, 0.0)] * len(placement.names), "float", observe=observe)(list(arrays))
        nothing = ops.zeros_like(next(iter(seen.values()))[0])
        return ops.stack([join(seen.get(row, [nothing])) for row in range(len(placement.names))])

    specs = [tf.TensorSpec((None, *entry.shape[1:]), entry.dtype) for entry in placement.traced.inputs]
    concrete = run.get_concrete_function(*specs)  # one for all sizes of batches
    return [concrete(*(tf.constant(array) for array in batch)).numpy() for batch in batches]


def widest(pairs: list[Any]) -> Any:
    """The extremes of several tensors."""
    if len(pairs) == 1:
        return pairs[0]
    stacked = ops.stack(pairs)
    return ops.stack([ops.min(stacked[:, 0]), ops.max(stacked[:, 1])])


def _histogram(x: Any, low: float, high: float) -> Any:
    import tensorflow as tf

    return tf.histogram_fixed_width(tf.cast(x, tf.float32), (np.float32(low), np.float32(high)), BINS)


def _sum(counts: list[Any]) -> Any:
    return sum(counts[1:], counts[0])


def shaped(pair: Any, bits: int = 8) -> Any:
    """The smallest range with zero point 0 that contains a range, (2,): [-2^(bits-1) s, (2^(bits-1) - 1) s]."""
    most = 2 ** (bits - 1)
    step = ops.maximum(pair[1] / (most - 1), -pair[0] / most)
    return ops.stack([-most * step, (most - 1) * step])
