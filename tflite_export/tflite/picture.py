"""Bytes and multiply-accumulates by layer, drawn."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tflite_export.tflite.inspection import Inspection

_LARGEST = 40


def drawn(inspection: "Inspection", form: str) -> bytes:
    """A picture of the layers that hold most.

    Args:
        inspection: What is drawn.
        form: `"png"`, `"svg"`, `"pdf"`: as matplotlib takes it.

    Raises: ImportError with the pip line; ValueError for another form.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A picture needs matplotlib: `pip install matplotlib`.") from error
    parts = [part for part in inspection.layers if part.weight_bytes or part.macs]
    kept = sorted(sorted(parts, key=lambda part: -part.weight_bytes)[:_LARGEST], key=parts.index)
    figure = Figure(figsize=(10, 1.4 + 0.24 * max(len(kept), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    names = [part.layer or "?" for part in kept]
    for ax, values, title in (
        (axes[0], [part.weight_bytes / 1e3 for part in kept], "weights, kB"),
        (axes[1], [part.macs / 1e6 for part in kept], "multiply-accumulates, millions"),
    ):
        ax.barh(range(len(kept)), values, color="#4477aa")
        ax.set_xlabel(title)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(kept)), names, fontsize=7)
    axes[0].invert_yaxis()
    more = f" (the {len(kept)} largest of {len(parts)} layers)" if len(parts) > len(kept) else ""
    figure.suptitle(f"{inspection.precision} .tflite, {inspection.size_bytes:,} bytes{more}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()
