"""Looks at representative data through the model, before ranges are learned from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export.conversion.convert import convert
from tflite_export.errors import ConversionError
from tflite_export.runtime.runner import Runner
from tflite_export.silence import silenced
from tflite_export.sources import quality, samples
from tflite_export.sources.norms import of_norms
from tflite_export.sources.protocol import Source
from tflite_export.sources.quality import Finding
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import records

SAMPLES = 64
_MANY = 0.25  # of a layer's channels
_WITH_CHANNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass(frozen=True)
class Diagnosis:
    """What was found about representative data.

    Attributes:
        findings: What may ruin an integer file; empty if nothing was found.
        samples: Number of samples looked at.
    """

    findings: tuple[Finding, ...]
    samples: int

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        if self.healthy:
            return f"{self.samples} samples of representative data: nothing strange was found"
        return "\n".join([f"{self.samples} samples of representative data:", *(f"  {one}" for one in self.findings)])


def diagnose(source: Any, data: Any, *, max_samples: int = 512) -> Diagnosis:
    """Tells what is strange about representative data: too few, all alike, constant, on another scale than the training
    data, with outliers, or such that many channels are never active.

    The scale is compared with what BatchNormalization layers saw in training, the channels are looked at in the float32
    file on the first 64 samples.

    Args:
        source: As in `convert`.
        data: Representative data, as in `convert`.
        max_samples: Integer >= 1, see `convert`. Defaults to 512.

    Returns: a `Diagnosis`; print it.
    Raises: As `convert` for data and sources that cannot be used.

    Example:
    ```
    print(tflite_export.diagnose(model, x_train[:300]))
    ```

    Reference: Ioffe, Szegedy, "Batch normalization", ICML 2015, algorithm 2 (statistics of training).
    """
    with silenced():
        resolved = resolve(source)
    arrays = samples.read(resolved.inputs, data, limit=max_samples)
    found = quality.findings(arrays, rescales=begins_by_rescaling(resolved))
    some = {name: array[:SAMPLES] for name, array in arrays.items()}
    with silenced():
        found += of_norms(resolved.module, some)
        found += _of_channels(resolved, some)
    return Diagnosis(tuple(found), len(next(iter(arrays.values()))))


def begins_by_rescaling(source: Source) -> bool:
    """Whether the first layers with a name of a Keras model scale their input."""
    kinds = [type(layer).__name__ for layer in getattr(source.module, "layers", ())][:4]
    return any(kind in ("Rescaling", "Normalization", "BatchNormalization") for kind in kinds)


def _of_channels(source: Source, arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Layers of which many channels give one and the same number for all samples."""
    try:
        content = convert(source, "float32", arrays).content
        runner = Runner(content, kernels="builtin", keep_all=True)
    except (ConversionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        yield Finding(
            "not looked at", f"channels were not looked at: {reason}", "Diagnose the model as it was in float"
        )
        return
    ops = records.ops(content, source.layers, scopes_numbered=source.scopes_numbered)
    numbers = {tensor.name: place for place, tensor in enumerate(records.tensors(content))}
    wanted = {
        numbers[op.outputs[0].name]: op for op in ops if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }
    values = runner.inside(arrays, wanted)
    for number, op in wanted.items():
        flat = values[number].reshape(-1, values[number].shape[-1])
        dead = int((np.ptp(flat, axis=0) == 0).sum())
        if flat.shape[1] > 3 and dead >= _MANY * flat.shape[1]:
            yield Finding(
                "never active",
                f"{dead} of {flat.shape[1]} channels give the same number for all samples",
                "Give more varied data; channels that are dead on all data can go (kdopt's `prune_channels`)",
                op.layer,
            )
