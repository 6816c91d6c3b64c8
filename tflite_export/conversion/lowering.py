"""From a SavedModel to the bytes of a file, by TensorFlow's converter."""

from collections.abc import Callable, Iterator
from typing import Any

from tflite_export import precisions
from tflite_export.conversion import contract
from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Arrays, Job
from tflite_export.conversion.mixed import calibrated, check_found, of_layers, quantized
from tflite_export.errors import ConversionError
from tflite_export.precisions import Precision
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.tflite import flatbuffer, kernels, records

_ATTEMPTS = 4


def lowered(job: Job, folder: str, *, ranged: bool, loops: bool) -> tuple[bytes, tuple[str, ...], frozenset[str]]:
    """Runs the converter, and puts right what it cannot do.

    Args:
        job: What is asked for.
        folder: With the SavedModel.
        ranged: Whether the source was trained with ranges.
        loops: Whether its graph has loops.

    Returns: the file; the layers whose ranges were calibrated though the source was trained with ranges; the names of
        the tensors that operations left float make.
    Raises: ConversionError.
    """
    rule = job.precision
    if rule.integer and loops:
        _refuse_loops(job, run_converter(job, precisions.get("float32"), folder, None))
    if any(precision == "float32" for precision in job.layers.values()):
        assert job.data is not None
        content, floats = quantized(job, calibrated(job, folder, job.data), job.layers)
        return _narrowed(job, content), (), floats
    content, left = _with_ranges(job, folder, ranged)
    content, floats = kernels.patch(content, _kernels(job, content), rule.integer)
    if rule.name == "int16x8":
        content = kernels.widen_biases(content)
    return _narrowed(job, content), left, floats


def _narrowed(job: Job, content: bytes) -> bytes:
    """The file with 4 bits in the dense kernels that are to have them."""
    four = {name for name, precision in job.layers.items() if precision == "int4"}
    eight = {*job.layers} - four
    everywhere = job.precision.name in ("int4", "int8_int4")
    if not everywhere and not four:
        return content

    def chosen(op: records.OpRecord) -> bool:
        return of_layers(op, four, job.source) or (everywhere and not of_layers(op, eight, job.source))

    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    dense = [op for op in ops if op.name == "FULLY_CONNECTED"]
    for name in four:
        check_found(name, [op for op in ops if of_layers(op, {name}, job.source)], job.source)
        if not any(of_layers(op, {name}, job.source) for op in dense):
            raise ConversionError(f"`layers`: {name!r} is no dense layer; only these have kernels of 4 bits.")
    return kernels.narrow_dense(content, {op.outputs[0].name for op in ops if op.outputs and chosen(op)})


def _with_ranges(job: Job, folder: str, ranged: bool) -> tuple[bytes, tuple[str, ...]]:
    if not job.precision.integer:
        return run_converter(job, job.precision, folder, None), ()
    if not ranged:
        return _calibrated(job, folder, job.data), ()
    content = run_converter(job, job.precision, folder, None)
    left = contract.float_layers(content, job.source)
    if not left:
        return content, ()
    data = job.ranges_data
    if data is None or job.precision.name == "int16x8":
        raise ConversionError(
            f"{job.source.label} has no range for: {', '.join(left)}. They would stay float in the "
            f"{job.precision.name} file. Pass `representative_data`, from which only these ranges are taken, or train "
            "them."
        )
    return _calibrated(job, folder, data), left


def _calibrated(job: Job, folder: str, data: Arrays | None) -> bytes:
    """The file with ranges from `data`.

    TensorFlow's quantizer is not deterministic: of one unrolled LSTM, two of twelve runs on the same input left the
    operation with several outputs (SPLIT) float. So a file with float operations is made again a few times; the
    contract refuses what is still there.
    """
    for _ in range(_ATTEMPTS):
        content = run_converter(job, job.precision, folder, data)
        if not contract.float_layers(content, job.source):
            break
    return content


def run_converter(job: Job, rule: Precision, folder: str, data: Arrays | None) -> bytes:
    """One run of TensorFlow's converter: a file with inputs and outputs in the order of the source.

    Raises: ConversionError that names the layer, as far as the converter's message lets it.
    """
    failure: Exception | None = None
    representative: Callable[[], Iterator[Arrays]] | None = None
    if data is not None:
        size, given = job.source.fixed_batch or job.batch or 1, data
        representative = lambda: samples.groups(given, size)  # noqa: E731
    with silenced(job.verbose) as said:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        rule.configure(converter, representative)
        try:
            content = flatbuffer.order(converter.convert(), list(job.source.inputs), list(job.source.outputs))
        except Exception as error:  # ConverterError is a plain Exception
            failure = error
    if failure is not None:
        raise conversion_error(failure, job.source, rule.name, job.batch, said.text) from failure
    return content


def _refuse_loops(job: Job, content: bytes) -> None:
    """TensorFlow's calibrator ends the whole process (segmentation fault) on a file with a loop."""
    found = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    loops = dict.fromkeys(op.layer or op.outputs[0].name for op in found if op.name in ("WHILE", "IF"))
    if loops:
        plain = " for the model without fake-quantization" if job.source.has_ranges else ""
        raise ConversionError(
            f"{job.source.label} does not convert to {job.precision.name}: layer {', '.join(map(repr, loops))} is a "
            "loop, which the converter cannot calibrate. Rebuild a recurrent layer with `unroll=True` and copy the "
            f"weights, or choose 'dynamic' or 'float16'{plain}."
        )


def _kernels(job: Job, content: bytes) -> Any:
    """Kernels that the file is to have."""
    if job.precision.name == "int8_weights" and not job.source.kernels:
        return kernels.of_float_file(content)
    return job.source.kernels
