"""Cross-layer equalization: channels of two layers in a row brought to the same range, without another function."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from kdopt.graph.inline import trace
from kdopt.quantization.native.placement import Placement, place
from kdopt.quantization.native.steps import Step
from kdopt.quantization.schemes import PLAIN

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# Axis of the kernel whose entries are input channels, output channels.
_READS = {**dict.fromkeys((layers.Dense, layers.Conv1D, layers.Conv2D), -2), **dict.fromkeys(_DEPTHWISE, -2)}
_MAKES = {**dict.fromkeys((layers.Dense, layers.Conv1D, layers.Conv2D), -1), **dict.fromkeys(_DEPTHWISE, -2)}
# What a channel may pass without being mixed, a positive factor with it.
_PASSES = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D, layers.ReLU),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.ZeroPadding1D, layers.ZeroPadding2D),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.Activation),
)


@dataclass(frozen=True)
class Equalized:
    """Two layers that were brought to the same ranges.

    Attributes:
        first, second: Names.
        largest: Float >= 1, the largest factor by which a channel was scaled up or down.
    """

    first: str
    second: str
    largest: float


def equalize(model: keras.Model, sweeps: int = 20) -> tuple[Equalized, ...]:
    """Scales channels between layers in a row so that both kernels use them alike; changes the model's weights.

    With r1 and r2 the largest magnitudes of channel i in the kernel that makes it (BatchNormalization folded in) and in
    the one that reads it,

        s_i = sqrt(r1_i * r2_i) / r2_i,   W1_i := W1_i / s_i,  b1_i := b1_i / s_i,  W2_i := W2_i * s_i

    which a ReLU, a pooling or nothing between them leaves the same function. So r1_i = r2_i = sqrt(r1_i r2_i).

    Args:
        model: Built Functional, Sequential or traceable subclassed model in float32.
        sweeps: Integer >= 1, how often all pairs are gone through, at most. Defaults to `20`.

    Returns: One `Equalized` a pair.
    Reference: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
        equations 9 - 11.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a built keras.Model; got {type(model).__name__}.")
    placement = place(trace(model), PLAIN)
    pairs = _pairs(placement)
    totals = [np.ones(()) for _ in pairs]
    for _ in range(sweeps):
        largest = 1.0
        for index, (first, second) in enumerate(pairs):
            scales = _scales(first, second)
            _divide(first, scales)
            _multiply(second, scales)
            totals[index] = totals[index] * scales
            largest = max(largest, float(np.max(np.maximum(scales, 1 / scales))))
        if largest < 1.001:
            break
    return tuple(
        Equalized(first.name, second.name, float(np.max(np.maximum(total, 1 / total))))
        for (first, second), total in zip(pairs, totals, strict=True)
    )


def _pairs(placement: Placement) -> list[tuple[Step, Step]]:
    readers: Counter[int] = Counter(number for step in placement.steps for number in step.inputs)
    readers.update(placement.traced.outputs)
    calls = Counter(id(step.operation) for step in placement.steps)
    made: dict[int, Step] = {}
    found = []
    for step in placement.steps:
        source = step.inputs[0] if step.inputs else -1
        before = made.get(source) if len(step.inputs) == 1 and readers[source] == 1 else None
        kind = type(step.operation)
        if before is not None and kind in _READS and calls[id(step.operation)] == 1 and _ungrouped(step.operation):
            found.append((before, step))
        if kind in _MAKES and calls[id(step.operation)] == 1 and _ungrouped(step.operation):
            made[step.outputs[0]] = step
        elif before is not None and _passes(step):
            made[step.outputs[0]] = before
    return found


def _ungrouped(layer: Any) -> bool:
    if isinstance(layer, _DEPTHWISE):
        return layer.depth_multiplier == 1 and layer.data_format == "channels_last"
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "data_format", "channels_last") == "channels_last"


def _passes(step: Step) -> bool:
    operation = step.operation
    if getattr(operation, "data_format", None) == "channels_first":
        return False
    if operation in (keras.activations.relu, keras.activations.linear):
        return True
    if isinstance(operation, layers.Activation):
        return operation.activation in (keras.activations.relu, keras.activations.linear)
    if isinstance(operation, layers.ReLU):
        return operation.max_value is None and not operation.threshold
    return isinstance(operation, _PASSES)


def _scales(first: Step, second: Step) -> np.ndarray:
    ones, twos = _magnitudes(first, _MAKES, folded=True), _magnitudes(second, _READS, folded=False)
    dead = (ones == 0) | (twos == 0)
    scales = np.sqrt(np.where(dead, 1, ones) / np.where(dead, 1, twos))
    return np.where(dead, 1.0, np.clip(scales, 1e-4, 1e4))


def _magnitudes(step: Step, axes: dict[Any, int], folded: bool) -> np.ndarray:
    layer = step.operation
    kernel = np.abs(np.asarray(layer.kernel))
    axis = axes[type(layer)] % kernel.ndim
    largest = kernel.max(axis=tuple(i for i in range(kernel.ndim) if i != axis))
    norm = step.norm
    if folded and norm is not None:
        factor = 1 / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
        largest = largest * np.abs(factor * (1 if norm.gamma is None else np.asarray(norm.gamma)))
    return largest


def _divide(step: Step, scales: np.ndarray) -> None:
    """What a layer makes, by its BatchNormalization if that has all it takes, else by its kernel and bias."""
    layer, norm = step.operation, step.norm
    if norm is not None and norm.gamma is not None and norm.beta is not None:
        norm.gamma.assign(np.asarray(norm.gamma) / scales)
        norm.beta.assign(np.asarray(norm.beta) / scales)
        return
    if norm is not None:
        # Without a factor of its own the channel is scaled behind the division by its deviation.
        norm.moving_variance.assign((np.asarray(norm.moving_variance) + norm.epsilon) * scales**2 - norm.epsilon)
        if norm.beta is not None:
            norm.beta.assign(np.asarray(norm.beta) / scales)
        return
    layer.kernel.assign(np.asarray(layer.kernel) / _along(layer, _MAKES, scales))
    if layer.use_bias:
        layer.bias.assign(np.asarray(layer.bias) / scales)


def _multiply(step: Step, scales: np.ndarray) -> None:
    layer = step.operation
    layer.kernel.assign(np.asarray(layer.kernel) * _along(layer, _READS, scales))


def _along(layer: Any, axes: dict[Any, int], scales: np.ndarray) -> np.ndarray:
    rank = len(layer.kernel.shape)
    axis = axes[type(layer)] % rank
    return scales.reshape([-1 if i == axis else 1 for i in range(rank)])
