"""An agreement as a picture."""

from typing import TYPE_CHECKING, Any

import numpy as np

from kdopt.core.optional import require
from kdopt.distillation.comparing.calibration import Reliability

if TYPE_CHECKING:
    from kdopt.distillation.comparing.agreement import Agreement

_TEACHER, _STUDENT, _AGREEMENT = "#8a8f98", "#3b82c4", "#2a9d8f"
_TOO_SURE, _TOO_SHY, _INK = "#f0b695", "#cfe6df", "#4a5568"


def plot_agreement(found: "Agreement") -> Any:
    """Draws the reliability of both nets, and below it accuracy and agreement under corruption.

    Args:
        found: Of `agreement`.

    Returns: `matplotlib.figure.Figure`.
    Raises: ImportError without matplotlib; ValueError where there is neither.
    """
    both = [one for one in (found.teacher_reliability, found.student_reliability) if one is not None]
    heights = [4.2] * bool(both) + [3.2] * bool(found.corruptions)
    if not heights:
        raise ValueError("There is nothing to draw: `agreement` got no labels, and no corruptions.")
    width = max(7.5, 2 + 0.55 * len(found.corruptions))
    figure = require("matplotlib.figure", extra="report").Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights, hspace=0.04)[:, 0]
    if both:
        _draw_both(parts[0], both)
    if found.corruptions:
        _draw_corruptions(parts[-1], found)
    return figure


def _draw_both(part: Any, both: list[Reliability]) -> None:
    """Two reliability diagrams, below each the share of answers in its bins."""
    axes = part.subplots(2, 2, sharex=True, sharey="row", height_ratios=[4, 1])
    for column, (title, color) in enumerate((("teacher", _TEACHER), ("student", _STUDENT))):
        upper, lower = axes[:, column]
        _draw_reliability(upper, both[column], color)
        upper.set_title(f"{title}: calibration error {100 * both[column].ece:.1f} %", fontsize=10, loc="left")
        counts, edges = np.array(both[column].counts), np.array(both[column].edges)
        lower.bar(100 * edges[:-1], 100 * counts / counts.sum(), 100 * np.diff(edges), align="edge", color=color)
        lower.set_xlabel("confidence, %")
    axes[0, 0].set_ylabel("accuracy, %")
    axes[1, 0].set_ylabel("share, %")
    part.align_ylabels(axes[:, 0])
    axes[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    for one in axes.flat:
        _decorate(one)
    axes[0, 0].set_ylim(0, 100)
    axes[0, 0].set_xlim(0, 100)


def _draw_reliability(axes: Any, found: Reliability, color: str) -> None:
    """Accuracy over confidence; in light colors what lies between them."""
    edges, there = 100 * np.array(found.edges), np.array(found.counts) > 0
    bars = {"width": np.diff(edges)[there], "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    accuracy, confidence = (100 * np.array(values)[there] for values in (found.accuracy, found.confidence))
    axes.bar(edges[:-1][there], np.minimum(accuracy, confidence), color=color, **bars)
    for gap, shade, label in (
        (np.maximum(confidence - accuracy, 0), _TOO_SURE, "less often right than it is sure"),
        (np.maximum(accuracy - confidence, 0), _TOO_SHY, "more often"),
    ):
        axes.bar(edges[:-1][there], gap, bottom=np.minimum(accuracy, confidence), color=shade, label=label, **bars)
    axes.plot([0, 100], [0, 100], color=_INK, linewidth=1, linestyle=(0, (4, 3)))


def _draw_corruptions(part: Any, found: "Agreement") -> None:
    """Bars for the data as it is and for each severity of each corruption, the corruptions apart from each other."""
    axes = part.subplots()
    rows: list[Any] = [found, *found.corruptions]
    names = ["unchanged", *(row.name for row in found.corruptions)]
    places = np.arange(len(rows)) + 0.5 * np.cumsum([0, *(a != b for a, b in zip(names[1:], names, strict=False))])
    series = [("top-1 agreement", _AGREEMENT, [row.top1_agreement for row in rows])]
    if found.teacher_accuracy is not None:
        series.insert(0, ("accuracy of the teacher", _TEACHER, [row.teacher_accuracy for row in rows]))
        series.insert(1, ("of the student", _STUDENT, [row.student_accuracy for row in rows]))
    width = 0.84 / len(series)
    for number, (label, color, values) in enumerate(series):
        left = places - 0.42 + number * width
        axes.bar(left, 100 * np.array(values), width, align="edge", color=color, label=label)
    axes.set_xticks(places, ["", *(f"{row.severity:g}" for row in found.corruptions)], fontsize=8)
    kinds = list(dict.fromkeys(names))
    centers = [np.mean([place for place, name in zip(places, names, strict=True) if name == kind]) for kind in kinds]
    axes.xaxis.remove_overlapping_locs = False
    axes.set_xticks(centers, [f"\n{kind}" for kind in kinds], minor=True, fontsize=9)
    axes.tick_params(axis="x", which="both", length=0)
    axes.set_xlabel("corruption and its severity")
    axes.set_ylabel("share of answers, %")
    _decorate(axes)
    axes.set_ylim(0, 100)
    axes.margins(x=0.02)
    spot = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0, "borderaxespad": 0.5}
    axes.legend(**spot, ncols=len(series), fontsize=9, frameon=False)


def _decorate(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2)
    axes.set_axisbelow(True)
