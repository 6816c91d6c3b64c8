"""Activations of 16 bits, by the one quantizer of TensorFlow that makes them."""

import re

from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.errors import ConversionError
from tflite_export.silence import silenced
from tflite_export.tflite import records
from tflite_export.tflite.sixteen import prepared

_NO_KERNEL = re.compile(r"16x8-bit not yet supported for op: '(\w+)'")
_HEADROOM = 2.0


def quantized_to_16_bits(job: Job, content: bytes) -> bytes:
    """The int16x8 file of a calibrated one.

    A tensor may become twice as large as calibration saw it, before it is clipped: that costs one bit of 16. (A net of
    products and normalizations still needs data as in use: with an input twice as large, a square is four times that.)
    What has no 16-bit kernel stays float, for the contract to refuse.

    Args:
        job: What is asked for.
        content: Of `calibrated`.

    Raises: ConversionError; it names the layers if what reads the inputs or makes the outputs has no 16-bit kernel.
    """
    failures = []
    with silenced(job.verbose) as said:
        import tensorflow as tf
        from tensorflow.lite.python.convert import deduplicate_readonly_buffers
        from tensorflow.lite.python.optimize.calibrator import Calibrator

        ready = prepared(content, _HEADROOM)
        for allow_float in (True, False):  # only without float it says what stands in the way
            try:
                made = Calibrator(ready).calibrate_and_quantize(  # without data the ranges stay as they are in the file
                    lambda: iter(()), tf.int16, tf.int16, allow_float, tf.int16, bias_type=tf.int64
                )
                made = bytes(deduplicate_readonly_buffers(made))
                break
            except Exception as error:
                failures.append(error)
    if len(failures) < 2:
        return job.ordered(made)
    kind = _NO_KERNEL.search(str(failures[1]))
    if kind is None and "of type FLOAT32" in str(failures[0]):
        raise ConversionError(
            f"{job.source.label} does not convert to int16x8: an input or output touches nothing that computes with "
            "16 bits. Leave constants and inputs that are handed on out of the model, or choose 'int8_float_io' or "
            "'float16'."
        ) from failures[0]
    if kind is None:
        raise conversion_error(failures[1], job.source, job.precision.name, job.batch, said.text) from failures[1]
    ops = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    layers = dict.fromkeys(op.layer or op.outputs[0].name for op in ops if op.name == kind[1])
    raise ConversionError(
        f"{job.source.label} does not convert to int16x8: layer {', '.join(map(repr, layers))} is computed by "
        f"{kind[1]}, which TensorFlow does not quantize to 16 bits. Choose 'dynamic' or 'float16', or 'int8_float_io', "
        "which knows more operations."
    ) from failures[1]
