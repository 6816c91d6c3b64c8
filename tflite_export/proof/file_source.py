"""A `.tflite` file as what others are compared with."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.sources.protocol import Source


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """A source that runs on ai_edge_litert, without TensorFlow.

    Attributes:
        file: The file.
    """

    file: TFLiteModel

    def predict(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the file: output name -> array (n, ...), dequantized."""
        return Runner(self.file.content).run(arrays)


def file_source(tflite: Any) -> FileSource | None:
    """The file as a source; None for what is no `TFLiteModel`, bytes or path of a `.tflite` file.

    Raises: FileNotFoundError, ValueError.
    """
    named = isinstance(tflite, str | os.PathLike) and Path(tflite).suffix == ".tflite"
    if not named and not isinstance(tflite, TFLiteModel | bytes | bytearray | memoryview):
        return None
    file = TFLiteModel.load(tflite)

    def function(*tensors: Any) -> dict[str, np.ndarray]:
        return Runner(file.content).run(dict(zip(file.float_specs, map(np.asarray, tensors), strict=True)))

    return FileSource(
        label=f"file {str(tflite)!r}" if named else f"the {file.precision} file",
        module=None,
        function=function,
        inputs=file.float_specs,
        outputs=tuple(info.name for info in file.outputs),
        file=file,
    )
