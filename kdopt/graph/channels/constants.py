"""Which channels hold one number wherever they are looked at, and what is left to compute without some channels."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.constant_rules import ROWS, SAME_IN_TRAINING, SUMS, rule_of
from kdopt.graph.channels.groups import ChannelGraph
from kdopt.graph.channels.labels import Flow, Slot
from kdopt.graph.channels.rules import Call
from kdopt.graph.trace import nodes_of


class Constants:
    """The channels of every tensor of a model that are the same at all places and for all inputs, in inference.

    A channel is constant where its kernel is zero, or where all that its kernel would read is gone; rules say what
    normalizations, activations, poolings and sums make of it. Nothing is concluded from data.

    Args:
        graph: What `trace_channels` found.
        removed: Integer array, identities that go.
        added: Identity of a Variable -> what is added to its value.
        branches: Whether what adds nothing but a constant to another tensor need not be computed, also where nothing is
            removed.
        memo: A dict for several of them on one model whose weights stay: what is known of kernels is kept in it.

    Attributes:
        refused: Why the model cannot be made without `removed`: layers that would be left with nothing to read.
        emptied: Integer array, the identities of axes of which nothing is left.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        removed: np.ndarray | None = None,
        added: Mapping[int, np.ndarray] | None = None,
        branches: bool = False,
        memo: dict[tuple[int, int], np.ndarray] | None = None,
    ) -> None:
        self._memo = {} if memo is None else memo
        self._graph, self._added, self._branches = graph, added or {}, branches
        self._removed = np.empty(0, int) if removed is None else np.unique(graph.labels.roots(removed))
        self._slots: dict[int, list[Slot]] = defaultdict(list)
        for slot in graph.labels.slots():
            self._slots[id(slot.variable)].append(slot)
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._gone: dict[int, np.ndarray] = {}
        self.refused: list[str] = []
        self.emptied = np.empty(0, int)
        for call, outputs in graph.calls:
            self._know(call, outputs)
        if self._removed.size or branches:
            self._drop()
        if any(id(flow) in self._gone for flow in graph.ends):
            self.refused.append("an output of the model would be a constant")
        for key, inputs in graph.inputs.items():
            made = graph.outputs[key]
            whole = all(self._all_gone(outputs) for outputs in made)
            if not whole and any(id(flow) in self._gone for flows in [*inputs, *made] for flow in flows):
                self.refused.append("a part of a nested model would be left with nothing to read, or make nothing")

    def value(self, variable: Any) -> Any:
        """A Variable as an array, `None` for none."""
        if not isinstance(variable, keras.Variable):
            return None
        value = keras.ops.convert_to_numpy(variable)
        return value + self._added[id(variable)] if id(variable) in self._added else value

    def at(self, flow: Flow, labels: np.ndarray | None) -> np.ndarray:
        """The constant of each identity in a tensor; NaN where it is none, or the tensor does not have it."""
        roots = self._graph.labels.roots(labels)
        known, values = self._known.get(id(flow), (np.empty(0, int), np.empty(0)))
        places = np.searchsorted(known, roots)
        return np.append(values, np.nan)[np.where(np.isin(roots, known), places, -1)]

    def holds(self, flow: Flow, labels: np.ndarray | None) -> np.ndarray:
        """Whether a tensor has each of the identities, constant or not."""
        own = [self._graph.labels.roots(flow.labels[axis]) for axis in flow.labeled()]
        return np.isin(self._graph.labels.roots(labels), np.concatenate([np.empty(0, int), *own]))

    def zero(self, kernel: keras.Variable, labels: np.ndarray) -> np.ndarray | None:
        """For each channel whether what is left of a kernel's weights is zero; `None` if it does not make these."""
        makes = [slot for slot in self._slots[id(kernel)] if slot.role == "makes" and self._same(slot.labels, labels)]
        if not makes:
            return None
        axis = makes[-1].axis
        reads = [slot for slot in self._slots[id(kernel)] if slot.axis != axis and slot.role != "follows"]
        left = [(slot.axis, self.stays(slot.labels)) for slot in reads]
        whole = all(stays.all() for _, stays in left)
        if whole and (id(kernel), axis) in self._memo:
            return self._memo[id(kernel), axis]
        value = self.value(kernel) != 0
        for other, stays in left:
            value = np.take(value, np.flatnonzero(stays), axis=other)
        found = ~value.any(tuple(other for other in range(value.ndim) if other != axis))
        if whole:
            self._memo[id(kernel), axis] = found
        return found

    def zeros_of(self, layer: Any, labels: np.ndarray) -> np.ndarray | None:
        """For each channel whether all weights of it in a layer are zero; `None` if the layer does not make these."""
        own = [slot for variable in layer.variables for slot in self._slots.get(id(variable), [])]
        makes = [slot.variable for slot in own if slot.role == "makes" and self._same(slot.labels, labels)]
        found = [zero for variable in makes if (zero := self.zero(variable, labels)) is not None]
        for slot in own:
            if slot.role == "follows" and self._same(slot.labels, labels):
                value = np.moveaxis(self.value(slot.variable), slot.axis, 0)
                found.append(~(value.reshape(value.shape[0], -1) != 0).any(1))
        return np.logical_and.reduce(found) if makes and found else None

    def follows(self, variable: Any, labels: np.ndarray) -> bool:
        """Whether a Variable, if there is one, has a value for each of these identities."""
        slots = [] if variable is None else self._slots.get(id(variable), [])
        return variable is None or (len(slots) == 1 and self._same(slots[0].labels, labels))

    def stays(self, labels: np.ndarray | None) -> np.ndarray:
        """Whether each identity stays."""
        return ~np.isin(self._graph.labels.roots(labels), self._removed)

    def gone(self, flow: Flow) -> np.ndarray | None:
        """The constants of a tensor that need not be computed any more, one a channel that stays; else `None`."""
        return self._gone.get(id(flow))

    def needed(self) -> set[int]:
        """Identities of the layers and operations that are still to be computed."""
        flows, found = {id(flow) for flow in self._graph.ends}, set()
        nested = [outputs for key in self._graph.inputs for outputs in self._graph.outputs[key]]
        for call, outputs in reversed(self._graph.calls):
            for group in nested:  # of a nested model all outputs are made, or none
                if any(id(flow) in flows for flow in group):
                    flows.update(id(flow) for flow in group)
            if not self._all_gone(outputs) and any(id(flow) in flows for flow in outputs):
                found.add(id(call.operation))
                flows.update(id(flow) for flow in call.flows)
        return found

    def _know(self, call: Call, outputs: list[Flow]) -> None:
        trains = call.kwargs.get("training") and not isinstance(call.operation, SAME_IN_TRAINING)
        rule = None if trains else rule_of(call.operation)
        for flow in outputs if rule is not None else []:
            labels = [label for label in flow.labels if label is not None]
            values = rule(self, call, labels[0]) if rule is not None and len(labels) == 1 else None
            if values is not None:
                self._known[id(flow)] = self._agreed(labels[0], values)

    def _drop(self) -> None:
        """What need not be computed, in order."""
        readers: dict[int, list[tuple[Call, Flow]]] = defaultdict(list)
        for call, outputs in self._graph.calls:
            for flow in call.flows:
                readers[id(flow)].append((call, outputs[0]))
        fixed = {id(flow) for flow in [*self._graph.ends, *self._parts()]}
        often = [self._graph.graphs[key] for key, calls in self._graph.inputs.items() if len(calls) > 1]
        shared = {id(node.operation) for graph in often for node in nodes_of(graph)}  # made once for all calls
        for call, outputs in self._graph.calls:
            left = [self._left(flow) for flow in outputs]
            absent = [flow for flow in call.flows if id(flow) in self._gone]
            emptied = self._emptied(call.operation) or any(values is not None and not values.size for values in left)
            known = all(values is not None for values in left)
            idle = self._branches and known and id(call.operation) not in shared
            idle = idle and not any(id(flow) in fixed for flow in outputs)
            lost = bool(absent) and not self._absorbs(call, absent, outputs[0])
            idle = idle and all(self._only_adds(flow, readers[id(flow)]) for flow in outputs)
            if known and (lost or emptied or idle):
                found = {id(flow): values for flow, values in zip(outputs, left, strict=True) if values is not None}
                self._gone.update(found)
            elif emptied or lost:
                self.refused.append(f"{call.operation.name!r} would be left with nothing to read")

    def _parts(self) -> list[Flow]:
        """The tensors between a nested model and what is around it, but for the only one that a model makes."""
        made = [[flow for outputs in self._graph.outputs[key] for flow in outputs] for key in self._graph.inputs]
        several = [flow for flows in made if len(flows) > 1 for flow in flows]
        return [*several, *(flow for calls in self._graph.inputs.values() for flows in calls for flow in flows)]

    def _only_adds(self, flow: Flow, readers: list[tuple[Call, Flow]]) -> bool:
        """Whether a tensor is only added to others, which are no constants."""
        return bool(readers) and all(
            isinstance(call.operation, SUMS)
            and self._absorbs(call, [one for one in call.flows if one is flow or self._left(one) is not None], output)
            for call, output in readers
        )

    def _absorbs(self, call: Call, absent: list[Flow], output: Flow) -> bool:
        """Whether a call can do without some of its tensors: a sum, or a concatenation to which they add nothing."""
        if isinstance(call.operation, ROWS):
            return len(absent) < len(call.flows) and not any(self._gone[id(flow)].size for flow in absent)
        present = [flow for flow in call.flows if not any(flow is one for one in absent)]
        numbers = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if leaf is not None]
        alike = all(flow.shape == output.shape for flow in present)
        return isinstance(call.operation, SUMS) and bool(present) and alike and len(numbers) == len(call.flows)

    def _emptied(self, operation: Any) -> bool:
        """Whether one of a layer's Variables has nothing left."""
        variables = operation.variables if isinstance(operation, keras.layers.Layer) else []
        slots = [slot for variable in variables for slot in self._slots.get(id(variable), [])]
        return any([self._empty(slot.labels) for slot in slots])

    def _left(self, flow: Flow) -> np.ndarray | None:
        """The constants of the channels that stay; `None` if one of them is none."""
        axes = flow.labeled()
        if any([self._empty(flow.labels[axis]) for axis in axes]):
            return np.empty(0)
        if len(axes) != 1:
            return None
        labels = np.asarray(flow.labels[axes[0]])
        values = self.at(flow, labels)[self.stays(labels)]
        return None if np.isnan(values).any() else values

    def _empty(self, labels: np.ndarray | None) -> bool:
        """Whether nothing is left of an axis."""
        if self.stays(labels).any():
            return False
        self.emptied = np.union1d(self.emptied, self._graph.labels.roots(labels))
        return True

    def _all_gone(self, flows: list[Flow]) -> bool:
        return all(id(flow) in self._gone for flow in flows)

    def _same(self, one: np.ndarray, other: np.ndarray) -> bool:
        return np.array_equal(self._graph.labels.roots(one), self._graph.labels.roots(other))

    def _agreed(self, labels: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(roots, their constants) where all places of a root have the same."""
        roots, places = np.unique(self._graph.labels.roots(labels), return_inverse=True)
        low, high = np.full(roots.size, np.inf), np.full(roots.size, -np.inf)
        with np.errstate(invalid="ignore"):  # NaN stands for no constant
            np.minimum.at(low, places, values)
            np.maximum.at(high, places, values)
        same = low == high
        return roots[same], low[same]
