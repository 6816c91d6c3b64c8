"""In which layer a file begins to differ from its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export import metrics
from tflite_export.conversion.reference import float_file
from tflite_export.proof.file_source import FileSource
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.sources.protocol import Source
from tflite_export.tflite import flatbuffer, records

SAMPLES = 8


@dataclass(frozen=True)
class LayerError:
    """How far the output of one operation is from the float one.

    Attributes:
        layer: Keras layer, `outer/inner` in a nested model; empty if it is not known.
        op: Operation, e.g. `"CONV_2D"`.
        rmse: Root mean square of file - float, in the unit of the tensor.
        relative: rmse over the largest |value| of the float tensor.
        snr_db: Power of the float tensor over power of the error, in decibel.
    """

    layer: str
    op: str
    rmse: float
    relative: float
    snr_db: float

    def __str__(self) -> str:
        return f"{self.layer or '?'} ({self.op}): rmse {self.relative:.2%} of the peak, snr {self.snr_db:.1f} dB"


def layer_errors(
    source: Source, file: TFLiteModel, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[LayerError, ...]:
    """The error of every tensor that both the file and a float32 file of its source compute, in order of execution.

    Args:
        source: What the file was made from.
        file: Of the main graph; what loops compute inside is not compared.
        arrays: Input name of the source -> array (n, ...) in float space; the first few samples are used.
        names: Input name of the source -> that of the file.

    Raises: ConversionError if the source does not become a float32 file.
    """
    sample = {name: array[:SAMPLES] for name, array in arrays.items()}
    given = {names[name]: array for name, array in sample.items()}
    reference = source.file.content if isinstance(source, FileSource) else float_file(source, file)
    ours, theirs = _computed(file.content), _computed(reference)
    shared = [name for name in ours if name in theirs]
    found = Runner(file.content, kernels="builtin", keep_all=True).inside(given, (ours[name] for name in shared))
    expected = Runner(reference, kernels="builtin", keep_all=True).inside(sample, (theirs[name] for name in shared))
    makers = _makers(file.content, source)
    errors = []
    for name in shared:
        a, b = expected[theirs[name]], found[ours[name]]
        if name not in makers or a.shape != b.shape or a.dtype.kind != "f" or not np.isfinite(a).all():
            continue
        distance = metrics.errors(a, b.astype(np.float32))
        layer, op = makers[name]
        errors.append(LayerError(layer, op, distance.rmse, distance.rmse / max(distance.peak, 1e-30), distance.snr_db))
    return tuple(errors)


def first_beyond(errors: tuple[LayerError, ...], tolerance: float) -> LayerError | None:
    """The first one whose relative error is above `tolerance`; None if none is."""
    return next((error for error in errors if not error.relative <= tolerance), None)


def _computed(content: bytes) -> dict[str, int]:
    """Name -> number of every tensor that is no constant; of tensors of one name the last."""
    return {tensor.name: number for number, tensor in enumerate(records.tensors(content)) if tensor.data is None}


def _makers(content: bytes, source: Source) -> dict[str, tuple[str, str]]:
    """Name of a tensor -> (layer, operation) it comes from, in the main graph."""
    count = flatbuffer.read(content).Subgraphs(0).OperatorsLength()
    ops: Any = records.ops(content, source.layers, scopes_numbered=source.scopes_numbered)[:count]
    return {tensor.name: (op.layer, op.name) for op in ops for tensor in op.outputs}
