"""Runs a file on ai_edge_litert, in float space, whatever its batch size and integer types."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.silence import silenced
from tflite_export.sources.samples import groups
from tflite_export.tflite import flatbuffer

_RESOLVERS = {"xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
KERNELS = tuple(_RESOLVERS)


class Runner:
    """A loaded and allocated `.tflite` file.

    Args:
        content: The file; a path is mapped into memory, as an app does it.
        threads: Integer >= 1, CPU threads.
        kernels: `"xnnpack"`, as apps run it; `"builtin"`, the runtime's own; `"reference"`, its plain loops.
        keep_all: Whether every tensor inside can be read after a run; not with XNNPACK, which keeps none.

    Raises: ValueError if the runtime refuses the file.
    """

    def __init__(
        self, content: bytes | Path, threads: int = 1, *, kernels: str = "xnnpack", keep_all: bool = False
    ) -> None:
        with silenced() as said:
            try:
                from ai_edge_litert.interpreter import Interpreter, OpResolverType

                self._interpreter = Interpreter(
                    **{"model_path" if isinstance(content, Path) else "model_content": content},
                    num_threads=threads,
                    experimental_op_resolver_type=getattr(OpResolverType, _RESOLVERS[kernels]),
                    experimental_preserve_all_tensors=keep_all,
                )
                self.inputs, self.outputs = _details(self._interpreter)
                # A file with open sizes (besides the batch) stores them as 1, which many nets do not survive.
                self.allocated = not any(-1 in detail["shape_signature"][1:] for detail in self.inputs.values())
                if self.allocated:
                    self._interpreter.allocate_tensors()
                    self.inputs, self.outputs = _details(self._interpreter)
                failure = None
            except (ValueError, RuntimeError) as error:
                failure = error
        if failure is not None:
            custom = flatbuffer.custom_operations(content) if isinstance(content, bytes) else ()
            if custom:
                raise ValueError(
                    f"ai_edge_litert cannot load the file: it does not have {', '.join(custom)}, which the app's "
                    "runtime must bring along."
                ) from failure
            raise ValueError(f"ai_edge_litert cannot load the file: {failure}\n{said.tail(4)}".strip()) from failure

    @property
    def batch(self) -> int | None:
        """Samples of one run, or None if the file takes any number."""
        signatures = [tuple(detail["shape_signature"]) for detail in self.inputs.values()]
        sizes = {int(shape[0]) for shape in signatures if shape}
        return None if -1 in sizes else max(sizes, default=1)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Output name -> array (n, ...), dequantized.

        Args:
            arrays: Input name -> array (n, ...), in float space. Runs batch by batch; the last batch of a file with
                a static batch is filled up and cut.
        """
        count = len(next(iter(arrays.values())))
        parts = [self._run_once(batch) for batch in groups(arrays, self.batch or min(count, 32))]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in self.outputs}

    def inside(self, arrays: Mapping[str, np.ndarray], numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """Number of a tensor of the main graph -> its values in every run, one after the other, dequantized.

        Args:
            arrays: As in `run`.
            numbers: Which tensors. `keep_all` must have been set.
        """
        count = len(next(iter(arrays.values())))
        wanted = list(numbers)
        parts: list[list[np.ndarray]] = []
        for batch in groups(arrays, self.batch or min(count, 32)):
            self.set_inputs(batch)
            self._interpreter.invoke()
            details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
            parts.append([dequantize(self._interpreter.get_tensor(n), details[n]) for n in wanted])
        return {number: np.stack([part[place] for part in parts]) for place, number in enumerate(wanted)}

    def tensors(self) -> Iterator[np.ndarray]:
        """Every tensor of the main graph that has memory now, in place; no scalars. Drop it before another call."""
        for detail in self._interpreter.get_tensor_details():
            try:
                found = self._interpreter.tensor(detail["index"])()
            except ValueError:  # it has none: inside a piece that XNNPACK runs
                continue
            if isinstance(found, np.ndarray):  # scalars are copies
                yield found
            del found

    def set_zeros(self) -> None:
        """Puts a zero into every place of the inputs: valid as a number and as an index."""
        for detail in self.inputs.values():
            self._interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))

    def nodes(self) -> list[dict[str, Any]]:
        """The operations as the runtime runs them: `index`, `op_name`, numbers of `inputs` and `outputs`."""
        return self._interpreter._get_ops_details()

    def raw(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One run: tensors as the file has them, in and out, nothing quantized or dequantized."""
        for name, detail in self.inputs.items():
            self._interpreter.set_tensor(detail["index"], arrays[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self.outputs.items()}

    def invoke(self) -> None:
        """One inference on whatever the inputs hold."""
        self._interpreter.invoke()

    def set_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts one batch in, quantized where the file takes integers."""
        resized = not self.allocated
        for name, detail in self.inputs.items():
            if -1 in detail["shape_signature"] and tuple(detail["shape"]) != arrays[name].shape:
                self._interpreter.resize_tensor_input(detail["index"], arrays[name].shape)
                resized = True
        if resized:
            self._interpreter.allocate_tensors()
            self.allocated = True
            self.inputs, self.outputs = _details(self._interpreter)
        for name, detail in self.inputs.items():
            self._interpreter.set_tensor(detail["index"], quantize(arrays[name], detail))

    def _run_once(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.set_inputs(arrays)
        self._interpreter.invoke()
        return {
            name: dequantize(self._interpreter.get_tensor(detail["index"]), detail)
            for name, detail in self.outputs.items()
        }


def grid(detail: Mapping[str, Any]) -> tuple[float, int] | None:
    """(scale, zero point) of a quantized input or output, else None."""
    scale, zero_point = detail["quantization"]
    return (float(scale), int(zero_point)) if scale else None


def quantize(values: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """q = clip(round(x / scale) + zero_point) for an integer tensor with a grid, else the values in its dtype."""
    found, dtype = grid(detail), np.dtype(detail["dtype"])
    if found is None or dtype.kind == "f":
        return np.ascontiguousarray(values, dtype)
    scale, zero_point = found
    limits = np.iinfo(dtype)
    levels = np.round(np.asarray(values, np.float64) / scale) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """x = scale * (q - zero_point) as float32 for an integer tensor with a grid, else the values."""
    found = grid(detail)
    if found is None or np.dtype(detail["dtype"]).kind == "f":
        return values
    scale, zero_point = found
    return (scale * (values.astype(np.float64) - zero_point)).astype(np.float32)


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Details of inputs and outputs by signature name, in the order of the graph."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter._get_full_signature_list()
    if len(signatures) != 1:
        return {d["name"]: d for d in inputs}, {d["name"]: d for d in outputs}
    signature = next(iter(signatures.values()))
    return _named(inputs, signature["inputs"]), _named(outputs, signature["outputs"])


def _named(details: list[dict[str, Any]], names: Mapping[str, int]) -> dict[str, Any]:
    position = {detail["index"]: place for place, detail in enumerate(details)}
    ordered = sorted(names, key=lambda name: position[names[name]])
    by_index = {detail["index"]: detail for detail in details}
    return {name: by_index[names[name]] for name in ordered}
