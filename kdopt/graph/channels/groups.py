"""Which channels of a model stay or go together."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels import (  # noqa: F401  their rules register themselves
    handlers_merge,
    handlers_norms,
    handlers_ops,
    handlers_sequences,
    handlers_shapes,
    handlers_weights,
)
from kdopt.graph.channels.handlers_sequences import unknown
from kdopt.graph.channels.labels import Flow, Labels, Role, Slot
from kdopt.graph.channels.rules import Call, resize_of, rule_of
from kdopt.graph.trace import graph_of, nodes_of, tensors_of


@dataclass(frozen=True)
class Member:
    """One axis of one Variable that holds the channels of a group.

    Attributes:
        layer: Path of the layer, names from the model down joined by `/`.
        variable: Name of the Variable.
        axis: Integer >= 0.
        role: `"makes"`, `"reads"` or `"follows"`; see `kdopt.graph.channels.labels.Slot`.
        places: For each channel of the group the places on the axis that go with it.
    """

    layer: str
    variable: str
    axis: int
    role: Role
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept in the same Variables; each of them stays or goes alone, from all members together.

    Attributes:
        channels: Integer, how many.
        members: Where they are.
        frozen: Why they must stay; empty for channels that may go.
    """

    channels: int
    members: tuple[Member, ...]
    frozen: str = ""

    @property
    def made_by(self) -> tuple[str, ...]:
        """Paths of the layers that make these channels."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.role == "makes"))

    @property
    def read_by(self) -> tuple[str, ...]:
        """Paths of the layers that read these channels."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.role == "reads"))


@dataclass(frozen=True)
class ChannelGraph:
    """All that is known of a model's channels.

    Attributes:
        labels: Identities and the Variables that hold them.
        outputs: For each call of each layer or operation, by its identity and in order, the tensors it makes.
        inputs: For each nested model the tensors of each of its calls.
        paths: Identity of a layer -> path.
        ends: The outputs of the model.
        graphs: Identity of a model, the outer one or a nested one -> its graph of calls.
        calls: All calls of layers and operations in order, those inside nested models too, and what they make.
    """

    labels: Labels
    outputs: dict[int, list[list[Flow]]] = field(default_factory=lambda: defaultdict(list))
    inputs: dict[int, list[list[Flow]]] = field(default_factory=lambda: defaultdict(list))
    paths: dict[int, str] = field(default_factory=dict)
    ends: list[Flow] = field(default_factory=list)
    graphs: dict[int, keras.Function] = field(default_factory=dict)
    calls: list[tuple[Call, list[Flow]]] = field(default_factory=list)

    def output_variables(self) -> set[int]:
        """Identities of the Variables whose channels are outputs of the model."""
        ends = [self.labels.roots(flow.labels[axis]) for flow in self.ends for axis in flow.labeled()]
        reached = np.unique(np.concatenate(ends)) if ends else np.empty(0, int)
        made = [slot for slot in self.labels.slots() if slot.role == "makes"]
        return {id(slot.variable) for slot in made if np.isin(self.labels.roots(slot.labels), reached).any()}


def channel_groups(model: keras.Model, *, allow_normalized_axes: bool = False) -> tuple[ChannelGroup, ...]:
    """Finds which channels of which layers must stay or go together.

    Runs the model on identities of channels instead of numbers: elementwise operations unite those that meet, what
    moves values moves them, and a layer with weights says which rows and columns of its kernels belong to which.
    Channels that reach an output of the model, are summed over, or enter a layer nobody has a rule for, are frozen.

    Args:
        model: Built Functional, Sequential or traceable subclassed model; left as it is.
        allow_normalized_axes: Whether channels may go that a LayerNormalization, or a mean or softmax over channels,
            takes together, although the result is then another function. Defaults to `False`.

    Returns: the groups in the model's order.
    Raises: ValueError for a model that is not built, TypeError for one that cannot be traced.

    Example:
    ```
    for group in channel_groups(model):
        print(group.channels, group.made_by, group.read_by, group.frozen)
    ```
    """
    return groups_of(trace_channels(model, allow_normalized_axes=allow_normalized_axes))


def trace_channels(model: keras.Model, *, allow_normalized_axes: bool = False) -> ChannelGraph:
    """Runs a model on identities of channels."""
    found = ChannelGraph(Labels(allow_normalized_axes))
    graph = found.graphs[id(model)] = graph_of(model)
    flows = _inline(found, graph, [Flow.plain(tensor.shape) for tensor in graph.inputs], "")
    found.ends.extend(flows)
    names = getattr(model, "output_names", None) or []
    for flow, name in zip_longest(flows, names[: len(flows)]):
        reason = f"output {name!r} of the model" if name else "an output of the model"
        for axis in flow.labeled():
            found.labels.freeze(flow.labels[axis], reason)
    return found


def _inline(
    found: ChannelGraph, graph: keras.Function, inputs: list[Flow], path: str, training: bool | None = None
) -> list[Flow]:
    flows: dict[int, Any] = {id(tensor): flow for tensor, flow in zip(graph.inputs, inputs, strict=True)}
    for node in nodes_of(graph):
        args, kwargs = node.arguments.fill_in(flows)
        if training is not None and getattr(node.operation, "_call_has_training_arg", False):
            kwargs.setdefault("training", training)
        shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
        made = _call(found, Call(node.operation, args, kwargs, shapes), path)
        found.outputs[id(node.operation)].append(made)
        flows.update({id(tensor): flow for tensor, flow in zip(node.outputs, made, strict=True)})
    return [flows[id(tensor)] for tensor in graph.outputs]


def _call(found: ChannelGraph, call: Call, path: str) -> list[Flow]:
    operation = call.operation
    name = "/".join(filter(None, (path, operation.name)))
    if isinstance(operation, keras.Model) and rule_of(operation) is None:
        inputs = tensors_of(call.args, call.kwargs, Flow)
        graph = found.graphs[id(operation)] = found.graphs.get(id(operation)) or graph_of(operation)
        if len(inputs) != len(graph.inputs):
            raise TypeError(
                f"The model {name!r} is called on {len(inputs)} tensors, but was built on {len(graph.inputs)}. Way "
                "out: let its `call` take one list of tensors, or write it with the functional API."
            )
        found.inputs[id(operation)].append(inputs)
        _go_together(found.labels, operation, found.inputs[id(operation)][0], inputs)
        return _inline(found, graph, inputs, name, call.kwargs.get("training"))
    for layer in operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else [operation]:
        found.paths.setdefault(id(layer), name)
    rule = rule_of(operation) or unknown
    made = rule(found.labels, operation, call)
    if not all(isinstance(flow, Flow) for flow in (made if isinstance(made, list) else [made])):
        raise TypeError(f"The channel_rule of {type(operation).__name__} must return a Flow, or a list; got {made!r}.")
    _check_sizes(call, made if isinstance(made, list) else [made])
    outputs = [replace(flow) for flow in (made if isinstance(made, list) else [made])]  # each a tensor of its own
    if found.outputs[id(operation)] and resize_of(operation) is not None:
        _go_together(found.labels, operation, found.outputs[id(operation)][0], outputs)
    found.calls.append((call, outputs))
    return outputs


def _check_sizes(call: Call, flows: list[Flow]) -> None:
    """Refuses a rule whose identities are not as many as the output has channels."""
    for flow, shape in zip(flows, call.shapes, strict=False):
        for axis in flow.labeled():
            size = np.asarray(flow.labels[axis]).size
            if len(flow.shape) != len(shape) or shape[axis] not in (None, size):
                raise TypeError(
                    f"The channel_rule of {type(call.operation).__name__} returned a Flow of the shape {flow.shape} "
                    f"for an output of the shape {shape}. A layer that makes channels names them, `made = labels.makes("
                    "layer, layer.kernel, -1)`, and returns `call.x.given(call.shape, {-1: made})`."
                )


def _go_together(labels: Labels, operation: Any, first: list[Flow], now: list[Flow]) -> None:
    """What has one size for all its calls needs tensors that lose the same channels."""
    reason = f"{operation.name!r} is called on something that has no channels to remove, too"
    for one, other in zip(first, now, strict=True):
        for axis in range(-min(len(one.shape), len(other.shape)), 0):
            here, there = one.at(axis), other.at(axis)
            if here is None or there is None:
                labels.freeze(there if here is None else here, reason)
            elif here.size == there.size:
                labels.unite(here, there)


def groups_of(graph: ChannelGraph) -> tuple[ChannelGroup, ...]:
    """The channels of a traced model, those with the same members in one group."""
    slots, frozen = graph.labels.slots(), graph.labels.frozen()
    where: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for index, slot in enumerate(slots):
        roots = graph.labels.roots(slot.labels)
        order = np.argsort(roots, kind="stable")
        for root, places in zip(*_runs(roots[order], order), strict=True):
            where[root].append((index, places))
    gathered: dict[Any, list[int]] = defaultdict(list)
    for root, held in where.items():
        gathered[(tuple(index for index, _ in held), frozen.get(root, ""))].append(root)
    return tuple(
        ChannelGroup(
            len(roots),
            tuple(
                _member(graph, slots[index], tuple(where[root][i][1] for root in sorted(roots)))
                for i, index in enumerate(indices)
            ),
            reason,
        )
        for (indices, reason), roots in gathered.items()
    )


def _runs(values: np.ndarray, places: np.ndarray) -> tuple[list[int], list[tuple[int, ...]]]:
    """(each value, the places where it stands) of sorted values."""
    unique, starts = np.unique(values, return_index=True)
    return unique.tolist(), [tuple(part.tolist()) for part in np.split(places, starts[1:])]


def _member(graph: ChannelGraph, slot: Slot, places: tuple[tuple[int, ...], ...]) -> Member:
    path = graph.paths.get(id(slot.layer), slot.layer.name)
    return Member(path, slot.variable.name, slot.axis, slot.role, places)
