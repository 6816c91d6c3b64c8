"""Rebuilds a Keras 3 model in tf_keras with equal weights, and proves it.

`Blueprint.of(model)` translates; `emit` builds a tf_keras Functional net from it, as it is or with hooks that wrap
layers and tensors (how fake quantization gets in); `check_equal` compares outputs and names the first layer that
differs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.graph.inline import Trace, trace
from kdopt.quantization.tfmot import opaque
from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.checks import functional_of
from kdopt.quantization.tfmot.steps import Step
from kdopt.quantization.tfmot.translate import translate

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Blueprint:
    """A model as steps; tensor numbers are those of the trace."""

    trace: Trace
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, model: Any) -> "Blueprint":
        functional_of(model)
        traced = trace(model)
        used = [index for call in traced.calls for index in call.outputs] + [entry.index for entry in traced.inputs]
        counter = iter(range(max(used) + 1, 1 << 30))
        steps = [step for call in traced.calls for step in translate(call, lambda: next(counter))]
        _check_untied(steps)
        return cls(traced, tuple(steps))


@dataclass(frozen=True)
class Net:
    """A tf_keras net, its variables by key (`source layer/variable`), layers by name and tensors by number."""

    model: Any
    variables: dict[str, Any]
    layers: dict[str, Any]
    tensors: dict[int, Any]


LayerHook = Callable[[Step, Any], Any]
TensorHook = Callable[[int, Any], Any]


def emit(
    blueprint: Blueprint,
    wrap_layer: LayerHook | None = None,
    wrap_tensor: TensorHook | None = None,
    extra_outputs: tuple[int, ...] = (),
) -> Net:
    """Builds the tf_keras net.

    Args:
        blueprint: What to build.
        wrap_layer: Called once a layer with `(step, built layer)`; returns the layer to call instead.
        wrap_tensor: Called with `(number, tensor)` for each tensor; returns the tensor to use instead.
        extra_outputs: Numbers of tensors appended to the outputs.

    Returns: A `Net` with the source's weights.
    """
    tf_keras = load().tf_keras
    wrap_tensor = wrap_tensor or (lambda index, tensor: tensor)
    inputs = [
        tf_keras.Input(batch_shape=(None, *entry.shape[1:]), dtype=entry.dtype, name=scope_name(entry.name))
        for entry in blueprint.trace.inputs
    ]
    tensors = {e.index: wrap_tensor(e.index, x) for e, x in zip(blueprint.trace.inputs, inputs, strict=True)}
    variables: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for step in blueprint.steps:
        arguments = [tensors[i] for i in step.inputs]
        layer = layers.get(step.name)
        if layer is None:
            layer = _make(step, arguments, variables)
            layers[step.name] = layer = wrap_layer(step, layer) if wrap_layer else layer
        elif step.kind == "Opaque":
            opaque.check_same_template(layer, step)
        results = layer(arguments[0] if len(arguments) == 1 else arguments)
        for index, tensor in zip(
            step.outputs, results if isinstance(results, (list, tuple)) else [results], strict=True
        ):
            tensors[index] = wrap_tensor(index, tensor)
    outputs = [tensors[i] for i in (*blueprint.trace.outputs, *extra_outputs)]
    return Net(tf_keras.Model(inputs, outputs), variables, layers, tensors)


def scope_name(name: str) -> str:
    """`name` as TensorFlow accepts it for a scope."""
    cleaned = re.sub(r"[^A-Za-z0-9_.\\-]", "_", name)
    return cleaned if re.match(r"[A-Za-z0-9.]", cleaned) else f"layer{cleaned}"


def _make(step: Step, arguments: list[Any], variables: dict[str, Any]) -> Any:
    import tensorflow as tf

    if step.kind == "Opaque":
        layer = opaque.make(step)
    else:
        cls = getattr(load().tf_keras.layers, step.kind)
        layer = cls(**step.config, name=scope_name(step.name), trainable=step.trainable, dtype="float32")
    if not step.weights:
        return layer
    shapes = [tensor.shape for tensor in arguments]
    with tf.name_scope(layer.name):
        layer.build(shapes[0] if len(shapes) == 1 else shapes)
    for weight in step.weights:
        target = layer.state[weight.attribute] if step.kind == "Opaque" else getattr(layer, str(weight.attribute))
        target.assign(keras.ops.convert_to_numpy(weight.source))
        variables[weight.key] = target
    return layer


def probe(blueprint: Blueprint, batch: int = 2) -> list[np.ndarray]:
    """Random inputs: floats in [0, 1), small integers."""
    random = np.random.default_rng(0)
    arrays = []
    for entry in blueprint.trace.inputs:
        shape = (batch, *(n or 16 for n in entry.shape[1:]))
        if entry.dtype.startswith(("float", "bfloat")):
            arrays.append(random.random(shape).astype(entry.dtype))
        else:
            arrays.append(random.integers(0, 2, shape).astype(entry.dtype))
    return arrays


def check_equal(model: Any, blueprint: Blueprint, data: list[np.ndarray] | None = None) -> None:
    """Compares the rebuilt net with the source on the same inputs, layer by layer.

    Args:
        model: Source model.
        blueprint: Its blueprint.
        data: One array an input. Defaults to random ones.

    Raises: RuntimeError that names the first layer whose output differs.
    """
    data = data or probe(blueprint)
    numbers, names = _single_call_outputs(blueprint)
    graph = functional_of(model)
    wanted = _run_source(
        keras.Model(graph.inputs, [*graph.outputs, *(_tensor_of(graph, name) for name in names)]), data
    )
    received = _run(emit(blueprint, extra_outputs=tuple(numbers)).model, data)
    places = [*names, *("model output" for _ in graph.outputs)]
    count = len(graph.outputs)
    for name, a, b in zip(places, wanted[count:] + wanted[:count], received[count:] + received[:count], strict=True):
        if not _close(a, b):
            raise RuntimeError(_difference(name, a, b))


def _difference(where: str, a: np.ndarray, b: np.ndarray) -> str:
    gap = float(np.max(np.abs(a - b))) if a.shape == b.shape else float("nan")
    return (
        f"The tf_keras copy of the model is not equal to it: {where!r} differs first (shapes "
        f"{a.shape} and {b.shape}, largest "
        f"difference {gap:.3g}). Way out: replace that layer, or wrap it in a layer of your own, "
        f"which is taken over as it is."
    )


def _single_call_outputs(blueprint: Blueprint) -> tuple[list[int], list[str]]:
    calls = [call for call in blueprint.trace.calls if "." not in call.name and len(call.operation._inbound_nodes) == 1]
    calls = [call for call in calls if len(call.outputs) == 1]
    return [call.outputs[0] for call in calls], [call.name for call in calls]


def _tensor_of(graph: Any, name: str) -> Any:
    operation = next(operation for operation in graph.operations if operation.name == name)
    return operation._inbound_nodes[0].outputs[0]


def _run(model: Any, data: list[np.ndarray]) -> list[np.ndarray]:
    outputs = model(data[0] if len(data) == 1 else data, training=False)
    return [np.array(x) for x in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _run_source(model: Any, data: list[np.ndarray]) -> list[np.ndarray]:
    graph = functional_of(model)
    packed = keras.tree.pack_sequence_as(graph._inputs_struct, data)
    return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(model(packed, training=False))]


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    if not np.issubdtype(a.dtype, np.floating):
        return bool(np.array_equal(a, b))
    scale = float(np.max(np.abs(a), initial=1e-6, where=np.isfinite(a)))
    return bool(np.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True))


def _check_untied(steps: list[Step]) -> None:
    owners: dict[int, str] = {}
    for step in steps:
        for weight in step.weights:
            owner = owners.setdefault(id(weight.source), weight.key)
            if owner != weight.key:
                raise ValueError(
                    f"Variable {weight.key!r} is the same as {owner!r}: two layers share one "
                    f"variable, which quantize_aware "
                    "cannot rebuild. Way out: call one layer twice instead, or put both into one custom layer."
                )
