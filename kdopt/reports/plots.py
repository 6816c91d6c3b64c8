"""Plots as SVG text for an HTML page: text and axes take the page's color, so light and dark both read well."""

import io
import re
from collections.abc import Callable
from typing import Any

from kdopt.core.optional import require
from kdopt.reports.record import Report
from kdopt.reports.text import bytes_text

# One hue for each variant, of a lightness that stands out on white and on near-black.
COLORS = ("#8a8f98", "#3b82c4", "#2a9d8f", "#e07a3f", "#a267c9", "#c94f6d")
_INK = "#010203"  # never seen: replaced by the page's text color

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def sparse_stages(report: Report) -> dict[str, list[dict[str, float]]]:
    """The stages of training that logged a sparsity and a validation accuracy."""
    return {
        name: epochs
        for name, epochs in report.stages.items()
        if epochs and all({"sparsity", "val_accuracy"} <= set(epoch) for epoch in epochs)
    }


def training_svg(report: Report) -> str:
    """Sparsity, and below it validation accuracy, over the epochs of all `sparse_stages`, one after the other."""
    stages = sparse_stages(report)
    epochs = [epoch for stage in stages.values() for epoch in stage]
    panels = (("sparsity", "sparsity, %", COLORS[3]), ("val_accuracy", "validation\naccuracy, %", COLORS[1]))

    def draw(figure: Any) -> None:
        both = figure.subplots(2, 1, sharex=True)
        for axes, (key, label, color) in zip(both, panels, strict=True):
            values = [100 * epoch[key] for epoch in epochs]
            axes.plot(range(1, len(values) + 1), values, color=color, linewidth=2, marker="o", markersize=3.5)
            axes.set_ylabel(label)
            axes.margins(y=0.12)
        both[0].set_ylim(bottom=0)
        both[1].set_xlabel("epoch")
        both[1].xaxis.get_major_locator().set_params(integer=True)
        _mark_stages(both, {name: len(stage) for name, stage in stages.items()})

    return _svg(draw, "training", width=11, height=4.4)


def _mark_stages(panels: Any, lengths: dict[str, int]) -> None:
    """A line where a stage ends, its name above."""
    total, before = sum(lengths.values()), 0
    for name, length in lengths.items():
        for axes in panels:
            if before:
                axes.axvline(before + 0.5, color=_INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
        last = before and before + length == total
        at, side = (total + 0.5, "right") if last else (before + 0.7, "left")
        panels[0].annotate(name, (at, 1.03), xycoords=("data", "axes fraction"), fontsize=9.5, ha=side)
        before += length


def accuracy_svg(report: Report) -> str:
    """Accuracy against bytes, one point for each variant; bytes on a logarithmic axis."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        sizes = [variant.size_bytes for variant in report.variants]
        for variant, color in zip(report.variants, _colors(report), strict=True):
            x, y = variant.size_bytes, 100 * variant.accuracy
            axes.scatter(x, y, s=110, color=color, zorder=3, label=f"{variant.name}: {y:.2f} %, {bytes_text(x)}")
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
        axes.margins(y=0.25)
        axes.xaxis.set_major_formatter(lambda value, _: bytes_text(round(value)))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("size of the file")
        axes.set_ylabel("test accuracy, %")
        figure.legend(loc="outside upper left", ncols=2, fontsize=9, handletextpad=0.2, columnspacing=1.2)

    return _svg(draw, "accuracy", height=3.9)


def latency_svg(report: Report) -> str:
    """One bar for each variant: median latency."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = [variant.name for variant in report.variants]
        values = [variant.latency_ms for variant in report.variants]
        bars = axes.barh(names, values, color=_colors(report), height=0.5)
        axes.bar_label(bars, labels=[f"{value:.4f} ms" for value in values], padding=5, fontsize=10)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(values))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("one inference, ms (median)")

    return _svg(draw, "latency", height=3.9)


def _colors(report: Report) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(report.variants))]


def _svg(draw: Callable[[Any], None], name: str, height: float, width: float = 6) -> str:
    """Draws on a figure of its own, `width` by `height` inches; the user's matplotlib settings stay as they are."""
    matplotlib = require("matplotlib", extra="report")
    figure_type = require("matplotlib.figure", extra="report").Figure
    buffer = io.StringIO()
    # The salt keeps ids of several plots on one page apart, and a plot the same in every run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = figure_type(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the viewBox stays: the page decides how wide
    return f"{head}>{body}".replace(_INK, "currentColor")
