"""BatchNormalization as a factor and an offset for each channel, and what they make of a kernel."""

from typing import Any

from keras import ops


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
    mean, variance = ops.moments(ops.cast(x, "float32"), axes=tuple(range(len(x.shape) - 1)))
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
    if not run.training or run.how.frozen is None or not norm.trainable or "call" in vars(norm):
        return norm(x, training=run.training)
    factor, offset = factor_and_offset(norm, statistics(norm, x, run))
    return ops.cast(ops.cast(x, "float32") * factor + offset, x.dtype)
