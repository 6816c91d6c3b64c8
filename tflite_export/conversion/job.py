"""One conversion: what is asked for, and whether it can be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tflite_export.conversion.contract import Contract
from tflite_export.conversion.sameness import SAMPLES
from tflite_export.precisions import Precision
from tflite_export.progress import on_terminal, progress
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.sources.quality import Statistics
from tflite_export.tflite import flatbuffer

Arrays = Mapping[str, np.ndarray]
_TAKE_OUT = (
    "take the fake-quantization out first: `model.strip()` for kdopt's models, `to_plain()` for a layer in `Quantized`"
)


@dataclass(frozen=True)
class Job:
    """What `convert` was asked for, with its arguments checked.

    Attributes:
        source: What is converted.
        contract: What the file must satisfy.
        data: Of the user, or None.
        batch: Samples of one run, or None for any number.
        verbose: Whether the converter talks.
        layers: Layer -> precision, of those that have another one than the rest.
        sparse: Whether kernels are to be stored without their zeros.
        custom_ops: Operations that are not builtin and may be in the file.
        seen: What was seen of the data that ranges were learned from.
        unseen: Layers that gave nothing but zeros on those data.
        masked: Layers that mask the scores of an attention in a way that could not be put right.
        remarks: What was strange about the finished file.
        whole: Of a sparse file, which kernels were left whole, and why.
        ranges: The float file with ranges, once they were learned; shared by jobs that differ in `layers`.
    """

    source: Source
    contract: Contract
    data: samples.Stream | None
    batch: int | None
    verbose: bool
    layers: Mapping[str, str] = field(default_factory=dict)
    sparse: bool = False
    custom_ops: frozenset[str] = frozenset()
    seen: Statistics = field(default_factory=Statistics)
    unseen: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    ranges: list[bytes] = field(default_factory=list)

    @property
    def precision(self) -> Precision:
        """Of the file."""
        return self.contract.precision

    @property
    def ranges_data(self) -> samples.Stream | None:
        """What ranges are calibrated on: the user's data, else the source's own sample."""
        if self.data is None and self.source.calibration is not None:
            return samples.Stream(self.source.inputs, self.source.calibration, what="calibration of the source")
        return self.data

    def converter(self, folder: str) -> Any:
        """TensorFlow's, of the SavedModel in a folder."""
        import tensorflow as tf

        return tf.lite.TFLiteConverter.from_saved_model(folder)

    def ordered(self, content: bytes) -> bytes:
        """A file with inputs and outputs in the order of the source."""
        return flatbuffer.order(content, list(self.source.inputs), list(self.source.outputs))

    def feed(self) -> "Batches":
        """The data for the converter, in batches as the file takes them."""
        data = self.ranges_data
        assert data is not None
        return Feed(data, self.source.fixed_batch or self.batch or 1, self.seen)

    @property
    def sample(self) -> Arrays:
        """What file and source are compared on: a few of the data, else seeded random numbers."""
        data = self.ranges_data
        if data is None:
            return samples.random_sample(self.source.inputs, max(self.batch or 1, 4))
        return {name: array[:SAMPLES] for name, array in data.head.items()}

    def check_ranges(self, ranged: bool) -> None:
        """Refuses a precision that source and data do not go with.

        Args:
            ranged: Whether the source was trained with ranges.

        Raises: ValueError.
        """
        source, name = self.source, self.precision.name
        if source.precisions is not None and name not in source.precisions and (ranged or source.kernels):
            raise ValueError(
                f"{source.label} was quantized for {' or '.join(map(repr, source.precisions))}; got {name!r}. Choose "
                f"one of those, or {_TAKE_OUT}."
            )
        if ranged and not self.precision.integer:
            raise ValueError(
                f"{source.label} holds fake-quantization (QAT): as {name!r} it would be a float net with rounding "
                f"inside. Convert it to 'int8' or 'int8_float_io', or {_TAKE_OUT}."
            )
        if name == "int16x8" and (taken := [one for one, spec in source.inputs.items() if spec.dtype == "uint8"]):
            raise ValueError(
                f"{source.label}: input {taken[0]!r} takes uint8, which files of 16-bit activations do not. Choose "
                "'int8' or a float precision."
            )
        if self.precision.integer and not ranged and self.data is None:
            raise ValueError(
                f"{name!r} needs `representative_data` for a float source: 100-500 samples as in use, e.g. "
                f"convert(model, {name!r}, x_train[:500]). Without data: 'dynamic' or 'float16', or train with "
                "quantization (QAT)."
            )


class Batches(Protocol):
    """Representative data as the converter asks for them: a function that starts from the first batch."""

    def __call__(self) -> Iterator[Any]:
        """All of them."""

    def first(self) -> Iterator[Any]:
        """A batch of what is read first, without counting it."""

    @property
    def error(self) -> Exception | None:
        """What reading ended with: bad data, or an exception of the user's generator."""


@dataclass
class Feed:
    """Those of one source.

    Attributes:
        data: What is read.
        size: Samples of a batch.
        seen: Where what is read is entered.
        error: See `Batches`.
    """

    data: samples.Stream
    size: int
    seen: Statistics
    error: Exception | None = None

    def first(self) -> Iterator[Arrays]:
        yield {name: np.resize(values, (self.size, *values.shape[1:])) for name, values in self.data.head.items()}

    def __call__(self) -> Iterator[Arrays]:
        try:
            with progress("calibrating", self.data.count, on_terminal()) as update:
                for batch in samples.regrouped(self.data.batches(), self.size):
                    self.seen.add(batch)
                    yield batch
                    update(self.seen.count)
        except Exception as error:
            self.error = error
            raise
