"""tflite_export: from a Keras model to a checked `.tflite`, and what to know about the file.

    convert          model, function, file or folder -> TFLiteModel, loaded and compared before it is returned
    convert_best     the fastest precision that keeps the accuracy
    fold_processing  a model with what an app does before and after it: pixels in, classes out
    trainable_head   a classifier as signatures that go on training on the device
    verify           how far a file is from its source, on your data, and in which layer
    benchmark        how long one inference takes, on how many threads, in which operation, with how much memory
    diagnose         what is strange about representative data
    compare          which of several files, or numbers of threads, is faster
    energy_estimate  joules of one inference, estimated from work and bytes
    delegates        which accelerator runs which operation of a file, and why not
    inspect          what is in a file
    update           what devices must download from one version to the next; apply_update makes it
    set_metadata     labels, normalization and texts in a file, as MediaPipe reads them; read_metadata reads them
    android_bundle   a folder for an Android app, with a test on golden vectors
    c_array          a file as an array in C
    TFLiteModel, TensorInfo, Verification, OutputCheck, LayerError, Latency, Comparison, Inspection, Best, Update,
    DelegateReport, CSource, Diagnosis, AndroidBundle, Metadata, Normalization, TensorText, EnergyEstimate, OpTime,
    Profile, Sustained   frozen results
    ConversionError   the source cannot become such a file, and why

Everything loads on first use: importing this package loads neither tensorflow nor keras.
"""

import importlib
from typing import Any

# No module may be called like one of these names: importing it would put the module in the function's place.
_HOME = {
    "AndroidBundle": "tflite_export.app.android",
    "Best": "tflite_export.proof.best",
    "CSource": "tflite_export.app.c_source",
    "Comparison": "tflite_export.proof.comparison",
    "ConversionError": "tflite_export.errors",
    "DelegateReport": "tflite_export.hardware.report",
    "Diagnosis": "tflite_export.proof.doctor",
    "EnergyEstimate": "tflite_export.tflite.energy",
    "Inspection": "tflite_export.tflite.inspection",
    "Latency": "tflite_export.proof.latency",
    "LayerError": "tflite_export.proof.divergence",
    "Metadata": "tflite_export.app.metadata_fields",
    "Normalization": "tflite_export.app.metadata_fields",
    "OpTime": "tflite_export.proof.profile",
    "OutputCheck": "tflite_export.proof.outputs",
    "Profile": "tflite_export.proof.profile",
    "Sustained": "tflite_export.proof.sustained",
    "TFLiteModel": "tflite_export.runtime.model",
    "TensorInfo": "tflite_export.runtime.model",
    "TensorText": "tflite_export.app.metadata_fields",
    "Update": "tflite_export.tflite.update",
    "Verification": "tflite_export.proof.verification",
    "android_bundle": "tflite_export.app.android",
    "apply_update": "tflite_export.tflite.update",
    "benchmark": "tflite_export.proof.latency",
    "c_array": "tflite_export.app.c_source",
    "compare": "tflite_export.proof.comparison",
    "convert": "tflite_export.conversion.convert",
    "convert_best": "tflite_export.proof.best",
    "delegates": "tflite_export.hardware.assessment",
    "diagnose": "tflite_export.proof.doctor",
    "energy_estimate": "tflite_export.tflite.energy",
    "fold_processing": "tflite_export.sources.processing",
    "inspect": "tflite_export.tflite.inspection",
    "read_metadata": "tflite_export.app.metadata",
    "set_metadata": "tflite_export.app.metadata",
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
