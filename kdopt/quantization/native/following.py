"""How the ranges of a model follow a step of training."""

import math
from typing import Any

from keras import ops

from kdopt.quantization.learned_ranges import LearnedRange
from kdopt.quantization.native.execution import Limits
from kdopt.quantization.native.measuring import DEAD, shaped
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.observers import Observer


class Following:
    """Called with each tensor of one step of training that has a range: gives the limits to round it with.

    Args:
        observer: How ranges follow.
        placement: The steps of the model.
        ranges: The `Ranges` of the model.
        fresh: Whether learned ranges may not have seen data yet, so that this batch sets them.
    """

    def __init__(self, observer: Observer, placement: Placement, ranges: Any, fresh: bool) -> None:
        self.observer, self.placement, self.ranges = observer, placement, ranges
        # Rows taken apart at once: a recurrent layer reads them hundreds of times.
        self.before, self.count = _rows(ranges.limits), ranges.batches.value
        self.frozen = ranges.frozen.value > 0
        self.learned = None if ranges.learned is None else _rows(ranges.learned)
        self.fresh = fresh
        grids = (placement.grids.get(entry.index) for entry in placement.traced.inputs)
        self.inputs = {grid.row for grid in grids if grid is not None}
        self.finite: list[Any] = []
        self.updated: dict[int, Any] = {}
        self.starts: dict[int, Any] = {}
        self.batches: dict[int, Any] = {}

    def __call__(self, row: int, x: Any) -> Limits:
        if self.learned is None:
            return self._observed(row, x)
        return self._learned(row, x)

    def _observed(self, row: int, x: Any) -> Limits:
        batch = self._batch(row, x)
        update = self.observer.update(self.before[row], batch, self.count)
        # Frozen ranges stay, and all where a batch is not finite, or zero throughout.
        least, most = ops.unstack(batch)
        nothing = least == most
        self.finite.append(ops.all(ops.isfinite(update)))
        stays = ops.logical_or(self.frozen | nothing, ops.logical_not(self.finite[-1]))
        update = ops.where(stays, self.before[row], ops.stop_gradient(self._shaped(row, update)))
        self.updated[row] = update
        low, high = ops.unstack(update)
        return low, ops.where(low == high, DEAD, high)

    def _learned(self, row: int, x: Any) -> Limits:
        assert isinstance(self.observer, LearnedRange)
        assert self.learned is not None
        if row in self.inputs:
            self.finite.append(ops.all(ops.isfinite(x)))
        positive = row in self.placement.positive
        pair = self.learned[row]
        if self.fresh:
            first = self._batch(row, x)
            first = ops.where(first[0] == first[1], ops.convert_to_tensor([0.0, DEAD]), first)
            self.starts[row] = self.observer.update(ops.stop_gradient(pair), first, self.count)
            pair = ops.where(self.count > 0, pair, self.starts[row])
        bits = self.placement.bits or 8
        features = math.prod(size or 1 for size in x.shape[1:])
        limits = self._shaped(row, ops.stack(self.observer.limits(pair, positive, features, bits)))
        limits = ops.where(self.frozen, self.before[row], limits)
        self.updated[row] = ops.stop_gradient(limits)
        return limits[0], limits[1]

    def _batch(self, row: int, x: Any) -> Any:
        """Several of one range in a loop over time."""
        found = self.observer.limits_of(x, row in self.placement.positive)
        if row in self.batches:
            before = self.batches[row]
            found = ops.where([True, False], ops.minimum(before, found), ops.maximum(before, found))
        self.batches[row] = found
        return found

    def _shaped(self, row: int, pair: Any) -> Any:
        return shaped(pair, self.placement.bits or 8) if row in self.placement.symmetric else pair

    def penalties(self) -> list[Any]:
        """What learned ranges add to the loss."""
        if self.learned is None or not isinstance(self.observer, LearnedRange):
            return []
        found = self.observer.penalty(ops.stack(self.learned))
        return [] if found is None else [ops.where(self.frozen, 0.0, found)]

    def store(self) -> None:
        """Assigns the ranges of this step."""
        count = len(self.placement.names)
        if count:
            self.ranges.limits.assign(ops.stack([self.updated.get(row, self.before[row]) for row in range(count)]))
        if self.starts and self.learned is not None:
            rows = [self.starts.get(row, self.learned[row]) for row in range(count)]
            self.ranges.learned.assign(ops.where(self.count > 0, ops.stack(self.learned), ops.stack(rows)))

    def marked(self, outputs: list[Any]) -> list[Any]:
        """Outputs as they are, NaN where a tensor was not finite: fake quantization makes a number of NaN."""
        if not self.finite:
            return outputs
        whole = ops.all(ops.stack(self.finite))
        return [ops.where(whole, y, float("nan")) if "float" in str(y.dtype) else y for y in outputs]


def _rows(pairs: Any) -> list[Any]:
    """Each row of a Variable."""
    return list(ops.unstack(pairs.value)) if pairs.shape[0] else []
