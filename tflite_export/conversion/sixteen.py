"""Activations of 16 bits, by the one quantizer of TensorFlow that makes them."""

import re

from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.errors import ConversionError
from tflite_export.silence import silenced
from tflite_export.tflite import flatbuffer, records
from tflite_export.tflite.kernels import own_biases
from tflite_export.tflite.unseen import with_headroom

_NO_RANGE = re.compile(r"recorded during calibration: Failed for tensor (?:serving_default_)?(\w+)")
_NO_KERNEL = re.compile(r"16x8-bit not yet supported for op: '(\w+)'")
_HEADROOM = 2.0


def quantized_to_16_bits(job: Job, content: bytes) -> bytes:
    """The int16x8 file of a calibrated one.

    A tensor may become twice as large as calibration saw it, before it is clipped: that costs one bit of 16.

    Args:
        job: What is asked for.
        content: Of `calibrated`.

    Raises: ConversionError that names the layers that have no 16-bit kernel.
    """
    failure: Exception | None = None
    with silenced(job.verbose) as said:
        import tensorflow as tf
        from tensorflow.lite.python.convert import deduplicate_readonly_buffers
        from tensorflow.lite.python.optimize.calibrator import Calibrator

        quantizer = Calibrator(own_biases(with_headroom(content, _HEADROOM)))
        try:
            # Without data it keeps the ranges that are in the file.
            made = quantizer.calibrate_and_quantize(
                lambda: iter(()), tf.int16, tf.int16, False, tf.int16, bias_type=tf.int64
            )
            made = bytes(deduplicate_readonly_buffers(made))
        except Exception as error:
            failure = error
    if failure is None:
        return flatbuffer.order(made, list(job.source.inputs), list(job.source.outputs))
    kind, tensor = _NO_KERNEL.search(str(failure)), _NO_RANGE.search(str(failure))
    if tensor is not None:
        raise ConversionError(
            f"{job.source.label} does not convert to int16x8: TensorFlow's quantizer has no range for "
            f"{tensor[1]!r}, as for all integers that are looked up. Choose 'int8_float_io' or 'dynamic'."
        ) from failure
    if kind is None:
        raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    layers = dict.fromkeys(op.layer or op.outputs[0].name for op in ops if op.name == kind[1])
    raise ConversionError(
        f"{job.source.label} does not convert to int16x8: layer {', '.join(map(repr, layers))} is computed by "
        f"{kind[1]}, which TensorFlow does not quantize to 16 bits. Choose 'int8_float_io', 'dynamic' or 'float16'."
    ) from failure
