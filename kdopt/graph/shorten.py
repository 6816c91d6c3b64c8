"""A model without some of its blocks."""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from kdopt.graph.blocks import Block
from kdopt.graph.inline import name_of
from kdopt.graph.trace import graph_of, makes_graphs, nodes_of, tensors_of


def without_blocks(model: keras.Model, blocks: Iterable[Block]) -> keras.Model:
    """A model in which what stands before a block goes where what it made went.

    It is made of the layers of `model`, with their weights, each called once more; names and nesting stay, and nested
    models that nothing is left of go. So give a copy.

    Args:
        model: Functional or Sequential model, nested ones too.
        blocks: Of `find_stages(model)`.

    Returns: new `keras.Model`, not compiled.
    """
    return _Short({id(end): start for block in blocks for end, start in block.parts}).model(model)


class _Short:
    def __init__(self, replaced: dict[int, Any]) -> None:
        self._replaced = replaced
        self._made: dict[int, keras.Model] = {}
        self._ways: dict[int, list[int] | None] = {}
        self._makers: dict[int, tuple[Any, int]] = {}

    def model(self, model: keras.Model) -> keras.Model:
        """The model without what is replaced; itself if it has none of that."""
        if id(model) not in self._made:
            self._made[id(model)] = self._rebuilt(model) if self._changes(model) else model
        return self._made[id(model)]

    def _changes(self, model: keras.Model) -> bool:
        nodes = list(nodes_of(graph_of(model)))
        nested = [node.operation for node in nodes if isinstance(node.operation, keras.Model)]
        own = any(id(tensor) in self._replaced for node in nodes for tensor in node.outputs)
        return own or any(self._changes(inner) for inner in nested)

    def _rebuilt(self, model: keras.Model) -> keras.Model:
        graph = graph_of(model)
        ends, needed = self._needed(graph)
        placed = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=name_of(t)) for t in graph.inputs]
        if isinstance(model, keras.Sequential):
            kept = [layer for layer in model.layers if id(layer) in {id(node.operation) for node in needed}]
            return keras.Sequential([placed[0], *map(self._operation, kept)], name=model.name)
        tensors: dict[int, Any] = {id(old): new for old, new in zip(graph.inputs, placed, strict=True)}
        for node in needed:
            resolved = {id(t): tensors[id(self._resolved(graph, t))] for t in node.arguments.keras_tensors}
            args, kwargs = node.arguments.fill_in(resolved)
            outputs = keras.tree.flatten(self._operation(node.operation)(*args, **kwargs))
            tensors.update({id(old): new for old, new in zip(node.outputs, outputs, strict=True)})
        kind: Callable[..., keras.Model] = type(model) if makes_graphs(type(model)) else keras.Model
        outputs = keras.tree.pack_sequence_as(graph._outputs_struct, [tensors[id(tensor)] for tensor in ends])
        return kind(keras.tree.pack_sequence_as(graph._inputs_struct, placed), outputs, name=model.name)

    def _operation(self, operation: Any) -> Any:
        return self.model(operation) if isinstance(operation, keras.Model) else operation

    def _needed(self, graph: keras.Function) -> tuple[list[Any], list[Any]]:
        """(what the outputs are now, the calls that are still needed in order)."""
        ends = [self._resolved(graph, tensor) for tensor in graph.outputs]
        wanted = {id(tensor) for tensor in ends}
        needed = []
        for node in reversed(list(nodes_of(graph))):
            if any(id(tensor) in wanted for tensor in node.outputs):
                needed.append(node)
                wanted.update(id(self._resolved(graph, tensor)) for tensor in node.arguments.keras_tensors)
        return ends, needed[::-1]

    def _resolved(self, graph: keras.Function, tensor: Any) -> Any:
        """What takes the place of a tensor, in the same model; itself if nothing does."""
        while True:
            node, place = self._maker(graph, tensor)
            way = self._way(node.operation) if node is not None and isinstance(node.operation, keras.Model) else None
            if id(tensor) in self._replaced:
                tensor = self._replaced[id(tensor)]
            elif way is not None:
                read = tensors_of(node.arguments.args, node.arguments.kwargs, keras.KerasTensor)
                tensor = read[way[place]]
            else:
                return tensor

    def _way(self, model: keras.Model) -> list[int] | None:
        """For each output of a nested model the input that it is, if nothing else is left; otherwise `None`."""
        if id(model) not in self._ways:
            graph = graph_of(model)
            places = {id(tensor): place for place, tensor in enumerate(graph.inputs)}
            found = [places.get(id(self._resolved(graph, tensor))) for tensor in graph.outputs]
            through = [place for place in found if place is not None]
            self._ways[id(model)] = through if len(through) == len(found) else None
        return self._ways[id(model)]

    def _maker(self, graph: keras.Function, tensor: Any) -> tuple[Any, int]:
        """(call that makes a tensor, place among its outputs), `None` for an input."""
        if not any(id(one) in self._makers for one in graph.outputs):
            for node in nodes_of(graph):
                self._makers.update({id(one): (node, place) for place, one in enumerate(node.outputs)})
        return self._makers.get(id(tensor), (None, 0))
