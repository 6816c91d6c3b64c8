"""A plan as a picture."""

from typing import Any

from kdopt.core.optional import require
from kdopt.pruning.structural.record import ChannelPlan

_KEPT, _GONE, _FROZEN = "#2b6cb0", "#d5dde8", "#8a94a3"


def plot_channels(plan: ChannelPlan) -> Any:
    """Draws the kept and the removed width of each layer; layers that must stay are gray.

    Args:
        plan: Of `plan_channels`.

    Returns: `matplotlib.figure.Figure`: `figure.savefig("plan.png")` writes it.
    Raises: ImportError without matplotlib.
    """
    if not isinstance(plan, ChannelPlan):
        raise TypeError(f"`plan` must be a ChannelPlan; got {type(plan).__name__}.")
    names = [layer.layer for layer in plan.layers]
    size = (3.5 + 0.075 * max(map(len, names)) + 3, 1.2 + 0.24 * len(names))
    figure = require("matplotlib.figure", extra="report").Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    rows = range(len(names))
    axes.barh(rows, [layer.before for layer in plan.layers], color=_GONE, label="removed")
    kept = [layer.after for layer in plan.layers]
    colors = [_FROZEN if layer.frozen and layer.after == layer.before else _KEPT for layer in plan.layers]
    axes.barh(rows, kept, color=colors, label="kept")
    for row, layer in enumerate(plan.layers):
        told = f" {layer.after}" if layer.after == layer.before else f" {layer.after} of {layer.before}"
        axes.text(layer.before, row, told, va="center", fontsize=7, color="#4a5568")
    axes.set_yticks(rows, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.set_xlabel("channels")
    before, after = plan.parameters
    title = f"{before:,} -> {after:,} parameters"
    if plan.macs is not None:
        title += f", {plan.macs[0] / max(plan.macs[1], 1):.2f}x fewer MACs"
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [_patch(color, name) for color, name in ((_KEPT, "kept"), (_GONE, "removed"), (_FROZEN, "must stay"))]
    axes.legend(handles=handles, frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return figure


def _patch(color: str, label: str) -> Any:
    """An entry of a legend."""
    return require("matplotlib.patches", extra="report").Patch(color=color, label=label)
