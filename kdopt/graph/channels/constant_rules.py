"""What layers make of channels that are constant, in inference."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.ops import core
from keras.src.ops import numpy as knp

from kdopt.graph.channels.handlers_ops import _UNARY
from kdopt.graph.channels.handlers_weights import kernel_of
from kdopt.graph.channels.rules import Call

L = keras.layers
Rule = Callable[[Any, Call, np.ndarray], np.ndarray | None]  # (Constants, call, labels of the output) -> its constants
_FUNCTIONS = (*_UNARY, L.ReLU, L.LeakyReLU, L.ELU, L.Activation)
_MOVES = (
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.GaussianDropout, L.GaussianNoise),
    *(L.AlphaDropout, L.ActivityRegularization, L.Identity, L.Permute, L.RepeatVector, L.Flatten, L.Reshape),
    *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
    *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D, L.UpSampling1D, L.UpSampling3D, L.Concatenate),
    *(knp.Reshape, knp.Transpose, knp.Swapaxes, knp.Moveaxis, knp.ExpandDims, knp.Squeeze, knp.Concatenate),
    *(knp.Split, knp.Flip, core.StopGradient),
)
_SUMS: dict[Any, Callable[..., Any]] = {
    **{L.Add: sum, L.Average: lambda v: sum(v) / len(v), L.Multiply: lambda v: _product(v)},
    **{L.Subtract: lambda v: v[0] - v[1], L.Maximum: lambda v: np.max(v, 0), L.Minimum: lambda v: np.min(v, 0)},
    **{knp.Add: sum, knp.Multiply: lambda v: _product(v), knp.Subtract: lambda v: v[0] - v[1]},
    **{knp.Maximum: lambda v: np.max(v, 0), knp.Minimum: lambda v: np.min(v, 0)},
}
SUMS, ROWS = (L.Add, knp.Add), (L.Concatenate, knp.Concatenate)


def rule_of(operation: Any) -> Rule | None:
    """The rule of a layer or operation, by its very class; `None` where nothing is known."""
    return _RULES.get(type(operation))


def _makes(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """The bias, where all weights are zero."""
    layer = getattr(call.operation, "_output_dense", call.operation)
    kernel = getattr(layer, "pointwise_kernel", None)
    zero = constants.zero(kernel_of(layer) if kernel is None else kernel)
    bias = constants.value(layer.bias)
    bias = np.zeros(labels.size) if bias is None else bias
    if zero is None or zero.shape != labels.shape or bias.shape != labels.shape:
        return None
    return _applied(layer.activation, np.where(zero, bias, np.nan))


def _depthwise(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """Zero stays zero; another constant only where no border is padded."""
    layer = call.operation
    kernel = constants.value(layer.kernel)
    kernel = kernel.reshape(-1, labels.size)
    values = constants.at(call.x, labels)
    if layer.padding != "valid" and set(layer.kernel_size) != {1}:
        values = np.where(values == 0, values, np.nan)
    made = np.where(kernel.any(0), values * kernel.sum(0), 0.0)
    bias = constants.value(layer.bias)
    return _applied(layer.activation, made if bias is None else made + bias)


def _norm(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    layer = call.operation
    if call.x.shape[layer.axis] != labels.size or getattr(layer, "renorm", False):
        return None
    gamma, beta, mean, variance = (
        constants.value(v) for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    scale = np.sqrt(variance.astype("float64") + layer.epsilon) ** -1 * (1 if gamma is None else gamma)
    made = np.where(scale == 0, 0.0, (constants.at(call.x, labels) - mean) * scale)
    return made if beta is None else made + beta


def _function(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    if len(call.flows) != 1:
        return None
    return _applied(call.operation.call, constants.at(call.x, labels))


def _rescaling(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    layer = call.operation
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return None
    return constants.at(call.x, labels) * layer.scale + layer.offset


def _moves(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray:
    """What is in several tensors must be the same in all."""
    found, held = np.full(labels.size, np.nan), np.zeros(labels.size, bool)
    for flow in call.flows:
        values, here = constants.at(flow, labels), constants.holds(flow, labels)
        found = np.where(here & ~held, values, np.where(here & (found != values), np.nan, found))
        held |= here
    return found


def _pads(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray:
    values = constants.at(call.x, labels)
    return np.where(values == 0, values, np.nan)


def _sums(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    numbers = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if leaf is not None]
    if len(numbers) != len(call.flows):
        return None
    values = _SUMS[type(call.operation)]([constants.at(flow, labels) for flow in call.flows])
    return np.asarray(values, "float64")


def _product(values: list[np.ndarray]) -> np.ndarray:
    """Nothing makes a zero another number."""
    return np.where(np.any([value == 0 for value in values], 0), 0.0, np.prod(values, 0))


def _applied(function: Any, values: np.ndarray) -> np.ndarray:
    if function is None or function is keras.activations.linear:
        return values
    known = np.flatnonzero(~np.isnan(values))
    made = np.full(values.shape, np.nan)
    if known.size:
        made[known] = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values[known], "float32")))
    return made


_KERNELS = (L.Dense, L.EinsumDense, L.Conv1D, L.Conv2D, L.Conv3D, L.Conv1DTranspose, L.Conv2DTranspose)
_RULES: dict[type, Rule] = {
    **dict.fromkeys((*_KERNELS, L.Conv3DTranspose, L.SeparableConv1D, L.SeparableConv2D), _makes),
    **dict.fromkeys((L.MultiHeadAttention, L.GroupQueryAttention), _makes),
    **dict.fromkeys((L.DepthwiseConv1D, L.DepthwiseConv2D), _depthwise),
    L.BatchNormalization: _norm,
    **dict.fromkeys(_FUNCTIONS, _function),
    L.Rescaling: _rescaling,
    **dict.fromkeys(_MOVES, _moves),
    **dict.fromkeys((L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D), _pads),
    **dict.fromkeys(_SUMS, _sums),
}
