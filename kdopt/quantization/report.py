"""What quantization-aware training does to each layer, and why."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["quantized", "output-only", "calibration-only", "float"]


@dataclass(frozen=True)
class LayerReport:
    """How one layer of the source model is trained and exported.

    Args:
        layer: String, name of the layer in the source model (`outer.inner` inside a nested model).
        mode: `"quantized"`: everything int8 in the file saw its rounding in training. `"output-only"`: the output
            did, what is inside (weights, intermediate tensors) gets its scale at export. `"calibration-only"`:
            nothing did, all scales come from the calibration sample at export. `"float"`: not quantized at all.
        reason: String, why.
    """

    layer: str
    mode: Mode
    reason: str


class LayerReports(tuple[LayerReport, ...]):
    """A `LayerReport` for each layer of the source; `print` shows a table."""

    def __str__(self) -> str:
        widths = [max((len(getattr(one, column)) for one in self), default=0) for column in ("layer", "mode")]
        return "\n".join(f"{one.layer:{widths[0]}}  {one.mode:{widths[1]}}  {one.reason}" for one in self)
