"""The float32 file of a source, to compare others with."""

import tempfile

from tflite_export import precisions
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.graph import save, traced
from tflite_export.conversion.job import Job
from tflite_export.conversion.lowering import run_converter
from tflite_export.runtime.model import TFLiteModel
from tflite_export.silence import silenced
from tflite_export.sources.protocol import Source


def float_file(source: Source, like: TFLiteModel) -> bytes:
    """Bytes of a float32 file with the batch size of another one; fake quantization of the source stays in it.

    Raises: ConversionError.
    """
    batch = like.inputs[0].shape[0]
    rule = precisions.get("float32")
    job = Job(source, Contract(rule, batch is None), None, batch, False)
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as folder, silenced():
        save(source, traced(source, batch), folder)
        return run_converter(job, rule, folder)
