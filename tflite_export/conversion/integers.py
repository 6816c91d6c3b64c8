"""From a SavedModel to an integer file: ranges from data, then TensorFlow's quantizer."""

from collections.abc import Mapping
from typing import Any

from tflite_export.conversion import contract
from tflite_export.conversion.custom import allow
from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.conversion.mixed import check_found, of_layers
from tflite_export.silence import silenced
from tflite_export.tflite import records
from tflite_export.tflite.exposure import with_all_outputs, with_first_outputs
from tflite_export.tflite.masks import with_bounded_masks
from tflite_export.tflite.products import as_multiplications
from tflite_export.tflite.unseen import with_guessed_ranges

_ATTEMPTS = 12


def calibrated(job: Job, folder: str) -> bytes:
    """The float file with the ranges of its tensors, measured in one pass over the data.

    Some kernels (MUL, ADD, SUB) write their output over an input, and TensorFlow's calibrator then takes it for that
    input, too: the range of a gate, or of a branch before it is added, would be that of the result. Nothing is written
    over outputs of a file, so it measures a file in which every tensor is one.

    Raises: ConversionError; ValueError for bad data; what the user's generator raises.
    """
    failure: Exception | None = None
    feed = job.feed()
    with silenced(job.verbose) as said:
        import tensorflow as tf
        from tensorflow.lite.python.optimize.calibrator import Calibrator

        converter = job.converter(folder)
        job.precision.configure(converter, feed.first)
        allow(converter, job.custom_ops)
        converter.inference_input_type = converter.inference_output_type = tf.float32  # the quantizer sets the others
        converter._experimental_calibrate_only = True
        try:
            exposed, own = with_all_outputs(bytes(converter.convert()))
            content = with_first_outputs(bytes(Calibrator(exposed).calibrate(feed)), own)
        except Exception as error:  # ConverterError is a plain Exception
            failure = error
    if feed.error is not None:
        raise feed.error
    if failure is not None:
        raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
    content, masked = with_bounded_masks(as_multiplications(content, sixteen=job.precision.name == "int16x8"))
    content, unseen = with_guessed_ranges(content)
    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    for found, names in ((job.unseen, unseen), (job.masked, masked)):
        found.extend(dict.fromkeys(op.layer or op.name for op in ops if op.outputs and op.outputs[0].name in names))
    return content


def quantized(job: Job, content: bytes) -> tuple[bytes, frozenset[str]]:
    """The integer file of a calibrated one, with the layers that are to be float32 left as they are.

    TensorFlow's quantizer is not deterministic: of one unrolled LSTM, two of twelve runs on the same input left the
    operation with several outputs (SPLIT) float. So a file with float operations is made again a few times; the
    contract refuses what is still there.

    Args:
        job: What is asked for.
        content: Of `calibrated`.

    Returns: the file; the names of the tensors that operations left float make.
    Raises: ConversionError.
    """
    wanted = {name for name, precision in job.layers.items() if precision == "float32"}
    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    for name in wanted:
        check_found(name, [op for op in ops if of_layers(op, {name}, job.source)], job.source)
    kept = [op.outputs[0].name for op in ops if op.outputs and of_layers(op, wanted, job.source)]
    for _ in range(_ATTEMPTS):
        made = _run_quantizer(job, content, {"denylisted_nodes": kept} if kept else {})
        found = records.ops(made, job.source.layers, scopes_numbered=job.source.scopes_numbered)
        left = frozenset(op.outputs[0].name for op in found if op.is_float and of_layers(op, wanted, job.source))
        if not contract.float_layers(made, job.source, left):
            break
    return job.ordered(made), left


def _run_quantizer(job: Job, content: bytes, options: Mapping[str, Any]) -> bytes:
    failure: Exception | None = None
    with silenced(job.verbose) as said:
        import tensorflow as tf
        from tensorflow.lite.python.convert import deduplicate_readonly_buffers, mlir_quantize

        kind = getattr(tf, job.precision.io_dtype or "float32")
        try:
            # Only without `fully_quantize` the types of inputs and outputs are kept; the contract looks for the rest.
            made = mlir_quantize(content, fully_quantize=False, input_data_type=kind, output_data_type=kind, **options)
            return bytes(deduplicate_readonly_buffers(made))
        except Exception as error:
            failure = error
    raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
