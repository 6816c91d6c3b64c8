"""A model made again with fewer channels: new layers of the new sizes, weights cut to fit."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src import backend
from keras.src.saving.serialization_lib import SafeModeScope

from kdopt.core.compiling import compile_as
from kdopt.core.copying import copy_assets, settle
from kdopt.graph.channels.constants import Constants
from kdopt.graph.channels.groups import ChannelGraph
from kdopt.graph.channels.labels import Flow
from kdopt.graph.channels.rules import Call, rearranged, renewed
from kdopt.graph.inline import name_of
from kdopt.graph.trace import makes_graphs, nodes_of


def without(
    model: keras.Model,
    graph: ChannelGraph,
    removed: np.ndarray,
    added: Mapping[int, np.ndarray] | None = None,
    branches: bool = False,
    *,
    weights: bool = True,
    compiled: bool = True,
    name: str | None = None,
) -> keras.Model:
    """A new model without some channels.

    Layer names, trainable flags, dtype policies and the nesting of Functional and Sequential models stay; a subclassed
    model comes out as a Functional one. Compiled as the model is, with a new optimizer. Where all channels between two
    layers go, and what is left is a constant added to another tensor, those layers go, too; a constant that is not zero
    is added by a `Rescaling` in the place of the sum.

    Args:
        model: The model that was traced; left as it is.
        graph: What `trace_channels` found in it.
        removed: Integer array, the identities that go, all of their united sets.
        added: Identity of a Variable -> what is added to its value before it is cut.
        branches: Whether layers go, too, that add nothing but a constant to another tensor as they are.
        weights: Whether the new layers get the old weights, cut. With False they keep those that their own initializers
            gave them, but for what a layer has learned by `adapt`. Defaults to `True`.
        compiled: Whether to compile it, if the model is. Defaults to `True`.
        name: Of the new model. Defaults to `None`: the old one's.

    Raises: ValueError if nothing is left where something must be.
    """
    cut = _Cut(graph, removed, added or {}, branches)
    with SafeModeScope(False):  # it is the user's own model, not a file
        made = cut.model(model, name)
    cut.move_weights(weights)
    if compiled:
        compile_as(made, model)
    return made


@dataclass(frozen=True)
class _Gone:
    """Stands for a tensor of which nothing but constants is left; they broadcast to its shape."""

    values: Any


class _Cut:
    def __init__(
        self, graph: ChannelGraph, removed: np.ndarray, added: Mapping[int, np.ndarray], branches: bool
    ) -> None:
        self._graph, self._added = graph, added
        self._removed = np.unique(graph.labels.roots(np.asarray(removed, np.int64))) if len(removed) else removed
        self._kept: dict[int, dict[int, np.ndarray]] = {}
        for slot in graph.labels.slots():
            self._kept.setdefault(id(slot.variable), {})[slot.axis] = np.flatnonzero(self._stays(slot.labels))
        emptied = any(not places.size for axes in self._kept.values() for places in axes.values())
        self._constants = Constants(graph, self._removed, added, branches) if emptied or branches else None
        if self._constants is not None and self._constants.refused:
            raise ValueError(
                f"Not all of these channels can go: {'; '.join(sorted(set(self._constants.refused))[:3])}."
            )
        self._calls: dict[int, list[Call]] = defaultdict(list)
        for call, _ in graph.calls:
            self._calls[id(call.operation)].append(call)
        self._made: dict[int, Any] = {}
        self._pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def model(self, model: keras.Model, name: str | None = None) -> keras.Model:
        """A new model; what a nested one is called on may have become narrower."""
        name = name or model.name
        graph = self._graph.graphs[id(model)]
        called = self._graph.inputs.get(id(model))
        shapes = [self._new_shape(flow) for flow in called[0]] if called else [t.shape for t in graph.inputs]
        placed = [
            keras.Input(
                batch_shape=[None if old is None else new for old, new in zip(t.shape, shape, strict=True)],
                dtype=t.dtype,
                name=name_of(t),
            )
            for t, shape in zip(graph.inputs, shapes, strict=True)
        ]
        inputs = keras.tree.pack_sequence_as(graph._inputs_struct, placed)
        if isinstance(model, keras.Sequential):  # a chain: where nothing is left inside, nothing is left of it
            made = keras.Sequential([placed[0], *(self._operation(layer) for layer in model.layers)], name=name)
        else:
            outputs = self._run(graph, placed)
            kind: Callable[..., keras.Model] = type(model) if makes_graphs(type(model)) else keras.Model
            made = kind(inputs, keras.tree.pack_sequence_as(graph._outputs_struct, outputs), name=name)
        self._pairs.append((model, made))
        return made

    def move_weights(self, learned: bool = True) -> None:
        """Weights, cut, from the old layers into the new ones; then what training may change.

        Without `learned` the new layers keep those they have, but for layers with `adapt`.
        """
        for old, new in self._pairs:
            if isinstance(old, keras.Model):
                continue
            copy_assets(old, new)
            values = [self._cut_value(source) for source in old.weights]
            if [value.shape for value in values] != [tuple(target.shape) for target in new.weights]:
                raise TypeError(
                    f"{old.name!r} ({type(old).__name__}) made again from its config has other weights: a class needs "
                    "a `get_config` that says all, a @kdopt.graph.channel_rule that names all Variables with "
                    "channels, and a @kdopt.graph.resize_rule if its size is an argument; a "
                    "quantized layer, or one with LoRA weights, is to be shrunk before that."
                )
            if learned or any(hasattr(layer, "adapt") for layer in old._flatten_layers()):
                for value, target in zip(values, new.weights, strict=True):
                    target.assign(value)
                settle(new)
        for old, new in reversed(self._pairs):
            if isinstance(old, keras.Model):
                new.trainable = old.trainable
                continue
            for one, other in zip(old._flatten_layers(), new._flatten_layers(), strict=False):
                if one.trainable != other.trainable:
                    other.trainable = one.trainable

    def size(self, variable: keras.Variable) -> tuple[int, ...]:
        """The new shape of a Variable."""
        kept = self._kept.get(id(variable), {})
        return tuple(kept[axis].size if axis in kept else size for axis, size in enumerate(variable.shape))

    def _run(self, graph: keras.Function, inputs: list[Any]) -> list[Any]:
        tensors: dict[int, Any] = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
        calls: Counter[int] = Counter()
        for node in nodes_of(graph):
            key, number = id(node.operation), calls[id(node.operation)]
            flows = self._graph.outputs[key][number]
            calls[key] += 1
            gone = [None if self._constants is None else self._constants.gone(flow) for flow in flows]
            if all(values is not None for values in gone):
                outputs: Any = [_Gone(_along(flow, values)) for flow, values in zip(flows, gone, strict=True)]
            else:
                args, kwargs = node.arguments.fill_in(tensors)
                absent = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, _Gone)]
                if self._calls[key]:
                    args, kwargs = rearranged(self._calls[key][number], args, kwargs, self._stays)
                call = self._operation(node.operation) if not absent else partial(self._joined, node.operation)
                outputs = call(*args, **kwargs)
                if absent:
                    outputs = _like(node, outputs, any(node.outputs[0] is tensor for tensor in graph.outputs))
            tensors.update({id(old): new for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True)})
        return [tensors[id(tensor)] for tensor in graph.outputs]

    def _joined(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """A sum or concatenation of what is left; constants that fell away from a sum are added."""
        leaves = keras.tree.flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
        offset = sum(leaf.values for leaf in leaves if isinstance(leaf, _Gone) and leaf.values.size)
        rest = tensors[0]
        policy = {"dtype": operation.dtype_policy} if isinstance(operation, keras.layers.Layer) else {}
        if len(tensors) > 1 and isinstance(operation, keras.layers.Layer):
            rest = self._operation(operation)(tensors)
        elif len(tensors) > 1:
            rest = keras.ops.concatenate(tensors, operation.axis)
        if not np.any(offset):
            return rest
        alone = rest is tensors[0] and len(self._graph.outputs[id(operation)]) == 1
        name = operation.name if alone else None
        return keras.layers.Rescaling(1.0, np.asarray(offset).tolist(), name=name, **policy)(rest)

    def _operation(self, operation: Any) -> Any:
        if id(operation) not in self._made:
            self._made[id(operation)] = self._new(operation)
        return self._made[id(operation)]

    def _new(self, operation: Any) -> Any:
        if isinstance(operation, keras.Model):
            return self.model(operation)
        calls = self._graph.outputs.get(id(operation))
        outputs = [self._new_shape(flow) for flow in calls[0]] if calls else []
        made = renewed(operation, self.size, outputs)
        if isinstance(operation, keras.layers.Layer):
            self._pairs.append((operation, made))
        return made

    def _new_shape(self, flow: Any) -> tuple[int | None, ...]:
        return tuple(
            size if label is None else int(np.count_nonzero(self._stays(label)))
            for size, label in zip(flow.shape, flow.labels, strict=True)
        )

    def _stays(self, labels: np.ndarray) -> np.ndarray:
        return ~np.isin(self._graph.labels.roots(labels), self._removed)

    def _cut_value(self, variable: keras.Variable) -> np.ndarray:
        value = keras.ops.convert_to_numpy(variable)
        if id(variable) in self._added:
            value = value + self._added[id(variable)].astype(value.dtype)
        divided = self._graph.labels.divided(variable)
        if divided is not None:
            value = (value * np.sqrt(np.mean(self._stays(divided)))).astype(value.dtype)
        for axis, places in self._kept.get(id(variable), {}).items():
            value = np.take(value, places, axis=axis)
        return value


def _like(node: Any, rest: Any, is_output: bool) -> Any:
    """What is left of a sum, without a mask if the sum had none; an output keeps its name."""
    if backend.get_keras_mask(rest) is not None and backend.get_keras_mask(node.outputs[0]) is None:
        rest = keras.ops.copy(rest)
    if is_output and rest._keras_history.operation.name != node.operation.name:
        rest = keras.layers.Identity(name=node.operation.name, dtype=rest.dtype)(rest)
    return rest


def _along(flow: Flow, values: Any) -> np.ndarray:
    """Constants in a shape in which they broadcast along the axis of the channels."""
    after = len(flow.shape) - 1 - flow.labeled()[0] if values.size else 0
    return values.reshape(-1, *[1] * after)
