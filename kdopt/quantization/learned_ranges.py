"""Ranges that training finds: each limit is a Variable with a gradient.

They start at the calibrated range, are trained with the weights by the model's optimizer, and are exported as they are.
"""

import math
from typing import Any

from keras import ops

from kdopt.core.validation import check_positive
from kdopt.quantization.observers import OBSERVERS, Observer
from kdopt.quantization.quantizers import SMALLEST, learned_quantize, scale_gradient


class LearnedRange(Observer):
    """An observer whose ranges are trained.

    The Variable of a range holds its two limits, of the size of the activations, so that adaptive optimizers move all
    ranges alike.
    """

    learned = True

    def limits(self, pair: Any, positive: bool, features: int, bits: int = 8) -> tuple[Any, Any]:
        """(low <= 0, high > 0) from the Variable of a range.

        Args:
            pair: (2,), as trained.
            positive: Whether nothing is below 0.
            features: Integer >= 1, values of a sample.
            bits: Integer. Defaults to `8`.
        """
        raise NotImplementedError

    def penalty(self, pair: Any) -> Any:
        """What a range adds to the loss; `None` for nothing."""
        return None

    def update(self, seen: Any, batch: Any, count: Any) -> Any:
        """The first batch sets what no calibration has set."""
        return ops.where(count > 0, seen, batch)


@OBSERVERS.register("lsq")
class LearnedStepRange(LearnedRange):
    """A learned step: ranges [0, 255 s] of what is never negative, [-128 s, 127 s] of the rest.

        dq/ds = round(x / s) - x / s inside, the outermost integer outside;   times 1 / sqrt(N * Q)

    for N values of a sample and the largest integer Q. Symmetric: what is negative now and then (swish) loses steps,
    see `"lsq_plus"`.

    Reference: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 - 3, section 2.2.
    """

    def limits(self, pair: Any, positive: bool, features: int, bits: int = 8) -> tuple[Any, Any]:
        most = 2**bits - 1 if positive else 2 ** (bits - 1) - 1
        widest = pair[1] if positive else ops.maximum(pair[1], -pair[0] * (most / (most + 1)))
        high = ops.maximum(scale_gradient(widest, most**2 / math.sqrt(features * most)), SMALLEST)
        return (ops.zeros_like(high) if positive else high * (-(most + 1) / most)), high

    def quantize(self, x: Any, low: Any, high: Any, bits: int = 8) -> Any:
        return learned_quantize(x, low, high, bits)


@OBSERVERS.register("lsq_plus")
class LearnedStepAndOffset(LearnedRange):
    """A learned step and a learned offset: both limits of the range.

        dq/ds as for LSQ inside;   dq/dlow = 1 below the range, dq/dhigh = 1 above

    The zero point is rounded to an integer, as TFLite has it.

    Reference: Bhalgat et al., "LSQ+: Improving Low-Bit Quantization Through Learnable Offsets and Better
        Initialization", CVPR Workshops 2020, equations 5 - 7.
    """

    def limits(self, pair: Any, positive: bool, features: int, bits: int = 8) -> tuple[Any, Any]:
        scale = (2**bits - 1) ** 2 / math.sqrt(features * (2**bits - 1))
        high = ops.maximum(scale_gradient(pair[1], scale), SMALLEST)
        return (ops.zeros_like(high) if positive else ops.minimum(scale_gradient(pair[0], scale), 0.0)), high

    def quantize(self, x: Any, low: Any, high: Any, bits: int = 8) -> Any:
        return learned_quantize(x, low, high, bits)


@OBSERVERS.register("pact")
class ParameterizedClipping(LearnedRange):
    """A learned clipping level: the gradient of a limit is that of the values beyond it.

        dq/da = 1 where x >= a, 0 elsewhere;   loss + decay * a^2

    Tensors that are negative, too, have a second level below.

    Args:
        decay: Float >= 0, which pulls levels in, in the unit of the loss per squared unit of the tensor. Defaults to
            `1e-4`.

    Reference: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018, equations 1
        and 3.
    """

    def __init__(self, decay: float = 1e-4) -> None:
        self.decay = check_positive("decay", decay, zero=True)

    def limits(self, pair: Any, positive: bool, features: int, bits: int = 8) -> tuple[Any, Any]:
        high = ops.maximum(pair[1], SMALLEST)
        return (ops.zeros_like(high) if positive else ops.minimum(pair[0], 0.0)), high

    def penalty(self, pair: Any) -> Any:
        return self.decay * ops.sum(ops.square(pair)) if self.decay else None

    def get_config(self) -> dict[str, Any]:
        return {"decay": self.decay}
