"""Multiply-accumulates: what one call of a layer or a model computes, found by tracing shapes.

A graph model is walked node by node with batch 1. A layer inside it is traced through its own
`call` down to the `keras.ops` it uses, so a layer composed of others, a user's layer and a plain
`keras.ops.matmul` all count by the same few rules: matrix products and convolutions. Layers whose
`call` loops in the backend (recurrent, TimeDistributed) have a rule of their own. Anything else
that cannot be traced is reported as unknown, never guessed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

Rule = Callable[[Any, Any, Any], int]
_RULES: dict[type, Rule] = {}
_OPERATION_RULES: dict[str, Rule] = {}
# Loops run a Python function an unknown number of times; transforms are not matrix products.
_UNCOUNTED = frozenset(
    {"Map", "Scan", "AssociativeScan", "VectorizedMap", "WhileLoop", "ForiLoop", "Cond", "Switch"}
    | {"FFT", "FFT2", "IFFT2", "RFFT", "IRFFT", "STFT", "ISTFT", "CDist", "Correlate"}
)


class UnknownMacs(ValueError):
    """The multiply-accumulates of a layer cannot be known; the message says why."""


@dataclass(frozen=True)
class Call:
    """One call of one layer (or `keras.ops` operation) in a model.

    Attributes:
        path: Names from the model down, joined by `/`; the model itself is left out.
        operation: The layer or operation.
        macs: Multiply-accumulates for one sample, `None` when unknown.
        why: Reason when unknown, else an empty string.
    """

    path: str
    operation: Any
    macs: int | None
    why: str = ""


def macs_rule(*layer_classes: type) -> Callable[[Rule], Rule]:
    """Decorator: how many multiply-accumulates one call of a layer class does.

    The rule is called as `rule(layer, inputs, outputs)` with the first argument of the call and its result, as
    `keras.KerasTensor`s (or structures of them) with batch 1 and static shapes. It comes before tracing, and
    holds for subclasses that keep `call`.

    Args:
        *layer_classes: `keras.layers.Layer` classes.

    Example:
    ```
    @macs_rule(MyPairwise)
    def pairwise(layer, inputs, outputs):
        return inputs.shape[1] ** 2 * layer.units
    ```
    """

    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(layer_classes, rule))
        return rule

    return add


def operation_rule(kind: str) -> Callable[[Rule], Rule]:
    """Decorator: the same for a `keras.ops` operation, as `rule(operation, args, output)`.

    Args:
        kind: Class name of the operation, e.g. `"Matmul"` (these classes are not public in Keras).
    """

    def add(rule: Rule) -> Rule:
        _OPERATION_RULES[kind] = rule
        return rule

    return add


def trace_calls(model: keras.Model, inputs: Any) -> list[Call]:
    """Every call that happens when `model` runs on `inputs`, in graph order.

    Args:
        model: Built model.
        inputs: Structure of `keras.KerasTensor`s as the model takes it, batch 1, static shapes.

    Raises: UnknownMacs if `model` is subclassed and its `call` cannot be traced.
    """
    calls: list[Call] = []
    _enter(model, (), calls, (inputs,), {})
    return calls


def call_macs(operation: Any, *args: Any, **kwargs: Any) -> int:
    """Multiply-accumulates of one call `operation(*args, **kwargs)` on `keras.KerasTensor`s with batch 1.

    For rules of layers that hold another layer: `timesteps * call_macs(layer.cell, x, states)`.

    Raises: UnknownMacs.
    """
    calls: list[Call] = []
    _visit(operation, (), calls, *args, **kwargs)
    return _total(calls)


def _total(calls: list[Call]) -> int:
    for call in calls:
        if call.macs is None:
            raise UnknownMacs(f"{call.path}: {call.why}")
    return sum(call.macs or 0 for call in calls)


def _visit(operation: Any, parents: tuple[str, ...], calls: list[Call], *args: Any, **kwargs: Any) -> Any:
    """Records one call (a nested model: the calls inside it); returns its output without a history."""
    path = (*parents, operation.name)
    inner: list[Call] = []
    macs: int | None
    try:
        if isinstance(operation, keras.Model) and _rule_of(operation) is None:
            outputs = _enter(operation, path, inner, args, kwargs)
        else:
            macs, outputs = _count(operation, args, kwargs)
            inner.append(Call("/".join(path), operation, macs))
    except UnknownMacs as error:
        inner = [Call("/".join(path), operation, None, str(error))]
        outputs = operation.compute_output_spec(*args, **kwargs)
    except TypeError as error:
        if not _open_shapes(args, kwargs):
            raise
        raise ValueError(f"{'/'.join(path)!r}: Keras does not know all sizes of what it reads ({error}).") from error
    calls += inner
    return keras.tree.map_structure(_fresh, outputs)


def _enter(layer: Any, path: tuple[str, ...], calls: list[Call], args: Any, kwargs: Any) -> Any:
    """Records the calls inside a model or layer, by its graph or by tracing its `call`; returns its outputs."""
    visit = lambda operation: partial(_visit, operation, path, calls)  # noqa: E731
    graph = getattr(layer, "_functional", None) if isinstance(layer, keras.Sequential) else layer
    if isinstance(graph, keras.Function):
        return graph._run_through_graph(_in_order(graph, args[0]), operation_fn=visit)
    with _traced(layer, args, kwargs) as (function, outputs):
        if function is not None:
            function._run_through_graph(function.inputs, operation_fn=visit)
        return outputs


@contextmanager
def _traced(layer: Any, args: Any, kwargs: Any) -> Iterator[tuple[keras.Function | None, Any]]:
    """The graph of `keras.ops` and layers behind `layer.call`; leaves no node on the layers it ran through.

    Yields: (graph or None if the call hands its inputs on, outputs).
    """
    ends = [ends for inner in layer._flatten_layers() for ends in (inner._inbound_nodes, inner._outbound_nodes)]
    lengths = [len(nodes) for nodes in ends]
    args, kwargs = keras.tree.map_structure(_fresh, (args, kwargs))
    inputs = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
    try:
        try:
            outputs = layer.call(*args, **kwargs)
            made = [y for y in keras.tree.flatten(outputs) if not any(y is x for x in inputs)]
            function = keras.Function(inputs, made) if made else None
        except Exception as error:  # whatever a foreign `call` does with a tensor that has no value
            raise UnknownMacs(f"its `call` cannot be traced ({type(error).__name__})") from error
        yield function, outputs
    finally:
        for nodes, length in zip(ends, lengths, strict=True):
            del nodes[length:]


def _count(operation: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
    """Multiply-accumulates and outputs of one call of a layer or operation."""
    rule = _rule_of(operation)
    if rule is None and isinstance(operation, keras.layers.Layer):
        return _count_traced(operation, args, kwargs)
    outputs = operation.compute_output_spec(*args, **kwargs)
    if type(operation).__name__ == "DotProductAttention":  # Keras says as wide as the queries; it is as the values
        outputs = keras.KerasTensor((*outputs.shape[:-1], args[2].shape[-1]), outputs.dtype)
    if rule is None:
        return _operation_macs(operation, args, outputs), outputs
    _refuse_open(args, kwargs, outputs)
    return int(rule(operation, args[0] if args else kwargs, outputs)), outputs


def _count_traced(layer: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
    calls: list[Call] = []
    try:
        outputs = _enter(layer, (), calls, args, kwargs)
        if _open_shapes(outputs):  # attention loses the length that its `compute_output_spec` knows
            outputs = layer.compute_output_spec(*args, **kwargs)
        return _total(calls), outputs
    except UnknownMacs:
        if layer.weights or not _of_keras(layer):
            raise
        return 0, layer.compute_output_spec(*args, **kwargs)


def _of_keras(layer: Any) -> bool:
    """Whether only Keras's own code runs in it: `Activation("hard_silu")`, `Resizing`, random augmentation."""
    function = getattr(layer, "function", getattr(layer, "activation", None))
    codes = [type(layer)] if function is None else [type(layer), function]
    return all(str(getattr(code, "__module__", "")).startswith("keras.src.") for code in codes)


def _operation_macs(operation: Any, args: Any, outputs: Any) -> int:
    kind = type(operation).__name__
    if kind in _UNCOUNTED or type(operation).__module__.endswith("ops.linalg"):
        raise UnknownMacs(f"keras.ops {kind} has no count")
    rule = _OPERATION_RULES.get(kind)
    if rule:
        _refuse_open(args, outputs)
    return int(rule(operation, args, keras.tree.flatten(outputs)[0])) if rule else 0


def _refuse_open(*tensors: Any) -> None:
    if shapes := _open_shapes(tensors):
        raise UnknownMacs(f"Keras does not know all sizes of what it reads or makes: {shapes}")


def _open_shapes(*tensors: Any) -> list[Any]:
    shapes = [x.shape for x in keras.tree.flatten(tensors) if isinstance(x, keras.KerasTensor)]
    return [shape for shape in shapes if None in shape]


def _rule_of(operation: Any) -> Rule | None:
    kind: Any = type(operation)
    return next((_RULES[cls] for cls in kind.__mro__ if cls in _RULES and (cls is kind or cls.call is kind.call)), None)


def _in_order(graph: Any, inputs: Any) -> list[Any]:
    if isinstance(inputs, dict) and not isinstance(graph._inputs_struct, dict):
        inputs = [inputs[x.name] for x in graph.inputs]
    return keras.tree.flatten(inputs)


def _fresh(x: Any) -> Any:
    """The same tensor without its history, so that a trace starts at it."""
    return keras.KerasTensor(x.shape, x.dtype) if isinstance(x, keras.KerasTensor) else x
