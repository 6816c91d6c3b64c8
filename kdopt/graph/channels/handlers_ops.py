"""Channel rules of `keras.ops` operations, which are nodes of a graph like layers."""

import itertools
from itertools import count
from typing import Any

import keras
import numpy as np
from keras.src.ops import core, image, nn
from keras.src.ops import numpy as knp

from kdopt.graph.channels.handlers_merge import concatenated, joined
from kdopt.graph.channels.handlers_shapes import indexed, reshaped, transposed
from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, argument_rule, channel_rule, resize_rule


def _classes(module: Any, names: str) -> list[type]:
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


_UNARY = [
    *_classes(knp, "Abs Absolute Arccos Arcsin Arctan Cbrt Ceil Copy Cos Cosh Exp Exp2 Expm1 Fabs Floor Isfinite"),
    *_classes(knp, "Isinf Isnan Log Log10 Log1p Log2 LogicalNot NanToNum Negative Reciprocal Round Sign Sin Sinh Sqrt"),
    *_classes(knp, "Square Tan Tanh Trunc ZerosLike OnesLike"),
    *_classes(nn, "Celu Elu Gelu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid Relu Relu6 Selu"),
    *_classes(nn, "Sigmoid Silu SoftShrink Softplus Softsign SparsePlus SparseSigmoid Squareplus TanhShrink Threshold"),
    *_classes(core, "Cast StopGradient SaturateCast"),
]
_BINARY = _classes(
    knp,
    "Add Subtract Multiply Divide TrueDivide DivideNoNan Power Maximum Minimum Fmax Fmin FloorDivide Mod Arctan2 Hypot "
    "Equal NotEqual Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalXor Logaddexp Where",
)
_REDUCE = _classes(
    knp,
    "Mean Sum Max Min Amax Amin Prod Var Std Any All Median Argmax Argmin CountNonzero Average Nanmean Nansum Nanmax "
    "Nanmin",
)
_STATISTICS = (knp.Mean, knp.Var, knp.Std)  # of fewer channels they are about as large


@channel_rule(knp.Clip)
def clip(labels: Labels, operation: Any, call: Call) -> Flow:
    if np.ndim(operation.x_min) or np.ndim(operation.x_max):
        call.freeze(labels, f"{operation.name!r} has bounds of its own for each channel")
    return call.x


@channel_rule(*_UNARY)
def unary(labels: Labels, operation: Any, call: Call) -> Flow:
    return call.x


@channel_rule(*_BINARY)
def binary(labels: Labels, operation: Any, call: Call) -> Flow:
    """Numbers and arrays beside tensors are tensors in which nothing can go."""
    flows = []
    for operand in [*call.args, *call.kwargs.values()]:
        if isinstance(operand, Flow):
            flows.append(operand)
        elif operand is not None and np.ndim(_shaped(operand)):
            flows.append(Flow.plain(_shaped(operand).shape))
    return joined(labels, operation.name, flows, call.shape)


def _shaped(operand: Any) -> Any:
    """Something with the shape of an operand that is no tensor of the model."""
    return operand if hasattr(operand, "shape") else np.asarray(operand)


@channel_rule(*_REDUCE)
def reduce(labels: Labels, operation: Any, call: Call) -> Flow:
    rank = len(call.x.shape)
    axes = operation.axis
    axes = [a % rank for a in (range(rank) if axes is None else axes if isinstance(axes, (list, tuple)) else [axes])]
    for axis in axes:
        if not (labels.cut_normalized_axes and isinstance(operation, _STATISTICS)):
            labels.freeze(call.x.labels[axis], f"{operation.name!r} sums over it")
    if len(call.flows) > 1:
        call.freeze(labels, f"{operation.name!r} takes weights")
        return Flow.plain(call.shape)
    kept = [None if axis in axes else label for axis, label in enumerate(call.x.labels)]
    if not getattr(operation, "keepdims", False):
        kept = [label for axis, label in enumerate(kept) if axis not in axes]
    return call.x.given(call.shape, dict(enumerate(kept)))


@channel_rule(knp.Reshape, knp.Ravel)
def reshape(labels: Labels, operation: Any, call: Call) -> Flow:
    return reshaped(labels, operation, call.x, call.shape)


@resize_rule(knp.Reshape)
def _reshape(operation: Any, size: Any, outputs: Any) -> dict[str, Any]:
    new = [old if old in (-1, None) else now for old, now in zip(operation.newshape, outputs[0], strict=True)]
    return {"newshape": tuple(old if now is None else now for old, now in zip(operation.newshape, new, strict=True))}


@channel_rule(knp.Transpose)
def transpose(labels: Labels, operation: Any, call: Call) -> Flow:
    rank = len(call.x.shape)
    axes = operation.axes
    return transposed(call.x, tuple(range(rank))[::-1] if axes is None else tuple(a % rank for a in axes))


@channel_rule(knp.Swapaxes)
def swapaxes(labels: Labels, operation: Any, call: Call) -> Flow:
    order = list(range(len(call.x.shape)))
    one, other = operation.axis1, operation.axis2
    order[one], order[other] = order[other], order[one]
    return transposed(call.x, tuple(order))


@channel_rule(knp.Moveaxis)
def moveaxis(labels: Labels, operation: Any, call: Call) -> Flow:
    numbers = np.empty(tuple(range(2, 2 + len(call.x.shape))))
    moved = np.moveaxis(numbers, operation.source, operation.destination)
    return transposed(call.x, tuple(size - 2 for size in moved.shape))


@channel_rule(knp.ExpandDims)
def expand_dims(labels: Labels, operation: Any, call: Call) -> Flow:
    axes = operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]
    new = {axis % len(call.shape) for axis in axes}
    old = [axis for axis in range(len(call.shape)) if axis not in new]
    return call.x.given(call.shape, dict(zip(old, call.x.labels, strict=True)))


@channel_rule(knp.Squeeze)
def squeeze(labels: Labels, operation: Any, call: Call) -> Flow:
    rank, axes = len(call.x.shape), operation.axis
    if axes is None:
        axes = [axis for axis, size in enumerate(call.x.shape) if size == 1]
    gone = {axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])}
    for axis in gone:
        labels.freeze(call.x.labels[axis], f"{operation.name!r} takes the axis away")
    kept = [label for axis, label in enumerate(call.x.labels) if axis not in gone]
    return call.x.given(call.shape, dict(enumerate(kept)))


@channel_rule(knp.Concatenate)
def concatenate(labels: Labels, operation: Any, call: Call) -> Flow:
    return concatenated(labels, operation.name, call.flows, operation.axis, call.shape)


@channel_rule(knp.Stack)
def stack(labels: Labels, operation: Any, call: Call) -> Flow:
    axis = operation.axis % len(call.shape)
    one = joined(labels, operation.name, call.flows, call.x.shape)
    kept = list(one.labels)
    kept.insert(axis, None)
    return call.x.given(call.shape, dict(enumerate(kept)))


@channel_rule(knp.Split)
def split(labels: Labels, operation: Any, call: Call) -> list[Flow]:
    axis = operation.axis % len(call.x.shape)
    starts = np.cumsum([0] + [shape[axis] or 0 for shape in call.shapes])
    spans = [slice(one, other) for one, other in itertools.pairwise(starts.tolist())]
    return [indexed(call.x, axis, span, shape) for span, shape in zip(spans, call.shapes, strict=True)]


@resize_rule(knp.Split)
def _split(operation: Any, size: Any, outputs: Any) -> dict[str, Any]:
    sizes = [shape[operation.axis] for shape in outputs]
    if any(one is None for one in sizes) or (isinstance(operation.indices_or_sections, int) and len(set(sizes)) == 1):
        return {}
    return {"indices_or_sections": tuple(np.cumsum(sizes)[:-1].tolist())}


@channel_rule(knp.Flip)
def flip(labels: Labels, operation: Any, call: Call) -> Flow:
    rank = len(call.x.shape)
    axes = range(rank) if operation.axis is None else operation.axis
    flow = call.x
    for axis in [axes] if isinstance(axes, int) else axes:
        flow = indexed(flow, axis % rank, slice(None, None, -1), call.shape)
    return flow


@channel_rule(knp.Matmul)
def matmul(labels: Labels, operation: Any, call: Call) -> Flow:
    """Of two tensors of the model the axis that is summed over must stay; rows and columns pass."""
    if len(call.flows) != 2:
        call.freeze(labels, f"{operation.name!r} multiplies by numbers that are no layer's")
        return Flow.plain(call.shape)
    one, other = call.flows
    if min(len(one.shape), len(other.shape)) < 2:
        call.freeze(labels, f"{operation.name!r} sums over it")
        return Flow.plain(call.shape)
    for label in (one.at(-1), other.at(-2)):
        labels.freeze(label, f"{operation.name!r} sums products of it")
    batch = [Flow(flow.shape[:-2], flow.labels[:-2]) for flow in (one, other)]
    outer = joined(labels, operation.name, batch, call.shape[:-2]) if len(call.shape) > 2 else None
    found = dict(enumerate(outer.labels)) if outer is not None else {}
    return call.x.given(call.shape, {**found, len(call.shape) - 2: one.at(-2), len(call.shape) - 1: other.at(-1)})


@channel_rule(nn.Softmax, nn.LogSoftmax)
def softmax(labels: Labels, operation: Any, call: Call) -> Flow:
    for axis in operation.axis if isinstance(operation.axis, (list, tuple)) else [operation.axis]:
        if not labels.cut_normalized_axes:
            labels.freeze(call.x.labels[-1 if axis is None else axis], f"{operation.name!r} mixes channels")
    return call.x


@channel_rule(nn.MaxPool, nn.AveragePool, image.Resize)
def spatial(labels: Labels, operation: Any, call: Call) -> Flow:
    data_format = getattr(operation, "data_format", None) or keras.config.image_data_format()
    axis = 1 if data_format == "channels_first" else -1
    if isinstance(operation, image.Resize) and len(call.x.shape) < 4:
        call.freeze(labels, f"{operation.name!r} takes the batch for an axis of an image")
        return Flow.plain(call.shape)
    for other in call.x.labeled():
        if other != axis % len(call.x.shape):
            labels.freeze(call.x.labels[other], f"{operation.name!r} mixes places along axis {other}")
    return call.x.given(call.shape, {axis: call.x.at(axis)})


@channel_rule(knp.Pad)
def pad(labels: Labels, operation: Any, call: Call) -> Flow:
    """Numbers put beside channels are more channels, which must stay; mirrored ones depend on where the border is."""
    found: dict[int, np.ndarray | None] = dict(enumerate(call.x.labels))
    for axis in call.x.labeled():
        label, widths = found[axis], operation.pad_width[axis if len(operation.pad_width) > 1 else 0]
        if operation.mode == "constant" and label is not None and any(widths):
            borders = [labels.fresh(width) for width in widths]
            for border in borders:
                labels.freeze(border, f"{operation.name!r} puts numbers beside channels")
            found[axis] = np.concatenate([borders[0], label, borders[1]])
        elif any(widths):
            labels.freeze(label, f"{operation.name!r} pads it")
            found[axis] = None
    return call.x.given(call.shape, found)


@channel_rule(knp.GetItem)
def get_item(labels: Labels, operation: Any, call: Call) -> Flow:
    """Places along each axis; the bounds of the key move with them."""
    found = _parts(call)
    if found is None:
        call.freeze(labels, f"{operation.name!r} picks places")
        return Flow.plain(call.shape)
    kept: list[np.ndarray | None] = []
    for part, axis in found:
        label = None if axis is None else call.x.labels[axis]
        if label is not None:
            _tie(labels, operation.name, label, part)
        if not isinstance(part, int):
            kept.append(None if label is None else label[part])
    return call.x.given(call.shape, dict(enumerate(kept)))


@argument_rule(knp.GetItem)
def _key(call: Call, stays: Any) -> dict[int | str, Any]:
    parts = []
    for part, axis in _parts(call) or []:
        label = None if axis is None else call.x.labels[axis]
        parts.append(part if label is None else _moved(stays(label), part))
    return {1 if len(call.args) > 1 else "key": tuple(parts)} if parts else {}


def _parts(call: Call) -> list[tuple[Any, int | None]] | None:
    """What a key says of each axis, and which axis, none for a new one; `None` where it picks places by arrays."""
    key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    parts = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(
        part is Ellipsis or part is None or (isinstance(part, (int, slice)) and not isinstance(part, bool))
        for part in parts
    ):
        return None
    named = sum(part is not None and part is not Ellipsis for part in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    axes = count()
    whole = [slice(None)] * (len(call.x.shape) - named)
    return [(part, None if part is None else next(axes)) for part in [*parts[:at], *whole, *parts[at + 1 :]]]


def _tie(labels: Labels, name: str, label: np.ndarray, part: Any) -> None:
    """One place that is taken must stay; of a step's places, counted from zero, all or none do."""
    if isinstance(part, int):
        labels.freeze(label[part : part + 1 or None], f"{name!r} takes it")
        return
    start, stop, step = part.indices(label.size)
    if step < -1:
        labels.freeze(label[stop + 1 : start + 1], f"{name!r} takes some, backwards")
    inside = label[start - start % max(step, 1) : stop]
    for place in range(1, step):
        ends = inside[place::step]
        labels.unite(inside[::step][: ends.size], ends)


def _moved(stays: np.ndarray, part: Any) -> Any:
    """The part of what is left that holds the same places."""
    if isinstance(part, int):
        return int(stays[: part % stays.size].sum())
    start, stop, step = part.indices(stays.size)
    low, high = (start - start % step, max(start, stop)) if step > 0 else (stop + 1, max(stop, start) + 1)
    first, size = int(stays[:low].sum()), int(stays[low:high].sum())
    if step > 0:
        return slice(first + start - low, first + max(start - low, size), step)
    if not size:
        return slice(0, 0)
    return slice(first + size - 1, first - 1 if first else None, step)
