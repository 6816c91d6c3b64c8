"""Ranges of activations and kernels, measured before training."""

from typing import Any

import numpy as np

from kdopt.quantization.tfmot.bridge import Blueprint, emit

# The range of a tensor that is always zero: any will do, a tiny one would overflow the int32 biases.
_DEAD = 1.0

Ranges = dict[int, tuple[float, float]]


def activation_ranges(
    blueprint: Blueprint,
    tensors: frozenset[int],
    batches: list[list[np.ndarray]],
    weights: dict[str, Any] | None = None,
) -> Ranges:
    """Smallest and largest value of each tensor of the float net over all batches, widened to contain 0.

    Args:
        blueprint: The model.
        tensors: Numbers of the tensors to measure.
        batches: Calibration data, one array an input.
        weights: Values by key to use instead of the source's.

    Returns: Number -> (min <= 0, max >= 0).
    Raises: ValueError if an activation is not finite.
    """
    import tensorflow as tf

    numbers = tuple(sorted(tensors))
    emitted = emit(blueprint, extra_outputs=numbers)
    for key, value in (weights or {}).items():
        emitted.variables[key].assign(value)
    net = emitted.model
    skip = len(blueprint.trace.outputs)

    @tf.function(autograph=False)
    def extremes(*arrays: Any) -> Any:
        outputs = net(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        observed = [tf.cast(x, tf.float32) for x in outputs[skip:]]
        return tf.stack([[tf.reduce_min(x), tf.reduce_max(x)] for x in observed])

    if not numbers:
        return {}
    # One trace for all batch sizes, and none of TensorFlow's warnings about retracing.
    specs = [tf.TensorSpec(tuple(entry.shape), entry.dtype) for entry in net.inputs]
    run = extremes.get_concrete_function(*specs)
    found = np.stack([run(*(tf.constant(array) for array in batch)).numpy() for batch in batches])
    low, high = np.minimum(found[..., 0].min(axis=0), 0.0), np.maximum(found[..., 1].max(axis=0), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        worst = numbers[int(np.argmin(np.isfinite(low) & np.isfinite(high)))]
        name = next((step.source for step in blueprint.steps if worst in step.outputs), "an input")
        raise ValueError(f"The output of layer {name!r} is not finite on the calibration data.")
    high = np.where(low == high, _DEAD, high)
    return {number: (float(a), float(b)) for number, a, b in zip(numbers, low, high, strict=True)}


def kernel_range(kernel: np.ndarray, per_channel: bool) -> np.ndarray:
    """Largest magnitude of the kernel: `r` of the symmetric range [-r, r].

    Args:
        kernel: Array, output channels last.
        per_channel: Whether one value a channel or one for all.

    Returns: Array of shape (channels,) or ().
    """
    magnitude = np.abs(kernel)
    return magnitude.max(axis=tuple(range(kernel.ndim - 1))) if per_channel else magnitude.max()
