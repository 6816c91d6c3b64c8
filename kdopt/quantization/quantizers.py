"""Fake quantization as pure functions: values on an integer grid, gradients straight through.

An affine grid of n bits over [min, max] (which contains 0) has the step and the zero point

    s = (max - min) / (2^n - 1),   z = round(-min / s)

and rounds x to s * (clip(round(x / s) + z, 0, 2^n - 1) - z). A symmetric grid has z = 0, integers in
[-(2^(n-1) - 1), 2^(n-1) - 1] and s = max|x| / (2^(n-1) - 1).

Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, equations 1 and 12; Bengio et al., "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", 2013 (straight-through estimator).
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

# Of a channel whose weights are all zero: any step will do.
SMALLEST = 1e-12


def fake_quantize(x: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """`x` on the affine grid over [low, high]; gradients pass where `x` lies in it, others go to the limits.

    Args:
        x: Tensor.
        low: Scalar <= 0.
        high: Scalar >= 0, larger than `low`.
        bits: Integer in [2, 16]. Defaults to `8`.
    """
    import tensorflow as tf

    wide = (ops.cast(value, "float32") for value in (x, low, high))
    return ops.cast(tf.quantization.fake_quant_with_min_max_vars(*wide, num_bits=bits), x.dtype)


def weight_step(weights: Any, axes: tuple[int, ...], bits: int = 8) -> Any:
    """Step of the symmetric grid of weights.

    Args:
        weights: Float tensor.
        axes: Axes with a step for each entry; of `()`, one step for all.
        bits: Integer >= 2. Defaults to `8`.

    Returns: Tensor with the rank of `weights`, 1 along the other axes.
    """
    reduced = reduced_axes(weights, axes)
    largest = ops.max(ops.abs(weights), axis=reduced, keepdims=True) if reduced else ops.abs(weights)
    return ops.stop_gradient(ops.maximum(largest / (2 ** (bits - 1) - 1), SMALLEST))


def reduced_axes(weights: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of weights that are not in `axes`."""
    rank = len(weights.shape)
    return tuple(axis for axis in range(rank) if axis not in {a % rank for a in axes})


def round_to_step(values: Any, step: Any) -> Any:
    """`values` rounded to whole multiples of `step`; the gradient is that of the identity."""
    return values + ops.stop_gradient(ops.round(values / step) * step - values)


def round_between(values: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """Means of values on the affine grid over [low, high], rounded to it as TFLite's poolings do: halves of the signed
    integer away from zero.

    A quotient is first rounded to 1/1024: in floating point a half would be a little more or less than that.
    """
    step = (high - low) / (2**bits - 1)
    zero_point = ops.round(-low / step) - 2.0 ** (bits - 1)
    integer = ops.round((values / step + zero_point) * 1024.0) / 1024.0
    integer = ops.sign(integer) * ops.floor(ops.abs(integer) + 0.5)
    return values + ops.stop_gradient((integer - zero_point) * step - values)


def learned_round(weights: Any, limit: Any, most: int) -> tuple[Any, Any]:
    """Weights on a symmetric grid whose step is trained.

        q = round(clip(w / s, -Q, Q)) * s,   s = limit / Q
        dq/ds = round(w / s) - w / s inside, +-Q outside;   times 1 / sqrt(N * Q)

    Args:
        weights: Tensor.
        limit: Variable Q * s that broadcasts to `weights`. N is the number of weights for each of its entries.
        most: Integer Q >= 1.

    Returns: (weights on the grid, step).
    Reference: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 - 3, section 2.2.
    """
    limit = ops.cast(limit, weights.dtype)
    count = float(math.prod(weights.shape)) / math.prod(limit.shape)
    step = ops.maximum(scale_gradient(limit, most**2 / math.sqrt(count * most)) / most, SMALLEST)
    return round_through(ops.clip(weights / step, -most, most)) * step, ops.stop_gradient(step)


def learned_quantize(x: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """`x` on the affine grid over [low, high], both trained.

        q = round(clip(x / s, -z, Q - z)) * s,   s = (high - low) / Q,   z = round(-low / s),   Q = 2^bits - 1
        dq/ds = round(x / s) - x / s inside;   dq/dlow = 1 below,   dq/dhigh = 1 above

    Args:
        x: Tensor.
        low: Scalar <= 0.
        high: Scalar > `low`.
        bits: Integer in [2, 16]. Defaults to `8`.

    Reference: Esser et al., ICLR 2020; Bhalgat et al., "LSQ+: Improving Low-Bit Quantization Through Learnable Offsets
        and Better Initialization", CVPR Workshops 2020, equations 5 - 7.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def rounded(x: Any, low: Any, high: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any, Any]]]:
        made = tf.quantization.fake_quant_with_min_max_vars(x, low, high, bits)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            inside, below, above = tf.quantization.fake_quant_with_min_max_vars_gradient(upstream, x, low, high, bits)
            slope = ops.sum(inside * (made - x)) / ops.maximum(high - low, SMALLEST)
            return inside, below - slope, above + slope

        return made, gradient

    wide = [ops.cast(value, "float32") for value in (x, low, high)]
    return ops.cast(rounded(*wide), x.dtype)


def round_through(values: Any) -> Any:
    """The nearest integers; the gradient is that of the identity."""
    return values + ops.stop_gradient(ops.round(values) - values)


def scale_gradient(x: Any, scale: float) -> Any:
    """`x`, whose gradient is multiplied by `scale`."""
    scaled = x * scale
    return ops.stop_gradient(x) + (scaled - ops.stop_gradient(scaled))
