"""Channels that carry nothing but a constant, and the biases that take it over."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.neighbors import norms_after
from kdopt.graph.channels.constant_rules import inside
from kdopt.graph.channels.constants import Constants
from kdopt.graph.channels.groups import ChannelGraph
from kdopt.graph.channels.handlers_weights import kernel_of
from kdopt.graph.channels.labels import Slot

L = keras.layers


@dataclass(frozen=True)
class DeadChannels:
    """Channels with which nothing is lost.

    Attributes:
        roots: Integer array, their identities.
        reads: (input axis of a kernel, the Variable that takes over what it adds, constant at each place): what must be
            folded when they go.
        labels: Of the graph.
    """

    roots: np.ndarray
    reads: tuple[tuple[Slot, keras.Variable, np.ndarray], ...]
    labels: Any

    def folds(self, removed: np.ndarray) -> dict[int, np.ndarray]:
        """Identity of a Variable -> what is added to it when channels go.

            bias += sum over dead inputs i of c_i * (sum over offsets of kernel[..., i, :])

        A layer without a bias hands it to the moving mean of its BatchNormalization, with the other sign.
        """
        found: dict[int, np.ndarray] = {}
        for slot, target, values in self.reads:
            roots = self.labels.roots(slot.labels)
            gone = np.isin(roots, removed) & np.isin(roots, self.roots)
            if gone.any() and values[gone].any():
                kernel = keras.ops.convert_to_numpy(slot.variable).astype("float64")
                rows = np.moveaxis(kernel, slot.axis, 0)[gone]
                rows = rows.reshape(rows.shape[0], -1, rows.shape[-1]).sum(1)
                sign = -1 if target.name == "moving_mean" else 1
                total = found.get(id(target), np.zeros(tuple(target.shape)))
                found[id(target)] = (total + sign * values[gone] @ rows).astype("float32")
        return found


def dead_channels(model: keras.Model, graph: ChannelGraph) -> DeadChannels:
    """Channels that may go and are constant wherever they are read: zero, or where their readers can take it over.

    Dense layers, and convolutions of size 1 or without padding and not in groups, can, if they have a bias or a
    BatchNormalization alone behind them. Exact in inference.
    """
    constants, norms = Constants(graph), norms_after(model)
    read: dict[int, list[tuple[Slot, Any, np.ndarray]]] = defaultdict(list)
    owned: dict[int, list[Slot]] = defaultdict(list)
    slots = graph.labels.slots()
    for slot in slots:
        if slot.role == "reads":
            owned[id(slot.layer)].append(slot)
    for call, _ in graph.calls:
        layers = call.operation._flatten_layers() if isinstance(call.operation, keras.layers.Layer) else []
        for slot in [slot for layer in layers for slot in owned[id(layer)]]:
            layer = call.operation.layer if isinstance(call.operation, L.TimeDistributed) else call.operation
            target = _target(layer, norms) if slot.layer is layer else None
            values = inside(constants, call, slot)
            if values is None:
                values = _agreed([constants.at(flow, slot.labels) for flow in call.flows])
            read[id(slot)].append((slot, target, values))
    stay, folded = set(graph.labels.frozen()), []
    makes = {root for slot in slots if slot.role == "makes" for root in graph.labels.roots(slot.labels).tolist()}
    for slot in (slot for own in owned.values() for slot in own):
        calls = read[id(slot)]
        values = _agreed([values for _, _, values in calls]) if calls else np.full(slot.labels.shape, np.nan)
        target = calls[0][1] if calls else None
        alive = np.isnan(values) if target is not None else values != 0
        stay.update(graph.labels.roots(slot.labels)[alive].tolist())
        if target is not None:
            folded.append((slot, target, values))
    reached = {root for own in owned.values() for slot in own for root in graph.labels.roots(slot.labels).tolist()}
    return DeadChannels(np.array(sorted((makes & reached) - stay), int), tuple(folded), graph.labels)


def _agreed(values: list[np.ndarray]) -> np.ndarray:
    """The constant where all say the same; NaN, too, is another."""
    first = values[0]
    return np.where(np.all([value == first for value in values], 0), first, np.nan)


def _target(layer: Any, norms: dict[int, Any]) -> keras.Variable | None:
    """The Variable that a constant in what a layer reads can be added to."""
    if type(layer) in (L.Conv1D, L.Conv2D, L.Conv3D):
        if layer.groups > 1 or (layer.padding != "valid" and set(layer.kernel_size) != {1}):
            return None
    elif type(layer) is not L.Dense:
        return None
    if getattr(layer, "data_format", "channels_last") == "channels_first" and layer.bias is None:
        return None
    if layer.bias is not None:
        return layer.bias
    norm = norms.get(id(layer))
    made = kernel_of(layer).shape[-1]
    if norm is None or layer.activation is not keras.activations.linear or tuple(norm.moving_mean.shape) != (made,):
        return None
    return norm.moving_mean
