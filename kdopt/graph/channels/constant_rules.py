"""What layers make of channels that are constant, in inference."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.applications.convnext import LayerScale
from keras.src.ops import core, image, nn
from keras.src.ops import numpy as knp

from kdopt.graph.channels.activations import is_elementwise
from kdopt.graph.channels.handlers_ops import _UNARY
from kdopt.graph.channels.handlers_weights import kernel_of
from kdopt.graph.channels.labels import Flow, Slot
from kdopt.graph.channels.rules import Call, keeps_zeros

L = keras.layers
Rule = Callable[[Any, Call, np.ndarray], np.ndarray | None]  # (Constants, call, labels of the output) -> its constants
_FUNCTIONS = (*_UNARY, knp.Clip, L.ReLU, L.LeakyReLU, L.ELU, L.Activation)
_MOVES = (
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.GaussianDropout, L.GaussianNoise),
    *(L.AlphaDropout, L.ActivityRegularization, L.Identity, L.Permute, L.RepeatVector, L.Flatten, L.Reshape),
    *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
    *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D, L.CenterCrop, L.Concatenate),
    *(L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    *(knp.Reshape, knp.Transpose, knp.Swapaxes, knp.Moveaxis, knp.ExpandDims, knp.Squeeze, knp.Concatenate),
    *(knp.Split, knp.Flip, knp.Ravel, knp.Stack, knp.GetItem, core.StopGradient, nn.MaxPool, nn.AveragePool),
    *(knp.Mean, knp.Amax, knp.Amin, knp.Median, knp.Nanmean, knp.Nanmax, knp.Nanmin),
)
_ZEROS_STAY = (
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.PReLU, LayerScale, L.UnitNormalization),
    *(knp.Sum, knp.Nansum, knp.Prod, knp.Std, knp.Var, knp.CountNonzero),
)
_SUMS: dict[Any, Callable[..., Any]] = {
    **{L.Add: sum, L.Average: lambda v: sum(v) / len(v), L.Multiply: lambda v: _product(v)},
    **{L.Subtract: lambda v: v[0] - v[1], L.Maximum: lambda v: np.max(v, 0), L.Minimum: lambda v: np.min(v, 0)},
    **{knp.Add: sum, knp.Multiply: lambda v: _product(v), knp.Subtract: lambda v: v[0] - v[1]},
    **{knp.Maximum: lambda v: np.max(v, 0), knp.Minimum: lambda v: np.min(v, 0)},
    **{knp.Divide: lambda v: v[0] / v[1], knp.TrueDivide: lambda v: v[0] / v[1], knp.Power: lambda v: v[0] ** v[1]},
}
_NUMBERS = (int, float, np.number)
_RECURRENT = (L.SimpleRNN, L.LSTM, L.GRU)
SUMS, ROWS = (L.Add, knp.Add), (L.Concatenate, knp.Concatenate)
SAME_IN_TRAINING = (L.Resizing, L.CenterCrop)  # for these Keras records training=True by itself


def rule_of(operation: Any) -> Rule | None:
    """The rule of a layer or operation, by its very class; `None` where nothing is known."""
    return _RULES.get(type(operation)) or (_zeros_made if keeps_zeros(operation) else None)


def inside(constants: Any, call: Call, slot: Slot) -> np.ndarray | None:
    """The constants of what a kernel reads in a layer that makes it itself: attended values, recurrent states."""
    layer = call.operation
    if isinstance(layer, (L.MultiHeadAttention, L.GroupQueryAttention)):
        if slot.variable is kernel_of(layer._output_dense):
            return _projected(constants, layer._value_dense, 1 - slot.axis, slot.labels.size)
        if any(slot.variable is one and slot.axis == axis for one, axis in _queries(layer)):
            return _projected(constants, layer._key_dense, 0, slot.labels.size)
    for one in (layer.forward_layer, layer.backward_layer) if isinstance(layer, L.Bidirectional) else (layer,):
        if isinstance(one, _RECURRENT) and slot.variable is one.cell.recurrent_kernel:
            return _units(constants, one, call)
    return None


def _queries(layer: Any) -> tuple[tuple[Any, int], ...]:
    """The Variables that read the widths of the keys, and along which axis."""
    return (kernel_of(layer._query_dense), 2), (layer._query_dense.bias, 1)


def _projected(constants: Any, part: Any, over: int, size: int) -> np.ndarray:
    """Zero for the heads (over=1) or the widths (over=0) that a projection does not make."""
    bias = constants.value(part.bias)
    made = (constants.value(kernel_of(part)) != 0).any(0)
    made = (made if bias is None else made | (bias != 0)).any(over)
    return np.where(np.repeat(made, size // made.size), np.nan, 0.0)


def _units(constants: Any, layer: Any, call: Call) -> np.ndarray:
    """Zero for the units of a recurrent layer whose candidate for a new state is always zero; they begin there."""
    cell, starts = layer.cell, len(call.flows) > 1
    at = {L.LSTM: 2, L.GRU: 2, L.SimpleRNN: 0}[type(layer)]
    values = (constants.value(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias) if v is not None)
    gates = [value.reshape(-1, value.shape[-1] // cell.units, cell.units)[:, at] for value in values]
    alive = np.any([gate.any(0) for gate in gates], 0)
    quiet = not starts and not np.any(_applied(cell.activation, np.zeros(1)))
    return np.where(alive | (not quiet), np.nan, 0.0)


def _recurrent(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    units = _units(constants, call.operation, call)
    return units if units.shape == labels.shape else None


def _bidirectional(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    layers = (call.operation.forward_layer, call.operation.backward_layer)
    if not all(type(layer) in _RECURRENT for layer in layers):
        return None
    made = [_units(constants, layer, call) for layer in layers]
    both = made[0] + made[1]
    return np.tile(both, labels.size // both.size)


def _embedding(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    zero = constants.zero(call.operation._embeddings, labels)
    return None if zero is None or call.operation.mask_zero else np.where(zero, 0.0, np.nan)


def _zeros_made(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray:
    """What a user's layer lets through as zero, or makes with nothing but zeros: kernel, bias."""
    made = constants.zeros_of(call.operation, labels)
    return _zero_stays(constants, call, labels) if made is None else np.where(made, 0.0, np.nan)


def _zero_stays(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray:
    """Borders of zeros, slopes and scales of their own."""
    values = constants.at(call.x, labels)
    return np.where(values == 0, values, np.nan)


def _borders(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """What is put around places is the same number, or places again."""
    operation, values = call.operation, _moves(constants, call, labels)
    if isinstance(operation, knp.Pad):
        border = call.kwargs.get("constant_values", call.args[1] if len(call.args) > 1 else None)
        border, padded = 0.0 if border is None else border, operation.mode == "constant"
        if not isinstance(border, _NUMBERS):
            return None
    else:
        border, padded = operation.fill_value, operation.pad_to_aspect_ratio
    return np.where(values == border, values, np.nan) if padded else values


def _largest(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """The largest or smallest of equal numbers is that number, if no other is compared with them."""
    return _moves(constants, call, labels) if call.operation.initial is None else None


def _group_norm(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """Constants of a group have a mean and a variance; one that is normalized alone has nothing but its shift."""
    layer = call.operation
    follows = all(constants.follows(variable, labels) for variable in (layer.gamma, layer.beta))
    if call.x.labels[layer.axis] is None or not follows:
        return None
    gamma, beta = constants.value(layer.gamma), constants.value(layer.beta)
    each = constants.at(call.x, labels).reshape(layer.groups, -1)
    scale = np.sqrt(each.var(1, keepdims=True) + layer.epsilon) ** -1
    made = ((each - each.mean(1, keepdims=True)) * scale).reshape(-1) * (1 if gamma is None else gamma)
    return made if beta is None else made + beta


def _makes(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """The bias, where all weights are zero."""
    layer = getattr(call.operation, "_output_dense", call.operation)
    layer = layer.layer if isinstance(layer, L.TimeDistributed) else layer
    if layer is not call.operation and rule_of(layer) is not _makes:
        return None
    kernel = getattr(layer, "pointwise_kernel", None)
    zero = constants.zero(kernel_of(layer) if kernel is None else kernel, labels)
    bias = constants.value(layer.bias)
    bias = np.zeros(labels.size) if bias is None else bias
    if zero is None or not constants.follows(layer.bias, labels) or bias.size != labels.size:
        return None
    return _applied(layer.activation, np.where(zero, bias.reshape(-1), np.nan))


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
    if not constants.follows(layer.moving_mean, labels) or getattr(layer, "renorm", False):
        return None
    gamma, beta, mean, variance = (
        constants.value(v) for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    scale = np.sqrt(variance.astype("float64") + layer.epsilon) ** -1 * (1 if gamma is None else gamma)
    made = np.where(scale == 0, 0.0, (constants.at(call.x, labels) - mean) * scale)
    return made if beta is None else made + beta


def _function(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    operation = call.operation
    if len(call.flows) != 1 or not (isinstance(operation, (*_UNARY, knp.Clip)) or is_elementwise(operation)):
        return None
    return _applied(operation.call, constants.at(call.x, labels))


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


def _sums(constants: Any, call: Call, labels: np.ndarray) -> np.ndarray | None:
    """Of tensors and numbers; an array has a number of its own for each place."""
    operands = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if leaf is not None]
    if not all(isinstance(one, (Flow, *_NUMBERS)) for one in operands):
        return None
    values = [constants.at(one, labels) if isinstance(one, Flow) else np.full(labels.size, one) for one in operands]
    with np.errstate(all="ignore"):
        made = np.asarray(_SUMS[type(call.operation)](values), "float64")
    return np.where(np.isfinite(made), made, np.nan)


def _product(values: list[np.ndarray]) -> np.ndarray:
    """Nothing makes a zero another number."""
    return np.where(np.any([value == 0 for value in values], 0), 0.0, np.prod(values, 0))


def _applied(function: Any, values: np.ndarray) -> np.ndarray:
    if function is None or function is keras.activations.linear:
        return values
    if (isinstance(function, L.Layer) or inspect.isfunction(function)) and not is_elementwise(function):
        return np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    made = np.full(values.shape, np.nan)
    if known.size:
        made[known] = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values[known], "float32")))
    return made


_KERNELS = (L.Dense, L.EinsumDense, L.Conv1D, L.Conv2D, L.Conv3D, L.Conv1DTranspose, L.Conv2DTranspose)
_RULES: dict[type, Rule] = {
    **dict.fromkeys((*_KERNELS, L.Conv3DTranspose, L.SeparableConv1D, L.SeparableConv2D), _makes),
    **dict.fromkeys((L.MultiHeadAttention, L.GroupQueryAttention, L.TimeDistributed), _makes),
    **dict.fromkeys((L.DepthwiseConv1D, L.DepthwiseConv2D), _depthwise),
    L.BatchNormalization: _norm,
    **dict.fromkeys(_FUNCTIONS, _function),
    L.Rescaling: _rescaling,
    **dict.fromkeys(_MOVES, _moves),
    **dict.fromkeys(_ZEROS_STAY, _zero_stays),
    **dict.fromkeys((knp.Max, knp.Min), _largest),
    **dict.fromkeys((knp.Pad, L.Resizing, image.Resize), _borders),
    **dict.fromkeys(_RECURRENT, _recurrent),
    L.Bidirectional: _bidirectional,
    L.Embedding: _embedding,
    L.GroupNormalization: _group_norm,
    **dict.fromkeys(_SUMS, _sums),
}
