"""BatchNormalization as a factor and an offset for each channel, and what they make of a kernel."""

from typing import Any

from keras import ops


def factor_and_offset(norm: Any) -> tuple[Any, Any]:
    """What a BatchNormalization does in inference: `y = x * factor + offset`.

        factor = gamma / sqrt(moving_variance + epsilon),   offset = beta - moving_mean * factor

    Returns: Two tensors of shape (channels,).
    Reference: Jacob et al., CVPR 2018, equation 14.
    """
    factor = ops.rsqrt(ops.cast(norm.moving_variance, "float32") + norm.epsilon)
    if norm.gamma is not None:
        factor = factor * ops.cast(norm.gamma, "float32")
    offset = -ops.cast(norm.moving_mean, "float32") * factor
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
