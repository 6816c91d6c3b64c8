"""A file of several signatures that keeps its variables from one call to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_export.runtime.runner import dequantize, quantize
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec
from tflite_export.tflite.flatbuffer import assigning

UNUSED = "unused"


class Session:
    """A loaded file; what a signature assigns to a variable, the next call finds there.

    Args:
        content: Bytes of a `.tflite` file with signatures.
        threads: Integer >= 1, CPU threads.

    Attributes:
        signatures: Name -> (input names, output names).

    Raises: ValueError if the runtime refuses the file, or it has no signature.
    """

    def __init__(self, content: bytes, threads: int = 1) -> None:
        with silenced() as said:
            try:
                from ai_edge_litert.interpreter import Interpreter

                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                found = self._interpreter.get_signature_list()
                self._callers = {name: self._interpreter.get_signature_runner(name) for name in found}
                failure = None
            except (ValueError, RuntimeError) as error:
                failure = error
        if failure is not None:
            raise ValueError(f"ai_edge_litert cannot load the file: {failure}\n{said.tail(4)}".strip()) from failure
        if not found:
            raise ValueError("The file has no signature.")
        self._changing = assigning(content)
        self.signatures = {name: (tuple(one["inputs"]), tuple(one["outputs"])) for name, one in found.items()}

    def details(self, signature: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """(inputs, outputs) of a signature: name -> what the runtime says of the tensor.

        Raises: ValueError for an unknown signature.
        """
        if signature not in self._callers:
            raise ValueError(f"The file has the signatures {list(self._callers)}; got {signature!r}.")
        caller = self._callers[signature]
        return caller.get_input_details(), caller.get_output_details()

    def specs(self, signature: str) -> dict[str, InputSpec]:
        """What `run` takes: input name -> shape with any batch size, float32 for quantized inputs."""
        inputs, _ = self.details(signature)
        return {
            name: InputSpec((None, *(int(size) for size in detail["shape"][1:])), _float_dtype(detail))
            for name, detail in inputs.items()
        }

    def call(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call: arrays of exactly the signature's shapes, in float space.

        Returns: output name -> array, dequantized.
        """
        inputs, outputs = self.details(signature)
        given = {name: quantize(arrays[name], detail) for name, detail in inputs.items()}
        found = self._callers[signature](**given)
        return {name: dequantize(found[name], detail) for name, detail in outputs.items()}

    def run(self, signature: str, data: Any = None) -> dict[str, np.ndarray]:
        """Any number of samples, call by call in the signature's batch size; the last batch is filled up and cut.

        Args:
            signature: Name.
            data: As `TFLiteModel.predict` takes it; None for a signature that needs none (its only input is called
                `unused`).

        Returns: output name -> array (n, ...); of outputs without a batch, what the calls gave, stacked.
        Raises: ValueError for data that do not fit; for another number of samples than whole batches where the
            signature changes variables, which would learn from the filling, too.
        """
        inputs, outputs = self.details(signature)
        if data is None and list(inputs) == [UNUSED]:
            data = np.zeros(inputs[UNUSED]["shape"], np.float32)
        arrays = samples.read(self.specs(signature), data, what="data")
        size = int(next(iter(inputs.values()))["shape"][0])
        count = len(next(iter(arrays.values())))
        if count % size and signature in self._changing:
            raise ValueError(
                f"Signature {signature!r} changes variables and takes {size} samples a call: give a multiple of "
                f"{size}; got {count}. Convert it with another `batch` for others."
            )
        parts = [self.call(signature, batch) for batch in samples.groups(arrays, size)]
        return {name: _joined([part[name] for part in parts], size, count) for name in outputs}


def _joined(parts: list[np.ndarray], size: int, count: int) -> np.ndarray:
    if parts[0].ndim and parts[0].shape[0] == size:
        return np.concatenate(parts)[:count]
    return np.stack(parts)


def _float_dtype(detail: Mapping[str, Any]) -> str:
    return "float32" if detail["quantization"][0] else np.dtype(detail["dtype"]).name
