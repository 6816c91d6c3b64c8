"""Channel rules of layers and operations that take several tensors."""

from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, channel_rule

L = keras.layers


@channel_rule(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
def merge(labels: Labels, layer: Any, call: Call) -> Flow:
    return joined(labels, layer.name, call.flows, call.shape)


@channel_rule(L.Concatenate)
def concatenate(labels: Labels, layer: Any, call: Call) -> Flow:
    return concatenated(labels, layer.name, call.flows, layer.axis, call.shape)


@channel_rule(L.Dot)
def dot(labels: Labels, layer: Any, call: Call) -> Flow:
    call.freeze(labels, f"{layer.name!r} sums products of channels")
    return Flow.plain(call.shape)


def joined(labels: Labels, name: str, flows: list[Flow], shape: tuple[int | None, ...]) -> Flow:
    """Several tensors, broadcast as NumPy does, to one in which each place meets the others at the same place."""
    rank, found = len(shape), {}
    for axis in range(-rank, 0):
        there = [flow for flow in flows if len(flow.shape) >= -axis]
        wide = [flow for flow in there if flow.shape[axis] == shape[axis]]
        for flow in there:
            if flow not in wide:
                labels.freeze(flow.labels[axis], f"{name!r} spreads it over a wider tensor")
        labeled = [flow.labels[axis] for flow in wide if flow.labels[axis] is not None]
        if not labeled:
            continue
        for label in labeled:
            if label is not None and (len(labeled) < len(wide) or label.size != shape[axis]):
                labels.freeze(label, f"{name!r} joins it with something that has no channels to remove")
            else:
                labels.unite(labeled[0], label)
        found[axis] = labeled[0] if len(labeled) == len(wide) else None
    return flows[0].given(shape, found)


def concatenated(labels: Labels, name: str, flows: list[Flow], axis: int, shape: tuple[int | None, ...]) -> Flow:
    """Tensors one behind the other along `axis`; along the others their places go together."""
    rank = len(shape)
    axis %= rank
    found: dict[int, np.ndarray | None] = {}
    for other in range(rank):
        labeled = [flow.labels[other] for flow in flows]
        if other != axis:
            whole = all(label is not None for label in labeled)
            for label in labeled:
                if not whole:
                    labels.freeze(label, f"{name!r} puts it beside something that has no channels to remove")
                elif label is not None and labeled[0] is not None:
                    labels.unite(labeled[0], label)
            found[other] = labeled[0] if whole else None
        elif shape[axis] is None:
            for label in labeled:
                labels.freeze(label, f"{name!r} puts it beside something of an open size")
        elif any(label is not None for label in labeled):
            parts = []
            for flow, label in zip(flows, labeled, strict=True):
                part = labels.fresh(int(flow.shape[axis] or 0)) if label is None else label
                if label is None:
                    labels.freeze(part, f"{name!r} reads it from something that has no channels to remove")
                parts.append(part)
            found[axis] = np.concatenate(parts)
    return flows[0].given(shape, found)
