"""BatchNormalization as a factor and an offset for each channel, and what they make of a kernel."""

from typing import Any

import keras
from keras import ops
from keras.src import backend

# TensorFlow raises smaller ones to it.
_SMALLEST_EPSILON = 1.001e-5


def factor_and_offset(norm: Any, moments: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """What a BatchNormalization does: `y = x * factor + offset`.

        factor = gamma / sqrt(variance + epsilon),   offset = beta - mean * factor

    Args:
        norm: The layer.
        moments: (mean, variance), each (channels,). Defaults to `None`: the moving ones, as in inference.

    Returns: Two tensors of shape (channels,).
    Reference: Jacob et al., CVPR 2018, equation 14.
    """
    mean, variance = moments or (ops.cast(norm.moving_mean, "float32"), ops.cast(norm.moving_variance, "float32"))
    factor = ops.rsqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        factor = factor * ops.cast(norm.gamma, "float32")
    offset = -mean * factor
    return factor, offset if norm.beta is None else offset + ops.cast(norm.beta, "float32")


def along(values: Any, kernel: Any, axes: tuple[int, ...]) -> Any:
    """A value for each channel in a shape that broadcasts to the kernel, whose channels lie along `axes`."""
    rank = len(kernel.shape)
    places = {axis % rank for axis in axes}
    return ops.reshape(values, [size if axis in places else 1 for axis, size in enumerate(kernel.shape)])


def is_trained(norm: Any, training: bool) -> bool:
    """Whether a BatchNormalization is to be called: it normalizes with the statistics of the batch, or is measured.

    `reestimate_batch_norm` puts a `call` of its own into the layer.
    """
    return (training and norm.trainable) or "call" in vars(norm)


def statistics(norm: Any, x: Any, run: Any) -> tuple[Any, Any]:
    """Mean and variance of a batch, which the moving ones follow; the moving ones where they are frozen.

    Args:
        norm: The BatchNormalization.
        x: Its input, channels last.
        run: The `Pass`.

    Returns: Two tensors of shape (channels,), float32.
    """
    if getattr(norm, "renorm", False):
        raise ValueError(
            f"{norm.name!r} has renorm=True, whose corrections neither `folding` nor `freeze_batch_norm` knows. "
            "Way out: leave these options out, or set renorm=False."
        )
    mean, variance = ops.moments(
        ops.cast(x, "float32"), axes=tuple(range(len(x.shape) - 1)), synchronized=norm.synchronized
    )
    frozen = run.how.frozen
    pairs = ((norm.moving_mean, mean), (norm.moving_variance, variance))
    for moving, batch in pairs:
        followed = ops.cast(moving, "float32") * norm.momentum + ops.stop_gradient(batch) * (1.0 - norm.momentum)
        kept = followed if frozen is None else ops.where(frozen, ops.cast(moving, "float32"), followed)
        moving.assign(ops.cast(kept, moving.dtype))
    if frozen is None:
        return mean, variance
    first, second = (ops.where(frozen, ops.cast(moving, "float32"), batch) for moving, batch in pairs)
    return first, second


def normalized(norm: Any, x: Any, run: Any) -> Any:
    """What a BatchNormalization makes of a tensor in this pass."""
    if not run.training or not norm.trainable or "call" in vars(norm):
        return norm(x, training=run.training)
    if run.how.frozen is None:
        return _by_batch(norm, x) if _is_plain(norm, x) else norm(x, training=True)
    factor, offset = factor_and_offset(norm, statistics(norm, x, run))
    return ops.cast(ops.cast(x, "float32") * factor + offset, x.dtype)


def _is_plain(norm: Any, x: Any) -> bool:
    """Whether TensorFlow's operation for all of a BatchNormalization, channels last, computes what the layer does."""
    plain = type(norm) is keras.layers.BatchNormalization and not (getattr(norm, "renorm", False) or norm.synchronized)
    return plain and norm.epsilon >= _SMALLEST_EPSILON and backend.get_keras_mask(x) is None


def _by_batch(norm: Any, x: Any) -> Any:
    """What the layer makes of a batch in training, its moving statistics included, in about half its time."""
    import tensorflow as tf

    wide = ops.cast(x, "float32")
    channels = wide.shape[-1]
    gamma, beta = (
        make(channels, dtype="float32") if variable is None else ops.cast(variable, "float32")
        for variable, make in ((norm.gamma, ops.ones), (norm.beta, ops.zeros))
    )
    images = wide if len(wide.shape) == 4 else ops.reshape(wide, (-1, 1, 1, channels))
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(images, gamma, beta, epsilon=norm.epsilon)[:3]
    count = ops.cast(ops.size(wide) // channels, "float32")
    # TensorFlow gives the variance of the population that a batch was drawn from, n / (n - 1) of the batch's own.
    for moving, batch in ((norm.moving_mean, mean), (norm.moving_variance, variance * ((count - 1.0) / count))):
        moving.assign(ops.cast(moving, "float32") * norm.momentum + batch * (1.0 - norm.momentum))
    return ops.cast(ops.reshape(y, ops.shape(wide)), norm.compute_dtype)
