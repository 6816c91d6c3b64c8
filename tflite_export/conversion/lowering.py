"""From a SavedModel to the bytes of a file, by TensorFlow's converter."""

from tflite_export import precisions
from tflite_export.conversion import contract
from tflite_export.conversion.custom import allow
from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.integers import calibrated, quantized
from tflite_export.conversion.job import Job
from tflite_export.conversion.mixed import check_found, of_layers
from tflite_export.conversion.sixteen import quantized_to_16_bits
from tflite_export.conversion.sparse import renamed, sparsified
from tflite_export.errors import ConversionError
from tflite_export.precisions import Precision
from tflite_export.silence import silenced
from tflite_export.tflite import kernels, records
from tflite_export.tflite.byte_inputs import take_bytes
from tflite_export.tflite.integer_weights import with_integer_weights


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
        _refuse_loops(job, run_converter(job, precisions.get("float32"), folder))
    content, left, floats = _with_ranges(job, folder, ranged)
    content, patched = _finished(job, content)
    content, floats = _stored(job, content, floats | patched)
    return content, left, floats


def lowered_again(job: Job) -> tuple[bytes, tuple[str, ...], frozenset[str]]:
    """As `lowered`, for a job whose ranges are there."""
    content, floats = quantized(job, job.ranges[0])
    content, patched = _finished(job, content)
    content, floats = _stored(job, content, floats | patched)
    return content, (), floats


def _finished(job: Job, content: bytes) -> tuple[bytes, frozenset[str]]:
    """The file with what the converter does not do; the names of the tensors that operations left float make."""
    rule = job.precision
    content, patched = kernels.patch(content, job.source.kernels, rule.integer)
    if rule.name == "weight_int8" and not job.source.kernels:
        content = with_integer_weights(content)
    if rule.name == "int16x8":
        content = kernels.widen_biases(content)
    content = _narrowed(job, content)
    if rule.integer and any(spec.dtype == "uint8" for spec in job.source.inputs.values()):
        content = take_bytes(content)
    return content, patched


def _stored(job: Job, content: bytes, floats: frozenset[str]) -> tuple[bytes, frozenset[str]]:
    """The file with its kernels stored sparsely, if that is asked for; the names of `floats` in it."""
    if not job.sparse:
        return content, floats
    made = sparsified(job, content)
    return made, renamed(content, made, floats)


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


def _with_ranges(job: Job, folder: str, ranged: bool) -> tuple[bytes, tuple[str, ...], frozenset[str]]:
    if not job.precision.integer:
        return run_converter(job, job.precision, folder), (), frozenset()
    if not ranged and job.precision.name == "int16x8":
        return quantized_to_16_bits(job, calibrated(job, folder)), (), frozenset()
    if not ranged:
        job.ranges.append(calibrated(job, folder))
        content, floats = quantized(job, job.ranges[0])
        return content, (), floats
    content = run_converter(job, job.precision, folder)
    left = contract.float_layers(content, job.source)
    if not left:
        return content, (), frozenset()
    if job.ranges_data is None or job.precision.name == "int16x8":
        raise ConversionError(
            f"{job.source.label} has no range for: {', '.join(left)}. They would stay float in the "
            f"{job.precision.name} file. Pass `representative_data`, from which only these ranges are taken, or train "
            "them."
        )
    content, floats = quantized(job, calibrated(job, folder))
    return content, left, floats


def run_converter(job: Job, rule: Precision, folder: str) -> bytes:
    """One run of TensorFlow's converter without data: a file with inputs and outputs in the order of the source.

    Raises: ConversionError that names the layer, as far as the converter's message lets it.
    """
    failure: Exception | None = None
    with silenced(job.verbose) as said:
        converter = job.converter(folder)
        rule.configure(converter, None)
        allow(converter, job.custom_ops)
        try:
            content = job.ordered(converter.convert())
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
