"""The calls of a Functional or Sequential model in order, nested models inlined.

Tensors are numbered; a `Ref` stands for one in recorded arguments. A layer that is called twice gives two calls with
the same name. Needs Keras alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.models.functional import Functional


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
    """One call of one Keras operation (layer or `keras.ops` node)."""

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]

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


def functional_of(model: Any) -> Functional:
    """The Functional graph behind `model`.

    Raises: TypeError for a subclassed model, ValueError for an unbuilt Sequential; both name the way out.
    """
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        if model._functional is None:
            raise ValueError(
                f"The Sequential model {model.name!r} is not built: start it with `keras.Input(shape)`, or call "
                "`model.build((None, ...))` first."
            )
        return model._functional
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    raise TypeError(
        f"Expected a Keras 3 Sequential or Functional model; received {type(model).__name__}, which "
        f"computes its outputs in "
        "Python code that cannot be rebuilt layer by layer. Way out: write it with the functional API, "
        "`keras.Model(inputs, outputs)`; parts with their own `call` may stay as layers in it."
    )


def trace(model: Any) -> Trace:
    """Walks the graph of `model`.

    Args:
        model: Built Keras 3 Sequential or Functional model.

    Returns: A `Trace`.
    """
    return _Tracer().run(model)


class _Tracer:
    def __init__(self) -> None:
        self.count = 0
        self.calls: list[Call] = []
        self.names: dict[int, str] = {}

    def run(self, model: Any) -> Trace:
        graph = functional_of(model)
        inputs: list[TracedInput] = []
        for tensor in graph.inputs:
            name = _unique(tensor._keras_history.operation.name, {entry.name for entry in inputs})
            inputs.append(TracedInput(name, self.fresh(), tuple(tensor.shape), str(tensor.dtype)))
        self.names.update({-1 - i: entry.name for i, entry in enumerate(inputs)})
        outputs = self.inline(graph, [entry.index for entry in inputs], "")
        return Trace(tuple(inputs), tuple(self.calls), tuple(outputs))

    def fresh(self) -> int:
        self.count += 1
        return self.count - 1

    def inline(self, graph: Functional, inputs: list[int], prefix: str) -> list[int]:
        numbers = {id(tensor): number for tensor, number in zip(graph.inputs, inputs, strict=True)}
        for node in _nodes(graph):
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
        if isinstance(operation, keras.Model) and _is_graph(operation):
            flat = [leaf.index for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Ref)]
            return self.inline(functional_of(operation), flat, f"{name}.")
        # Keras itself overrides a recorded `training` by the one `fit` or `predict` runs with.
        kept = {key: value for key, value in kwargs.items() if key != "training" and value is not None}
        outputs = [self.fresh() for _ in node.outputs]
        shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
        dtypes = tuple(str(tensor.dtype) for tensor in node.outputs)
        self.calls.append(Call(name, operation, tuple(args), kept, tuple(outputs), shapes, dtypes))
        return outputs


def _nodes(graph: Functional) -> Iterator[Any]:
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _is_graph(model: Any) -> bool:
    try:
        functional_of(model)
    except (TypeError, ValueError):
        return False
    return True


def _unique(name: str, taken: set[str]) -> str:
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
