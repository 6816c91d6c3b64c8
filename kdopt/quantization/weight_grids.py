"""Which integers weights become, times a step for each channel: w = step * integer.

Gradients pass straight through to the weights (Bengio et al., 2013) unless a grid says otherwise.
"""

from numbers import Integral
from typing import Any

from keras import ops

from kdopt.core.registry import Registry
from kdopt.core.validation import check_integer
from kdopt.quantization.quantizers import SMALLEST, learned_round, reduced_axes, weight_step


class WeightGrid:
    """A set of integers and a rule for the step; subclass it and register it in `WEIGHT_GRIDS`.

    A step has the rank of the weights and 1 along all axes but those of the channels.

    Attributes:
        bits: Integer in [2, 8], what an integer takes. Dense kernels of up to 4 bits are stored two in a byte.
        learned: Whether the step is a trainable Variable.
        folds: Whether the grid is laid over the kernel with BatchNormalization folded in, as the converter itself does;
            else over the kernel as trained, and its step is multiplied.
    """

    bits: int = 8
    learned: bool = False
    folds: bool = False

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        """The step for each channel along `axes`, one for all with `()`."""
        raise NotImplementedError

    def integers(self, weights: Any, step: Any, axes: tuple[int, ...]) -> Any:
        """The integer for each weight, in [-127, 127]."""
        raise NotImplementedError

    def rounded(self, weights: Any, axes: tuple[int, ...], learned: Any = None) -> tuple[Any, Any]:
        """(weights on the grid, step); `learned` is the Variable of a learned step."""
        step = ops.maximum(ops.stop_gradient(self.step(weights, axes)), SMALLEST)
        return weights + ops.stop_gradient(self.integers(weights, step, axes) * step - weights), step

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WeightGrid":
        return cls(**config)

    def __str__(self) -> str:
        return f"{_name(self)}, {self.bits} bits"


WEIGHT_GRIDS: Registry[WeightGrid] = Registry("weight grid", WeightGrid)


def grid_of(identifier: Any) -> WeightGrid:
    """The grid that a number of bits, a name or an instance means."""
    if isinstance(identifier, Integral) and not isinstance(identifier, bool):
        return Uniform(int(identifier))
    return WEIGHT_GRIDS.get(identifier)


@WEIGHT_GRIDS.register("uniform")
class Uniform(WeightGrid):
    """All integers of n bits but the smallest, up to the largest weight.

        step = max|w| / (2^(n-1) - 1)

    Args:
        bits: Integer in [2, 8]. Defaults to `8`.

    Reference: Krishnamoorthi, "Quantizing Deep Convolutional Networks for Efficient Inference", 2018, section 2.2.
    """

    folds = True

    def __init__(self, bits: int = 8) -> None:
        self.bits = _check_bits(bits, 2, 8)

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        return weight_step(weights, axes, self.bits)

    def integers(self, weights: Any, step: Any, axes: tuple[int, ...]) -> Any:
        return ops.round(weights / step)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


@WEIGHT_GRIDS.register("lsq")
class LearnedStep(WeightGrid):
    """All integers of n bits but the smallest, with a step that training finds.

        q = round(clip(w / step, -Q, Q)) * step,   Q = 2^(n-1) - 1
        dq/dstep = round(w / step) - w / step inside, +-Q outside;   times 1 / sqrt(N * Q), N weights share a step

    It starts at 2 mean|w| / sqrt(Q), but never above max|w| / Q. The Variable is step * Q, of the size of the weights,
    so that adaptive optimizers move both alike; for SGD the gradient is scaled to the paper's.

    Args:
        bits: Integer in [2, 8]. Defaults to `8`.

    Reference: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 - 3 and section 2.2.
    """

    learned = True

    def __init__(self, bits: int = 8) -> None:
        self.bits = _check_bits(bits, 2, 8)

    @property
    def most(self) -> int:
        """Q, the largest integer."""
        return 2 ** (self.bits - 1) - 1

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        mean = ops.mean(ops.abs(weights), axis=reduced_axes(weights, axes), keepdims=True)
        return ops.minimum(2 * mean / self.most**0.5, weight_step(weights, axes, self.bits))

    def rounded(self, weights: Any, axes: tuple[int, ...], learned: Any = None) -> tuple[Any, Any]:
        if learned is None:
            raise ValueError("The step of this grid is a Variable; nothing has made one for this kernel.")
        return learned_round(weights, learned, self.most)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


@WEIGHT_GRIDS.register("power_of_two")
class PowerOfTwo(WeightGrid):
    """Zero and powers of two: products are shifts.

        |w| in {0, 2^n2, ..., 2^n1},   n1 = floor(log2(4 max|w| / 3)),   n2 = n1 + 1 - 2^(bits - 2)

    A weight goes to the nearer of its two neighbors. The step is 2^n2, the integers are 0, +-1, +-2, +-4, ...; a
    BatchNormalization that is folded multiplies the step.

    Args:
        bits: Integer in [3, 4]: 2 or 4 magnitudes; those of 4 bits reach 8, which files store in 8 bits. (The 8 of 5
            bits reach +128, which int8 has not.) Defaults to `4`.

    Reference: Zhou et al., "Incremental Network Quantization", ICLR 2017, equations 1 - 4, straight through instead of
        group by group.
    """

    def __init__(self, bits: int = 4) -> None:
        self.bits = _check_bits(bits, 3, 4)

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        largest = ops.maximum(_largest(weights, axes), SMALLEST)
        return ops.power(2.0, ops.floor(ops.log2(largest * 4 / 3)) + 1.0 - 2.0 ** (self.bits - 2))

    def integers(self, weights: Any, step: Any, axes: tuple[int, ...]) -> Any:
        ratio = ops.abs(weights) / step
        exponent = ops.floor(ops.log2(ops.maximum(ratio, 0.5) * 4 / 3))
        size = ops.power(2.0, ops.clip(exponent, 0.0, 2.0 ** (self.bits - 2) - 1))
        return ops.where(ratio < 0.5, 0.0, ops.sign(weights) * size)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


@WEIGHT_GRIDS.register("ternary")
class Ternary(WeightGrid):
    """-step, 0, +step for each channel.

        step = mean of |w| where |w| > delta,   delta = 0.7 mean|w|

    Reference: Li et al., "Ternary Weight Networks", 2016, equations 5 and 6.
    """

    bits = 2

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        kept, reduced = self._kept(weights, axes), reduced_axes(weights, axes)
        total = ops.sum(kept * ops.abs(weights), axis=reduced, keepdims=True)
        return total / ops.maximum(ops.sum(kept, axis=reduced, keepdims=True), 1.0)

    def integers(self, weights: Any, step: Any, axes: tuple[int, ...]) -> Any:
        return ops.sign(weights) * self._kept(weights, axes)

    def _kept(self, weights: Any, axes: tuple[int, ...]) -> Any:
        mean = ops.mean(ops.abs(weights), axis=reduced_axes(weights, axes), keepdims=True)
        return ops.cast(ops.abs(weights) > 0.7 * mean, weights.dtype)


@WEIGHT_GRIDS.register("binary")
class Binary(WeightGrid):
    """-step and +step for each channel.

        step = mean|w|,   w >= 0 becomes +step;   channels that are zero throughout stay so

    Reference: Rastegari et al., "XNOR-Net", ECCV 2016, equation 5 (weights; activations stay as they are).
    """

    bits = 2

    def step(self, weights: Any, axes: tuple[int, ...]) -> Any:
        return ops.mean(ops.abs(weights), axis=reduced_axes(weights, axes), keepdims=True)

    def integers(self, weights: Any, step: Any, axes: tuple[int, ...]) -> Any:
        sign = ops.where(weights >= 0, ops.ones_like(weights), -ops.ones_like(weights))
        return ops.where(_largest(weights, axes) > 0, sign, 0.0)


def _largest(weights: Any, axes: tuple[int, ...]) -> Any:
    return ops.max(ops.abs(weights), axis=reduced_axes(weights, axes), keepdims=True)


def _check_bits(bits: Any, least: int, most: int) -> int:
    made = check_integer("bits", bits, minimum=least)
    if made > most:
        raise ValueError(f"`bits` must lie in [{least}, {most}]; got {bits}.")
    return made


def _name(grid: WeightGrid) -> str:
    return next((name for name, cls in WEIGHT_GRIDS._classes.items() if cls is type(grid)), type(grid).__name__)
