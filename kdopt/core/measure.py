"""How large a model is and what it computes: parameters, non-zeros, bytes, multiply-accumulates."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kdopt.core.macs_rules  # noqa: F401  (registers the rules)
from kdopt.core.macs import Call, UnknownMacs, trace_calls

InputShape = Sequence[Any] | dict[str, Sequence[int]]


@dataclass(frozen=True)
class LayerMeasure:
    """What one layer of a model weighs and computes.

    Attributes:
        path: Names from the model down, joined by `/`.
        kind: Class name of the layer, or of the `keras.ops` operation.
        parameters: Weights it holds.
        nonzero: Those that are not zero.
        calls: How often the model calls it; 2 for a layer shared by two branches.
        macs: Multiply-accumulates of all its calls for one sample, `None` when unknown.
        why: Reason when unknown, else an empty string.
    """

    path: str
    kind: str
    parameters: int
    nonzero: int
    calls: int
    macs: int | None
    why: str = ""


def parameters(model: keras.layers.Layer) -> int:
    """Number of weights, trainable or not (BatchNormalization statistics included); shared ones once."""
    return sum(int(np.prod(weight.shape)) for weight in _weights(model))


def nonzero(model: keras.layers.Layer) -> int:
    """Number of weights that are not exactly zero; the same weights as `parameters` counts."""
    return sum(int(np.count_nonzero(keras.ops.convert_to_numpy(weight))) for weight in _weights(model))


def size_bytes(what: keras.layers.Layer | bytes | str | os.PathLike[str]) -> int:
    """Size in bytes: of a model's weights in the dtype they are stored in, of file content, or of a file."""
    if isinstance(what, keras.layers.Layer):
        return sum(keras.ops.convert_to_numpy(weight).nbytes for weight in _weights(what))
    return len(what) if isinstance(what, bytes) else Path(what).stat().st_size


def macs(model: keras.Model, input_shape: InputShape | None = None) -> int:
    """Multiply-accumulates of one inference on one sample.

    Counted are matrix products and convolutions, as papers do; biases, normalization, activations and pooling
    count nothing. A layer called twice counts twice. Zeros count like other weights.

    Args:
        model: Built Keras model: Functional, Sequential or subclassed.
        input_shape: Shape of one sample without the batch dimension, e.g. `(224, 224, 3)`; for several inputs a list
            or a dict by input name. Needed if the model leaves a dimension open or is subclassed.

    Returns: integer.

    Raises: ValueError if a shape is missing; `UnknownMacs` (a ValueError) that names each layer that cannot be
        counted and the way out.

    Example:
    ```
    macs(keras.applications.MobileNet(weights=None))      # 568740352
    ```
    """
    calls = _calls(model, input_shape)
    _refuse_unknown(model, calls)
    return sum(call.macs or 0 for call in calls)


def _refuse_unknown(model: keras.Model, calls: list[Call]) -> None:
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        if call.macs is None:
            kinds.setdefault(type(call.operation).__name__, []).append(call)
    if kinds:
        told = "; ".join(f"{len(of)} of {kind} (first {of[0].path!r}: {of[0].why})" for kind, of in kinds.items())
        raise UnknownMacs(
            f"Cannot count every multiply-accumulate of {model.name!r}. Unknown calls: {told}. Say how: decorate a "
            f"function rule(layer, inputs, outputs) with @kdopt.core.macs.macs_rule({next(iter(kinds))}); or read the "
            "other layers with kdopt.core.measure.by_layer(model)."
        )


def by_layer(model: keras.Model, input_shape: InputShape | None = None) -> tuple[LayerMeasure, ...]:
    """One record for each layer or `keras.ops` operation that holds weights or multiplies, in the order of first call.

    Args: as `macs`. Raises: ValueError if a shape is missing; unknown layers are records with `macs=None`.
    """
    grouped: dict[int, list[Call]] = {}
    for call in _calls(model, input_shape):
        grouped.setdefault(id(call.operation), []).append(call)
    records = [_record(calls) for calls in grouped.values()]
    return tuple(record for record in records if record.parameters or record.macs != 0)


def _record(calls: list[Call]) -> LayerMeasure:
    first = calls[0]
    unknown = next((call for call in calls if call.macs is None), None)
    is_layer = isinstance(first.operation, keras.layers.Layer)
    return LayerMeasure(
        path=first.path,
        kind=type(first.operation).__name__,
        parameters=parameters(first.operation) if is_layer else 0,
        nonzero=nonzero(first.operation) if is_layer else 0,
        calls=len(calls),
        macs=None if unknown else sum(call.macs or 0 for call in calls),
        why=unknown.why if unknown else "",
    )


def _weights(model: keras.layers.Layer) -> list[Any]:
    if not model.built:
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
    return list({id(weight): weight for weight in model.weights}.values())


def _calls(model: keras.Model, input_shape: InputShape | None) -> list[Call]:
    _weights(model)
    inputs = getattr(model, "inputs", None)
    return trace_calls(model, _of_graph(model, inputs, input_shape) if inputs else _of_call(model, input_shape))


def _of_graph(model: keras.Model, inputs: list[Any], input_shape: InputShape | None) -> list[keras.KerasTensor]:
    """Batch-1 tensors for the inputs of a graph model, from its own shapes or the given ones."""
    if input_shape is None:
        shapes: list[Any] = [x.shape[1:] for x in inputs]
    elif isinstance(input_shape, dict):
        if set(input_shape) != {x.name for x in inputs}:
            raise ValueError(f"`input_shape` must name the inputs {[x.name for x in inputs]}; got {list(input_shape)}.")
        shapes = [input_shape[x.name] for x in inputs]
    elif isinstance(input_shape, str):
        raise ValueError(f"`input_shape` must be a tuple of integers, e.g. (32, 32, 3); got {input_shape!r}.")
    else:
        shapes = [input_shape] if _is_shape(input_shape) else list(input_shape)
    if len(shapes) != len(inputs):
        raise ValueError(f"{model.name!r} has {len(inputs)} inputs; `input_shape` has {len(shapes)}: {input_shape!r}.")
    return [_tensor(model, x, tuple(shape)) for x, shape in zip(inputs, shapes, strict=True)]


def _tensor(model: keras.Model, x: Any, shape: tuple[Any, ...]) -> keras.KerasTensor:
    own = x.shape[1:]
    fits = len(own) == len(shape) and all(a in (None, b) for a, b in zip(own, shape, strict=True))
    if not fits or None in shape:
        raise ValueError(
            f"Multiply-accumulates need every dimension. Input {x.name!r} of {model.name!r} is {own}; got "
            f"{shape}. Pass input_shape=(...), the shape of one sample, for example input_shape="
            f"{tuple(32 if n is None else n for n in own)}."
        )
    return keras.KerasTensor((1, *shape), dtype=x.dtype)


def _of_call(model: keras.Model, input_shape: InputShape | None) -> Any:
    """Batch-1 tensors for the `call` of a subclassed model."""
    if input_shape is None:
        raise ValueError(
            f"{model.name!r} is a subclassed model and does not know its input shape: pass input_shape=(...), the "
            "shape of one sample without the batch dimension."
        )
    if isinstance(input_shape, dict):
        return {name: _sized(shape) for name, shape in input_shape.items()}
    return _sized(input_shape) if _is_shape(input_shape) else [_sized(shape) for shape in input_shape]


def _sized(shape: Any) -> keras.KerasTensor:
    whole = not isinstance(shape, str) and _is_shape(shape)
    if not whole or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"`input_shape` must be the shape of one sample in whole numbers, without the batch, e.g. (32, 32, 3); got "
            f"{shape!r}."
        )
    return keras.KerasTensor((1, *shape))


def _is_shape(shape: Any) -> bool:
    return not isinstance(shape, str) and all(n is None or isinstance(n, int) for n in shape)
