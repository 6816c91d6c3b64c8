"""A `.tflite` file in memory."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.files import gzip_size, write_atomic
from tflite_export.runtime import sandbox
from tflite_export.runtime.partitions import Partitions, partitions_of
from tflite_export.runtime.runner import Runner, grid
from tflite_export.runtime.session import Session
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec
from tflite_export.tflite import flatbuffer, op_versions
from tflite_export.tflite.records import borders, precision_of


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a file.

    Attributes:
        name: Name in the signature: the Keras input's or output layer's.
        shape: Batch first; None where any size goes.
        dtype: NumPy's name.
        scale: Step of a quantized tensor, value = scale * (q - zero_point); None if not quantized.
        zero_point: See scale.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class TFLiteModel:
    """A `.tflite` file that loads on ai_edge_litert.

    Attributes:
        content: The bytes of the file.
        precision: As given to `convert`; of a file from elsewhere, as its tensors show.
        inputs: In the order of the source's inputs.
        outputs: In the order of the source's outputs.
        calibrated: Of a QAT source only: layers whose range came from calibration, not from training.
        partitions: Which operations XNNPACK runs on this machine's CPU; None for open sizes.
        notes: What was chosen for a target, and why.

    Example:
    ```
    small = tflite_export.convert(model, "int8", x_train[:500])
    small.save("model.tflite")
    small.predict(x_test)           # float32 array (n, classes)
    ```
    """

    content: bytes = field(repr=False)
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    calibrated: tuple[str, ...] = ()
    partitions: Partitions | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_content(
        cls,
        content: bytes,
        precision: str | None = None,
        calibrated: tuple[str, ...] = (),
        *,
        trusted: bool = False,
        label: str = "The file",
    ) -> "TFLiteModel":
        """Loads the bytes on ai_edge_litert and reads inputs and outputs.

        Args:
            content: A `.tflite` file.
            precision: See the class.
            calibrated: See the class.
            trusted: Whether it was made here. Another file is run once in a process of its own before, which takes
                half a second: what ends that process does not end this one.
            label: How to call it in a message.

        Raises: ValueError if they are no `.tflite` file, or the runtime refuses them or crashes.
        """
        if not trusted:
            sandbox.admit(content, label)
        runner = Runner(content)
        inputs = tuple(_info(name, detail) for name, detail in runner.inputs.items())
        outputs = tuple(_info(name, detail) for name, detail in runner.outputs.items())
        found = partitions_of(runner) if runner.allocated else None
        return cls(content, precision or precision_of(content), inputs, outputs, calibrated, found)

    @classmethod
    def unloaded(cls, content: bytes, precision: str, calibrated: tuple[str, ...] = ()) -> "TFLiteModel":
        """The file with inputs and outputs as its bytes tell them: for operations that ai_edge_litert does not have."""
        inputs, outputs = (
            tuple(
                TensorInfo(name, shape, tensor.dtype, *_first_grid(tensor.scales, tensor.zero_points))
                for name, shape, tensor in entries
            )
            for entries in borders(content)
        )
        return cls(content, precision, inputs, outputs, calibrated, None)

    @classmethod
    def load(cls, tflite: Any) -> "TFLiteModel":
        """A `TFLiteModel` as it is; a path or bytes through `from_content`.

        Raises: FileNotFoundError, ValueError, TypeError.
        """
        if isinstance(tflite, cls):
            return tflite
        if isinstance(tflite, bytes | bytearray | memoryview):
            return cls.from_content(bytes(tflite))
        if not isinstance(tflite, str | os.PathLike):
            raise TypeError(f"`tflite` must be a TFLiteModel, a path or bytes; got {type(tflite).__name__}.")
        path = Path(tflite)
        if not path.is_file():
            raise FileNotFoundError(f"No such file: {str(path)!r}.")
        return cls.from_content(path.read_bytes(), label=repr(str(path)))

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.content)

    @property
    def gzip_bytes(self) -> int:
        """Size of the file after gzip at level 9."""
        return gzip_size(self.content)

    @property
    def min_runtime(self) -> str | None:
        """The first TensorFlow Lite release that has all operations of the file, e.g. `"2.17"`; None: not known."""
        return op_versions.min_runtime(self.content)

    @property
    def float_specs(self) -> dict[str, InputSpec]:
        """What `predict` takes: input name -> shape with any batch size, float32 for quantized inputs."""
        return {
            info.name: InputSpec((None, *info.shape[1:]), "float32" if info.scale is not None else info.dtype)
            for info in self.inputs
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file: whole, or not at all."""
        return write_atomic(path, self.content)

    def predict(self, inputs: Any, *, threads: int = 1) -> np.ndarray | dict[str, np.ndarray]:
        """Runs the file on any number of samples, quantizing and dequantizing at the border.

        Args:
            inputs: Real values as the source takes them, array (n, ...), dict, list or batches, as in `convert`.
            threads: Integer >= 1, CPU threads.

        Returns: array (n, ...) for one output, dict output name -> array for several.
        """
        arrays = samples.read(self.float_specs, inputs, what="inputs")
        results = Runner(self.content, threads).run(arrays)
        return next(iter(results.values())) if len(results) == 1 else results

    def session(self, *, threads: int = 1) -> Session:
        """The file loaded for calls by signature, of which one may change the variables that another one reads.

        Example:
        ```
        session = file.session()
        session.run("train", {"image": images, "label": labels})
        session.run("infer", images)
        ```
        """
        return Session(self.content, threads)

    def __str__(self) -> str:
        lines = [f"{self.precision} .tflite, {self.size_bytes:,} bytes"]
        for what, infos in (("input ", self.inputs), ("output", self.outputs)):
            lines += [f"  {what} {_describe(info)}" for info in infos]
        signatures = flatbuffer.signatures(self.content)
        if len(signatures) > 1:
            lines.append(f"  signatures: {', '.join(signatures)}; `session()` calls each, `predict` the first alone")
        if self.calibrated:
            more = f" and {len(self.calibrated) - 5} more" if len(self.calibrated) > 5 else ""
            lines.append(f"  ranges from calibration, not training: {', '.join(self.calibrated[:5])}{more}")
        lines.append(f"  runs on TensorFlow Lite >= {self.min_runtime or '?'}{_newest(self.content)}")
        if self.partitions is not None:
            lines.append(f"  {self.partitions}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def _info(name: str, detail: dict[str, Any]) -> TensorInfo:
    shape = tuple(None if size == -1 else int(size) for size in detail["shape_signature"])
    scale, zero_point = grid(detail) or (None, None)
    return TensorInfo(name, shape, np.dtype(detail["dtype"]).name, scale, zero_point)


def _first_grid(scales: tuple[float, ...], zero_points: tuple[int, ...]) -> tuple[float | None, int | None]:
    return (scales[0], zero_points[0]) if scales else (None, None)


def _newest(content: bytes) -> str:
    """The operation that decides, where old releases lack it."""
    need = next(iter(op_versions.needed(content)), None)
    old = need is None or (need.runtime is not None and op_versions.number(need.runtime) <= (2, 3))
    return "" if old or need is None else f" ({need.op} version {need.version})"


def _describe(info: TensorInfo) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in info.shape)
    quantized = f", scale {info.scale:.6g}, zero point {info.zero_point}" if info.scale is not None else ""
    return f"{info.name}: {info.dtype} ({sizes}){quantized}"
