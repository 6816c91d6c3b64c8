"""One conversion: what is asked for, and whether it can be."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tflite_export.conversion.contract import Contract
from tflite_export.conversion.sameness import SAMPLES
from tflite_export.precisions import Precision
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source

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
        data: Input name -> array (n, ...), or None.
        batch: Samples of one run, or None for any number.
        verbose: Whether the converter talks.
        layers: Layer -> precision, of those that have another one than the rest.
    """

    source: Source
    contract: Contract
    data: Arrays | None
    batch: int | None
    verbose: bool
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """Of the file."""
        return self.contract.precision

    @property
    def ranges_data(self) -> Arrays | None:
        """What ranges are calibrated on: the user's data, else the source's own sample."""
        if self.data is None and self.source.calibration is not None:
            return samples.read(self.source.inputs, self.source.calibration, what="calibration of the source")
        return self.data

    @property
    def sample(self) -> Arrays:
        """What file and source are compared on: a few of the data, else seeded random numbers."""
        data = self.ranges_data
        if data is None:
            return samples.random_sample(self.source.inputs, max(self.batch or 1, 4))
        return {name: array[:SAMPLES] for name, array in data.items()}

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
        if self.precision.integer and not ranged and self.data is None:
            raise ValueError(
                f"{name!r} needs `representative_data` for a float source: 100-500 samples as in use, e.g. "
                f"convert(model, {name!r}, x_train[:500]). Without data: 'dynamic' or 'float16', or train with "
                "quantization (QAT)."
            )
