"""How a range follows the values that training sees.

A rule gets the range so far, the limits of a batch and the number n of batches seen before, and gives the new range;
the first batch (n = 0) sets it.
"""

from typing import Any

from keras import ops

from kdopt.core.registry import Registry
from kdopt.core.validation import check_fraction
from kdopt.quantization.quantizers import fake_quantize


def extremes_of(x: Any, positive: bool = False) -> Any:
    """Smallest value <= 0 and largest >= 0, (2,), float32; `positive`: nothing is below 0."""
    x = ops.stop_gradient(x)
    high = ops.cast(ops.maximum(ops.max(x), 0), "float32")
    low = ops.zeros_like(high) if positive else ops.cast(ops.minimum(ops.min(x), 0), "float32")
    return ops.stack([low, high])


class Observer:
    """A rule by which ranges follow the data; subclass it and register it in `OBSERVERS`.

    Attributes:
        learned: Whether ranges are trainable Variables, see `LearnedRange`.
    """

    learned: bool = False

    def limits_of(self, x: Any, positive: bool = False) -> Any:
        """What a batch says: a smallest value <= 0 and a largest >= 0, (2,). Defaults to the extremes.

        Args:
            x: Tensor.
            positive: Whether nothing is below 0.
        """
        return extremes_of(x, positive)

    def quantize(self, x: Any, low: Any, high: Any, bits: int = 8) -> Any:
        """`x` rounded in training. Defaults to `fake_quantize`."""
        return fake_quantize(x, low, high, bits)

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


@OBSERVERS.register("percentile")
class Percentile(MovingAverage):
    """Moving average of percentiles of the batches: rare outliers are clipped, so that the rest has finer steps.

        limits of a batch = percentiles (100 - q) and q of its values, the first no more and the second no less than 0

    Args:
        q: Float in (50, 100]. Defaults to `99.99`.
        momentum: As in `MovingAverage`. Defaults to `0.99`.

    Reference: Krishnamoorthi, 2018, section 3; Wu et al., "Integer Quantization for Deep Learning Inference", 2020,
        section 3.
    """

    def __init__(self, q: float = 99.99, momentum: float = 0.99) -> None:
        super().__init__(momentum)
        if isinstance(q, bool) or not isinstance(q, (int, float)) or not 50 < q <= 100:
            raise ValueError(f"`q` must be a percentile in (50, 100]; got {q!r}.")
        self.q = float(q)

    def limits_of(self, x: Any, positive: bool = False) -> Any:
        values = ops.reshape(ops.cast(ops.stop_gradient(x), "float32"), (-1,))
        high = ops.maximum(_from_the_top(values, 1 - self.q / 100), 0)
        low = ops.zeros_like(high) if positive else ops.minimum(-_from_the_top(-values, 1 - self.q / 100), 0)
        return ops.stack([low, high])

    def get_config(self) -> dict[str, Any]:
        return {"q": self.q, **super().get_config()}


def _from_the_top(values: Any, share: float) -> Any:
    """The value that a share of all values lies above, between two of them in proportion."""
    import tensorflow as tf

    place = share * ops.cast(ops.size(values) - 1, "float64")
    above = ops.cast(ops.floor(place), "int32")
    last = ops.minimum(above + 1, ops.size(values) - 1)
    largest = tf.math.top_k(values, last + 1).values
    part = ops.cast(place - ops.floor(place), "float32")
    return largest[above] * (1.0 - part) + largest[last] * part
