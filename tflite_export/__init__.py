"""tflite_export: from a Keras model to a checked `.tflite`, and what to know about the file.

    convert          model, function, file or folder -> TFLiteModel, loaded and compared before it is returned
    convert_best     the fastest precision that keeps the accuracy
    trainable_head   a classifier as signatures that go on training on the device
    verify           how far a file is from its source, on your data, and in which layer
    benchmark        how long one inference takes
    diagnose         what is strange about representative data
    compare          which of several files is faster
    inspect          what is in a file
    update           what devices must download from one version to the next; apply_update makes it
    android_bundle   a folder for an Android app, with a test on golden vectors
    c_array          a file as an array in C
    TFLiteModel, TensorInfo, Verification, OutputCheck, LayerError, Latency, Comparison, Inspection, Best, Update,
    CSource          frozen results
    ConversionError   the source cannot become such a file, and why

Everything loads on first use: importing this package loads neither tensorflow nor keras.
"""

import importlib
from typing import Any

# No module may be called like one of these names: importing it would put the module in the function's place.
_HOME = {
    "Best": "tflite_export.proof.best",
    "CSource": "tflite_export.app.c_source",
    "Comparison": "tflite_export.proof.comparison",
    "ConversionError": "tflite_export.errors",
    "Latency": "tflite_export.proof.latency",
    "Inspection": "tflite_export.tflite.inspection",
    "LayerError": "tflite_export.proof.divergence",
    "OutputCheck": "tflite_export.proof.outputs",
    "TFLiteModel": "tflite_export.runtime.model",
    "Update": "tflite_export.tflite.update",
    "TensorInfo": "tflite_export.runtime.model",
    "Verification": "tflite_export.proof.verification",
    "benchmark": "tflite_export.proof.latency",
    "c_array": "tflite_export.app.c_source",
    "compare": "tflite_export.proof.comparison",
    "convert_best": "tflite_export.proof.best",
    "convert": "tflite_export.conversion.convert",
    "AndroidBundle": "tflite_export.app.android",
    "android_bundle": "tflite_export.app.android",
    "apply_update": "tflite_export.tflite.update",
    "Diagnosis": "tflite_export.proof.doctor",
    "diagnose": "tflite_export.proof.doctor",
    "inspect": "tflite_export.tflite.inspection",
    "trainable_head": "tflite_export.sources.training",
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
