"""Fake quantization as pure functions: values on an integer grid, gradients straight through.

An affine grid of n bits over [min, max] (which contains 0) has the step and the zero point

    s = (max - min) / (2^n - 1),   z = round(-min / s)

and rounds x to s * (clip(round(x / s) + z, 0, 2^n - 1) - z). A symmetric grid has z = 0, integers in
[-(2^(n-1) - 1), 2^(n-1) - 1] and s = max|x| / (2^(n-1) - 1).

Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, equations 1 and 12; Bengio et al., "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", 2013 (straight-through estimator).
"""

from typing import Any

import keras
from keras import ops

# Of a channel whose weights are all zero: any step will do.
_SMALLEST = 1e-12


def fake_quantize(x: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """`x` on the affine grid over [low, high]; gradients pass where `x` lies in it, others go to the limits.

    Args:
        x: Tensor.
        low: Scalar <= 0.
        high: Scalar >= 0, larger than `low`.
        bits: Integer in [2, 16]. Defaults to `8`.
    """
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high, num_bits=bits)


def weight_step(weights: Any, axes: tuple[int, ...], bits: int = 8) -> Any:
    """Step of the symmetric grid of weights.

    Args:
        weights: Float tensor.
        axes: Axes with a step for each entry; of `()`, one step for all.
        bits: Integer >= 2. Defaults to `8`.

    Returns: Tensor with the rank of `weights`, 1 along the other axes.
    """
    rank = len(weights.shape)
    reduced = tuple(axis for axis in range(rank) if axis not in {a % rank for a in axes})
    largest = ops.max(ops.abs(weights), axis=reduced, keepdims=True) if reduced else ops.abs(weights)
    return ops.stop_gradient(ops.maximum(largest / (2 ** (bits - 1) - 1), _SMALLEST))


def round_to_step(values: Any, step: Any) -> Any:
    """`values` rounded to whole multiples of `step`; the gradient is that of the identity."""
    return values + ops.stop_gradient(ops.round(values / step) * step - values)


def round_between(values: Any, low: Any, high: Any) -> Any:
    """Means of values on the 8-bit grid over [low, high], rounded to it as TFLite's poolings do: halves of the signed
    integer away from zero.

    A quotient is first rounded to 1/1024: in floating point a half would be a little more or less than that.
    """
    step = (high - low) / 255
    zero_point = ops.round(-low / step) - 128.0
    integer = ops.round((values / step + zero_point) * 1024.0) / 1024.0
    integer = ops.sign(integer) * ops.floor(ops.abs(integer) + 0.5)
    return values + ops.stop_gradient((integer - zero_point) * step - values)
