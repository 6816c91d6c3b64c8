"""Keeps a kernel pruned and clustered while it trains (PQAT, CQAT, PCQAT).

Weights that start equal form a group; group 0 holds the zeros, where zeros are kept. With g(i) the group of weight i,

    w'_i = 0                              if g(i) = 0        (zeros kept)
    w'_i = mean of w_j over g(j) = g(i)   otherwise          (values kept)

is what is rounded and used; the gradient of w'_i goes to w_i, and none to zeros. Each training step first moves every
weight to the group whose mean is nearest, as a step of k-means: so the number of values never grows. tfmot's schemes do
the same, but have the centroids as variables of their own beside the weights.

Reference: Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.schemes import Scheme

MOST_VALUES = 256  # of a kernel that counts as clustered
_FAR = 1e30  # mean of a group without weights


def groups_of(kernel: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Group of each weight.

    Args:
        kernel: Array of any shape.
        scheme: What to keep.

    Returns: float32 array of the kernel's shape: 0 for zeros that are kept; for the others 1, 2, ... for each value,
        if values are kept and there are at most 256; else -1.
    """
    groups = np.full(kernel.shape, -1, "float32")
    if scheme.keeps_values:
        values, index = np.unique(kernel, return_inverse=True)
        if len(values) <= MOST_VALUES:
            groups = (index.reshape(kernel.shape) + 1).astype("float32")
    return np.where(kernel == 0, np.float32(0), groups) if scheme.keeps_zeros else groups


def kept(kernel: Any, groups: Any, scheme: Scheme) -> Any:
    """The kernel `w'` of the equation above, with its gradient.

    Args:
        kernel: Tensor of any shape.
        groups: Tensor of that shape, from `groups_of`.
        scheme: What to keep.
    """
    import tensorflow as tf

    kernel = tf.convert_to_tensor(kernel)
    if scheme.keeps_values:
        means = tf.gather(_means(kernel, groups), _index(groups))
        kernel = _passing(tf.where(groups > 0, means, tf.stop_gradient(kernel)), kernel)
    return tf.where(groups == 0, tf.zeros_like(kernel), kernel) if scheme.keeps_zeros else kernel


def nearest(kernel: Any, groups: Any) -> Any:
    """`groups` after each weight has moved to the group, not 0, with the nearest mean."""
    import tensorflow as tf

    means = _means(kernel, groups)
    means = tf.concat([[_FAR], means[1:]], axis=0)
    order = tf.argsort(means)
    ranked = tf.gather(means, order)
    places = tf.searchsorted((ranked[:-1] + ranked[1:]) / 2, tf.reshape(kernel, (-1,)))
    found = tf.cast(tf.reshape(tf.gather(order, places), kernel.shape), groups.dtype)
    return tf.where(groups > 0, found, groups)


def _passing(value: Any, kernel: Any) -> Any:
    """`value`, whose gradient goes to `kernel` as it is."""
    import tensorflow as tf

    # Not `kernel + (value - kernel)`: that rounds, and equal values would differ in their last bit.
    return tf.custom_gradient(lambda x: (value, lambda gradient: gradient))(kernel)


def _index(groups: Any) -> Any:
    import tensorflow as tf

    return tf.cast(tf.maximum(groups, 0.0), tf.int32)


def _means(kernel: Any, groups: Any) -> Any:
    """Mean of each group: the largest plus the mean of what is over it, which is exact where all are equal."""
    import tensorflow as tf

    kernel, index = tf.stop_gradient(tf.convert_to_tensor(kernel)), _index(groups)
    largest = tf.math.unsorted_segment_max(kernel, index, MOST_VALUES + 1)
    over = tf.math.unsorted_segment_mean(kernel - tf.gather(largest, index), index, MOST_VALUES + 1)
    return tf.where(largest < -_FAR, _FAR, largest + over)


def check_something_kept(groups: Sequence[np.ndarray], scheme: Scheme, name: str) -> None:
    """Refuses a scheme that keeps what the kernels do not have.

    Args:
        groups: Those of all kernels.
        scheme: What to keep.
        name: Name of the scheme.

    Raises: ValueError.
    """
    if scheme.keeps_zeros and not any((group == 0).any() for group in groups):
        raise ValueError(
            f"scheme={name!r} keeps zeros, but no kernel has any. Way out: prune before, e.g. with `GradualPruning`, "
            "or take scheme='int8'."
        )
    if scheme.keeps_values and not any((group > 0).any() for group in groups):
        raise ValueError(
            f"scheme={name!r} keeps clusters, but every kernel has more than {MOST_VALUES} values. Way out: cluster "
            "them before, or take scheme='int8'."
        )


def preserving(quantizer: Any, scheme: Scheme) -> Any:
    """A tfmot quantizer that rounds `w'` instead of the kernel."""
    return _preserving()(quantizer, scheme)


@cache
def _preserving() -> Any:
    import tensorflow as tf

    base: Any = load().tfmot.quantization.keras.quantizers.Quantizer

    class PreservingQuantizer(base):
        """`quantizer(kept(kernel))`, with the groups in a variable, since a loaded model starts from other weights."""

        def __init__(self, quantizer: Any, scheme: Scheme) -> None:
            self.quantizer = quantizer
            self.scheme = scheme

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            groups = layer.add_weight(f"{name}_groups", shape=tensor_shape, initializer="zeros", trainable=False)
            return {**self.quantizer.build(tensor_shape, name, layer), "groups": groups}

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            if training and self.scheme.keeps_values:
                weights["groups"].assign(nearest(inputs, weights["groups"]))
            inputs = kept(inputs, weights["groups"], self.scheme)
            if training and self.scheme.keeps_values:
                # One step for the kernel: channels with their own would turn one value into as many integers.
                largest = tf.reduce_max(tf.abs(inputs))
                weights["min_var"].assign(tf.fill(weights["min_var"].shape, -largest))
                weights["max_var"].assign(tf.fill(weights["max_var"].shape, largest))
                training = False
            return self.quantizer(inputs, training, weights, **kwargs)

        def get_config(self) -> dict[str, Any]:
            return {"quantizer": self.quantizer, "scheme": self.scheme}

    return PreservingQuantizer
