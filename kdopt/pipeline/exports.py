"""From trained models to files in a folder, each verified and measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdopt.core import measure
from kdopt.pipeline.datasets import Pair
from kdopt.pruning.robustness import robustness
from kdopt.reports.record import Variant
from tflite_export.conversion.convert import convert
from tflite_export.proof.latency import benchmark
from tflite_export.proof.verification import verify
from tflite_export.runtime.model import TFLiteModel

_ROUNDS, _ROUND_SECONDS = 5, 0.3


@dataclass(frozen=True)
class Export:
    """What becomes a file.

    Attributes:
        name: For people: "student int8".
        source: What is converted: a Keras model, or one with `__tflite_source__`.
        precision: "float32", "float16", "int8", ...
        model: Keras model whose parameters, zeros and multiply-accumulates the file has.
    """

    name: str
    source: Any
    precision: str
    model: Any

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name.replace(' ', '_')}.tflite"


def write(export: Export, folder: Path, samples: np.ndarray) -> TFLiteModel:
    """Converts and saves one file.

    Args:
        export: What to convert.
        folder: Where to.
        samples: Images (n, height, width, 1), to check the file with.
    """
    tflite = convert(export.source, export.precision, samples)
    tflite.save(folder / export.file)
    return tflite


def fastest_rounds(files: Sequence[TFLiteModel]) -> list[Any]:
    """Latency of each file: in turns, several times, because a machine has moods; the least disturbed turn counts."""
    rounds = [[benchmark(file, seconds=_ROUND_SECONDS, cold=False) for file in files] for _ in range(_ROUNDS)]
    return [min(turns, key=lambda latency: latency.median_ms) for turns in zip(*rounds, strict=True)]


def accuracy(tflite: TFLiteModel, data: Pair) -> float:
    """Fraction in [0, 1] of images that the file classifies right."""
    images, classes = data
    return float(np.mean(np.asarray(tflite.predict(images)).argmax(axis=-1) == classes))


def variant(export: Export, tflite: TFLiteModel, latency: Any, test: Pair, samples: np.ndarray) -> Variant:
    """Everything measured on one file.

    Args:
        export: What it was made from.
        tflite: The file.
        latency: From `fastest_rounds`.
        test: Images and classes for the accuracy.
        samples: Images to compare file and source on.
    """
    found = asdict(verify(export.source, tflite, samples))
    for name in ("outputs", "layers"):  # one output only: the same numbers again
        del found[name]
    return Variant(
        name=export.name,
        precision=export.precision,
        file=export.file,
        accuracy=accuracy(tflite, test),
        size_bytes=tflite.size_bytes,
        gzip_bytes=tflite.gzip_bytes,
        latency_ms=latency.median_ms,
        latency_p90_ms=latency.p90_ms,
        parameters=measure.parameters(export.model),
        nonzero=measure.nonzero(export.model),
        macs=measure.macs(export.model),
        verification=found,
        robustness=robustness(lambda images: accuracy(tflite, (images, test[1])), test[0]).mean,
    )
