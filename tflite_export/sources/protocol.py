"""How any object says what to convert: `__tflite_source__`.

An object takes part, without importing this package, by a method that returns a dict:

    "module"       object that tracks the variables: tf.Module, tf_keras model, ... (has `.variables`)
    "function"     callable(*tensors in input order) -> tensor, list or dict of tensors, in inference mode
    "inputs"       dict name -> tf.TensorSpec with batch dimension None, in call order
    "outputs"      tuple of output names
    "has_ranges"   bool: fake-quantization ranges are inside (QAT). int8 keeps them; float precisions are refused
    "calibration"  dict input name -> array (n, ...) or None: a small sample for the tensors that have no range

and, where they matter:

    "advice"       dict layer name -> what may stand in the way of an int8 file, and the way out
    "floats"       names of layers that are to compute in floating point in an integer file, too
    "reference"    callable like "function": what the object itself predicts, if "function" is a form for the converter
    "precisions"   names of the precisions it can have, e.g. ("int8", "int8_float_io")
    "kernels"      (a layer of a Keras model: the method `__tflite_kernels__()`, which returns them)
                   list of dicts, filled once `function` was called: kernels whose integers the converter cannot derive
                   from their values, see `tflite_export.kernels.Kernel`
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_KEYS = ("module", "function", "inputs", "outputs", "has_ranges", "calibration")
_BATCH = 32


@dataclass(frozen=True)
class InputSpec:
    """Shape with the batch dimension first (None = any) and NumPy dtype name of one input."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Source:
    """What is converted, in one form whatever it was.

    Attributes:
        label: How to call it in a message.
        module: Object that keeps the variables alive; its `.variables` are saved.
        function: Callable(*tensors) -> tensor, list or dict of tensors, inference mode.
        inputs: Input name -> `InputSpec`, in call order.
        outputs: Output names, in order.
        has_ranges: Whether fake-quantization ranges are inside.
        calibration: Input name -> array, or None.
        advice: Layer name -> what to say if an int8 conversion fails.
        layers: Names of the layers, to name the one an operation comes from.
        scopes_numbered: Whether graph scopes carry a call number after the layer name (Keras 3: `conv_1` for the
            first call of `conv`).
        floats: Names of the layers that are to compute in floating point in an integer file, too.
        reference: As `function`: what it predicts by itself, if `function` is a form of it for the converter.
        precisions: Names of the precisions it can have; None: all that fit `has_ranges`.
        processed: Whether something was folded in around the module.
        ranked: Names of outputs (n, k) that hold classes by rank, of which the first one is compared: those behind it
            may be as likely as each other.
        kernels: Kernels whose integers the file must have, as dicts; filled once `function` was called.
    """

    label: str
    module: Any
    function: Callable[..., Any]
    inputs: Mapping[str, InputSpec]
    outputs: tuple[str, ...]
    has_ranges: bool = False
    calibration: Mapping[str, np.ndarray] | None = None
    advice: Mapping[str, str] = field(default_factory=dict)
    layers: frozenset[str] = frozenset()
    scopes_numbered: bool = False
    floats: frozenset[str] = frozenset()
    reference: Callable[..., Any] | None = None
    precisions: tuple[str, ...] | None = None
    kernels: Sequence[Mapping[str, Any]] = ()
    processed: bool = False
    ranked: frozenset[str] = frozenset()

    @property
    def fixed_batch(self) -> int | None:
        """The batch size built into the inputs, or None."""
        sizes = {spec.shape[0] for spec in self.inputs.values()} - {None}
        return sizes.pop() if len(sizes) == 1 else None

    def compared(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of these outputs file and source must have in common."""
        return {name: array[..., :1] if name in self.ranked else array for name, array in outputs.items()}

    def call(self, *tensors: Any) -> dict[str, Any]:
        """Output name -> tensor, in order."""
        return named_outputs(self.function(*tensors), self.outputs)

    def predict(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the source itself eagerly, in batches: output name -> array (n, ...). States of layers are put back."""
        held = [(variable, np.array(variable)) for variable in _states(self.module)]
        try:
            return self._predict(arrays)
        finally:
            for variable, value in held:
                variable.assign(value)

    def _predict(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        count = len(next(iter(arrays.values())))
        size = self.fixed_batch or _BATCH
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, count, size):
            index = np.arange(start, start + size) if self.fixed_batch else np.arange(start, min(start + size, count))
            batch = [tf.constant(arrays[name][np.minimum(index, count - 1)]) for name in self.inputs]
            found = named_outputs((self.reference or self.function)(*batch), self.outputs)
            parts.append({name: np.asarray(value) for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in self.outputs}


def from_protocol(target: Any) -> Source:
    """Reads `target.__tflite_source__()`.

    Raises: TypeError, ValueError for an answer that is not as the protocol says.
    """
    label = f"{type(target).__name__} {getattr(target, 'name', '')!r}"
    answer = target.__tflite_source__()
    if not isinstance(answer, Mapping) or not set(_KEYS) <= set(answer):
        got = sorted(answer) if isinstance(answer, Mapping) else type(answer).__name__
        raise TypeError(f"{label}: `__tflite_source__()` must return a dict with {', '.join(_KEYS)}; got {got}.")
    names = safe_names(answer["inputs"])
    specs = [InputSpec(tuple(spec.shape.as_list()), spec.dtype.name) for spec in answer["inputs"].values()]
    calibration = answer["calibration"]
    if calibration is not None:
        calibration = {names[list(answer["inputs"]).index(key)]: value for key, value in calibration.items()}
    return Source(
        label=label,
        module=answer["module"],
        function=answer["function"],
        inputs=dict(zip(names, specs, strict=True)),
        outputs=safe_names(answer["outputs"]),
        has_ranges=bool(answer["has_ranges"]),
        calibration=calibration,
        advice=answer.get("advice", {}),
        layers=layer_names(answer["module"]) | layer_names(target) | frozenset(answer.get("floats", ())),
        floats=frozenset(answer.get("floats", ())),
        precisions=answer.get("precisions"),
        reference=answer.get("reference"),
        kernels=answer.get("kernels", ()),
    )


def _states(module: Any) -> list[Any]:
    """Variables that a call may change; those of a stateful recurrent layer are in no list of the model's."""
    found = list(getattr(module, "non_trainable_variables", ()))
    for layer in getattr(module, "_flatten_layers", list)():
        found += [one for one in getattr(layer, "states", None) or () if hasattr(one, "assign")]
    return found


def safe_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names a signature can hold: other characters than letters, digits and _ become _ ; repeated ones get a number.

    The numbers depend on the names alone, not on their order, so that a dict in another order means the same.
    """
    given = [str(name) for name in names]
    safe: dict[int, str] = {}
    for index in sorted(range(len(given)), key=lambda i: (given[i], i)):
        candidate = base = re.sub(r"\W", "_", given[index], flags=re.ASCII) or "tensor"
        number = 0
        while candidate in safe.values():
            number += 1
            candidate = f"{base}_{number}"
        safe[index] = candidate
    return tuple(safe[index] for index in range(len(given)))


def named_outputs(result: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Gives the outputs of a model their names, in order.

    Raises: ValueError if they do not fit.
    """
    if isinstance(result, Mapping):
        found = dict(zip(safe_names(result), result.values(), strict=True))
        if set(found) != set(names):
            raise ValueError(f"The source says its outputs are {list(names)}, but returns {sorted(found)}.")
        return {name: found[name] for name in names}
    values = list(result) if isinstance(result, list | tuple) else [result]
    if len(values) != len(names):
        raise ValueError(f"The source says its outputs are {list(names)}, but returns {len(values)} tensors.")
    return dict(zip(names, values, strict=True))


def layer_names(model: Any) -> frozenset[str]:
    """Names of all layers inside a Keras 3 or tf_keras model; empty for anything else."""
    flatten = getattr(model, "_flatten_layers", None)
    if flatten is None:
        return frozenset()
    return frozenset(layer.name for layer in flatten(include_self=False))
