"""The calls of a model in order, nested models inlined.

Tensors are numbered; a `Ref` stands for one in recorded arguments. A layer that is called twice gives two calls with
the same name.
"""

from dataclasses import dataclass
from typing import Any

import keras

from kdopt.graph.trace import graph_of, is_graph, nodes_of, tensors_of


@dataclass(frozen=True)
class Ref:
    """Tensor number `index` of a trace."""

    index: int


@dataclass(frozen=True)
class TracedInput:
    """An input of the model; `shape` with the batch dimension."""

    name: str
    index: int
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """One call of one Keras operation (layer or `keras.ops` node); `node` is Keras's own record of it."""

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    node: Any = None

    def inputs(self) -> tuple[int, ...]:
        """Numbers of the tensors in the arguments, in order of appearance."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return tuple(leaf.index for leaf in flat if isinstance(leaf, Ref))


@dataclass(frozen=True)
class Trace:
    """A model as inputs, calls in execution order, and outputs."""

    inputs: tuple[TracedInput, ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]


def trace(model: Any) -> Trace:
    """Walks the graph of `model`.

    Args:
        model: Built Functional, Sequential or traceable subclassed model.

    Returns: A `Trace`.
    """
    return _Tracer().run(model)


class _Tracer:
    def __init__(self) -> None:
        self.count = 0
        self.calls: list[Call] = []
        self.names: dict[int, str] = {}

    def run(self, model: Any) -> Trace:
        graph = graph_of(model)
        inputs: list[TracedInput] = []
        for tensor in graph.inputs:
            name = _unique(name_of(tensor), {entry.name for entry in inputs})
            inputs.append(TracedInput(name, self.fresh(), tuple(tensor.shape), str(tensor.dtype)))
        self.names.update({-1 - i: entry.name for i, entry in enumerate(inputs)})
        outputs = self.inline(graph, [entry.index for entry in inputs], "")
        return Trace(tuple(inputs), tuple(self.calls), tuple(outputs))

    def fresh(self) -> int:
        self.count += 1
        return self.count - 1

    def inline(self, graph: keras.Function, inputs: list[int], prefix: str) -> list[int]:
        numbers = {id(tensor): number for tensor, number in zip(graph.inputs, inputs, strict=True)}
        for node in nodes_of(graph):
            args, kwargs = keras.tree.map_structure(
                lambda leaf: Ref(numbers[id(leaf)]) if isinstance(leaf, keras.KerasTensor) else leaf,
                (node.arguments.args, node.arguments.kwargs),
            )
            outputs = self.call(node, args, kwargs, prefix)
            numbers.update({id(tensor): number for tensor, number in zip(node.outputs, outputs, strict=True)})
        return [numbers[id(tensor)] for tensor in graph.outputs]

    def call(self, node: Any, args: tuple, kwargs: dict, prefix: str) -> list[int]:
        operation = node.operation
        name = self.names.setdefault(id(operation), _unique(prefix + operation.name, set(self.names.values())))
        flat = [leaf.index for leaf in tensors_of(args, kwargs, Ref)]
        graph = _graph_inside(operation, len(flat))
        if graph is not None:
            return self.inline(graph, flat, f"{name}.")
        # Keras itself overrides a recorded `training` by the one `fit` or `predict` runs with.
        kept = {key: value for key, value in kwargs.items() if key != "training" and value is not None}
        outputs = [self.fresh() for _ in node.outputs]
        shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
        dtypes = tuple(str(tensor.dtype) for tensor in node.outputs)
        self.calls.append(Call(name, operation, tuple(args), kept, tuple(outputs), shapes, dtypes, node))
        return outputs


def _graph_inside(operation: Any, inputs: int) -> keras.Function | None:
    """The graph of a nested model; None for a layer, and for a subclassed model that cannot be traced."""
    if not isinstance(operation, keras.Model):
        return None
    if is_graph(operation):
        return graph_of(operation)
    try:
        graph = graph_of(operation)
    except (TypeError, ValueError):
        return None
    return graph if len(graph.inputs) == inputs else None


def name_of(tensor: Any) -> str:
    """The name of the input layer behind a tensor; a traced subclassed model has none."""
    operation = getattr(getattr(tensor, "_keras_history", None), "operation", None)
    return str(tensor.name if operation is None else operation.name)


def _unique(name: str, taken: set[str]) -> str:
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
