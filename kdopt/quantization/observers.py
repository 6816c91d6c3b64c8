"""How a range follows the values that training sees.

A rule gets the range so far, the extremes of a batch and the number n of batches seen before, and gives the new range;
the first batch (n = 0) sets it.
"""

from typing import Any

from keras import ops

from kdopt.core.registry import Registry
from kdopt.core.validation import check_fraction


class Observer:
    """A rule by which ranges follow the data; subclass it and register it in `OBSERVERS`."""

    def update(self, seen: Any, batch: Any, count: Any) -> Any:
        """The new limits.

        Args:
            seen: Float tensor, limits so far.
            batch: Float tensor of the same shape, limits of this batch: smallest values <= 0, largest >= 0.
            count: Scalar, number of batches seen before.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Observer":
        return cls(**config)


OBSERVERS: Registry[Observer] = Registry("observer", Observer)


@OBSERVERS.register("ema")
class MovingAverage(Observer):
    """Exponential moving average of the batches' extremes, whose memory grows with the batches seen.

        limit = d * limit + (1 - d) * extreme,   d = min(momentum, n / (n + 1))

    Args:
        momentum: Float in [0, 1). Defaults to `0.99`.

    Reference: Jacob et al., CVPR 2018, section 3.1.
    """

    def __init__(self, momentum: float = 0.99) -> None:
        self.momentum = check_fraction("momentum", momentum)

    def update(self, seen: Any, batch: Any, count: Any) -> Any:
        decay = ops.minimum(self.momentum, count / (count + 1.0))
        return decay * seen + (1.0 - decay) * batch

    def get_config(self) -> dict[str, Any]:
        return {"momentum": self.momentum}


@OBSERVERS.register("min_max")
class MinMax(Observer):
    """The smallest and the largest value ever seen: nothing is clipped, outliers cost steps."""

    def update(self, seen: Any, batch: Any, count: Any) -> Any:
        wider = ops.where(ops.abs(batch) > ops.abs(seen), batch, seen)
        return ops.where(count > 0, wider, batch)


@OBSERVERS.register("frozen")
class Frozen(Observer):
    """The range as it is; a tensor that has none yet takes that of the first batch."""

    def update(self, seen: Any, batch: Any, count: Any) -> Any:
        return ops.where(count > 0, seen, batch)
