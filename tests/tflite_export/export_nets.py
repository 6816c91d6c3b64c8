"""Nets of all kinds for the export of every precision, and what became of each."""

import time

import architectures
import keras
import numpy as np
import qat_nets
from keras import layers as L
from keras import ops

import tflite_export
from tflite_export.errors import ConversionError
from tflite_export.precisions import names
from tflite_export.sources.resolve import resolve

PRECISIONS = names()


def spectrogram():
    """Sound in: log-mel features inside the model, then depthwise separable convolutions."""
    sound = keras.Input((4000,), name="sound")
    frames = ops.reshape(sound[:, : 125 * 32], (-1, 125, 32))
    frames = ops.concatenate([frames[:, :-3], frames[:, 1:-2], frames[:, 2:-1], frames[:, 3:]], axis=-1)
    angle = 2 * np.pi * np.arange(128)[:, None] * np.arange(65) / 128
    window = np.hanning(128)[:, None]
    real, imaginary = (frames @ (wave(angle) * window).astype("float32") for wave in (np.cos, np.sin))
    mel = np.maximum(0, 1 - np.abs(np.arange(65)[:, None] - np.linspace(2, 60, 20)) / 4).astype("float32")
    h = ops.log((real**2 + imaginary**2) @ mel + 1e-3)[..., None]
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(h)))
    for _ in range(2):
        h = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(h)))
        h = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 1, use_bias=False)(h)))
    return keras.Model(sound, L.Dense(10)(L.GlobalAveragePooling2D()(h)), name="spectrogram")


def gru_unrolled():
    x = keras.Input((8, 12))
    h = L.Bidirectional(L.GRU(12, return_sequences=True, unroll=True))(x)
    return keras.Model(x, L.Dense(5)(L.GlobalAveragePooling1D()(h)), name="gru_unrolled")


SMALL = (*architectures.NETS, *qat_nets.NETS, spectrogram, gru_unrolled)


def data_of(model, seed, samples):
    """Input name of the source -> array."""
    specs = resolve(model).inputs
    if getattr(model, "_inputs_struct", None) is None:
        random = np.random.default_rng(seed)
        return {name: random.normal(size=(samples, *spec.shape[1:])).astype("float32") for name, spec in specs.items()}
    drawn = qat_nets.inputs_of(model, seed, samples)
    return dict(zip(specs, keras.tree.flatten(drawn), strict=True))


def export(source, precision, given, held):
    """A record of one conversion: what file came out, how near it is to its source; or why none did.

    Args:
        source: Of `convert`.
        precision: Name.
        given: Representative data.
        held: Other data to compare on.
    """
    start = time.perf_counter()
    try:
        file = tflite_export.convert(source, precision, given)
    except (ConversionError, ValueError) as refusal:
        layers = [one.layer for one in getattr(refusal, "violations", ())]
        return {"precision": precision, "failed": f"{type(refusal).__name__}: {refusal}", "layers": layers}
    seconds = time.perf_counter() - start
    result = tflite_export.verify(source, file, held)
    return {
        "precision": precision,
        "seconds": seconds,
        "size_bytes": file.size_bytes,
        "passed": result.passed,
        "error": max(check.rmse / check.rmse_limit * result.tolerance for check in result.outputs),
        "snr_db": result.snr_db,
        "cosine": result.cosine,
        "top1": result.top1_agreement,
        "why": "" if result.passed else str(result),
        "partitions": None if file.partitions is None else file.partitions.count,
        "outside": {} if file.partitions is None else file.partitions.outside,
        "min_runtime": file.min_runtime,
    }
