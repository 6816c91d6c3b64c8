"""Integer files in which some layers keep another precision."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.errors import ConversionError
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.tflite import flatbuffer, records

PRECISIONS = ("float32", "int8", "int4")
OF = ("int8", "uint8", "int8_float_io", "int8_int4")


def check_layers(layers: Mapping[str, str] | None, source: Source, precision: str) -> dict[str, str]:
    """The map layer -> precision, if it can be.

    Raises: TypeError, ValueError.
    """
    if layers is None:
        return {}
    if not isinstance(layers, Mapping):
        raise TypeError(f"`layers` must be a dict layer name -> precision; got {type(layers).__name__}.")
    if layers and precision not in OF:
        raise ValueError(f"`layers` goes with {', '.join(map(repr, OF))}; got precision {precision!r}.")
    if layers and (source.has_ranges or source.kernels):
        raise ValueError(
            f"{source.label} was trained with quantization; choose the precision of its layers there, not by `layers`."
        )
    known = {*source.layers}
    for name, wanted in layers.items():
        if name.split("/")[-1] not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"`layers` names {name!r}, which is no layer of {source.label}.{hint}")
        if wanted not in PRECISIONS:
            choice = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"`layers`: the precision of {name!r} must be one of {choice}; got {wanted!r}.")
    return dict(layers)


def calibrated(job: Job, folder: str, data: Mapping[str, np.ndarray]) -> bytes:
    """The float file with the ranges of its tensors, measured on `data`.

    Raises: ConversionError.
    """
    size = job.source.fixed_batch or job.batch or 1

    def representative() -> Iterator[Mapping[str, np.ndarray]]:
        return samples.groups(data, size)

    failure: Exception | None = None
    with silenced(job.verbose) as said:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        job.precision.configure(converter, representative)
        converter._experimental_calibrate_only = True
        try:
            content = bytes(converter.convert())
        except Exception as error:  # ConverterError is a plain Exception
            failure = error
    if failure is not None:
        raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
    return content


def quantized(job: Job, content: bytes, layers: Mapping[str, str]) -> tuple[bytes, frozenset[str]]:
    """The integer file of a calibrated one, with the layers of precision float32 left as they are.

    Args:
        job: What is asked for.
        content: Of `calibrated`.
        layers: Layer -> precision.

    Returns: the file; the names of the tensors that operations left float make.
    Raises: ConversionError.
    """
    wanted = {name for name, precision in layers.items() if precision == "float32"}
    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    for name in wanted:
        check_found(name, [op for op in ops if of_layers(op, {name}, job.source)], job.source)
    floats = [op.outputs[0].name for op in ops if op.outputs and of_layers(op, wanted, job.source)]
    failure: Exception | None = None
    with silenced(job.verbose) as said:
        import tensorflow as tf
        from tensorflow.lite.python.convert import mlir_quantize

        kind = getattr(tf, job.precision.io_dtype or "float32")
        options: dict[str, Any] = {"input_data_type": kind, "output_data_type": kind, "denylisted_nodes": floats}
        try:
            # Only without `fully_quantize` the types of inputs and outputs are kept; the contract looks for the rest.
            made = bytes(mlir_quantize(content, fully_quantize=False, **options))
        except Exception as error:
            failure = error
    if failure is not None:
        raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
    ops = records.ops(made, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    left = frozenset(op.outputs[0].name for op in ops if op.is_float and of_layers(op, wanted, job.source))
    return flatbuffer.order(made, list(job.source.inputs), list(job.source.outputs)), left


def check_found(name: str, ops: list[records.OpRecord], source: Source) -> None:
    """Refuses a layer of which nothing is in the file.

    Raises: ConversionError.
    """
    if not ops:
        raise ConversionError(
            f"`layers`: {name!r} of {source.label} makes no operation of its own (it does nothing in inference, or was "
            "folded away), so it has no precision. Leave it out."
        )


def of_layers(op: records.OpRecord, wanted: set[str], source: Source) -> bool:
    """Whether an operation computes one of these layers, alone or fused with others."""
    names = [tensor.name for tensor in op.outputs]
    names += [tensor.name for tensor in op.inputs if tensor.data is not None]
    found = {path for name in names for path in records.layers_in(name, source.layers, source.scopes_numbered)}
    return any(path == name or path.endswith(f"/{name}") for path in found for name in wanted)
