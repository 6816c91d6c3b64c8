"""tflite_export: from a Keras model to a checked `.tflite`, and what to know about the file.

    convert      model, file or folder -> TFLiteModel, loaded and compared before it is returned
    verify       how far a file is from its source, on your data
    benchmark    how long one inference takes
    delegates    which accelerator runs which operation of a file, and why not
    c_array      a file as an array in C
    TFLiteModel, TensorInfo, Verification, OutputCheck, Latency, CSource, DelegateReport   frozen results
    ConversionError   the source cannot become such a file, and why

Everything loads on first use: importing this package loads neither tensorflow nor keras.
"""

import importlib
from typing import Any

# No module may be called like one of these names: importing it would put the module in the function's place.
_HOME = {
    "CSource": "tflite_export.app.c_source",
    "ConversionError": "tflite_export.errors",
    "DelegateReport": "tflite_export.hardware.report",
    "Latency": "tflite_export.proof.latency",
    "Inspection": "tflite_export.tflite.inspection",
    "LayerError": "tflite_export.proof.divergence",
    "OutputCheck": "tflite_export.proof.outputs",
    "TFLiteModel": "tflite_export.runtime.model",
    "TensorInfo": "tflite_export.runtime.model",
    "Verification": "tflite_export.proof.verification",
    "benchmark": "tflite_export.proof.latency",
    "c_array": "tflite_export.app.c_source",
    "convert": "tflite_export.conversion.convert",
    "delegates": "tflite_export.hardware.assessment",
    "apply_update": "tflite_export.tflite.update",
    "inspect": "tflite_export.tflite.inspection",
    "update": "tflite_export.tflite.update",
    "verify": "tflite_export.proof.verification",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tflite_export' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
