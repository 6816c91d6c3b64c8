"""A picture of schedules."""

from collections.abc import Sequence
from typing import Any

from kdopt.core.optional import require
from kdopt.core.validation import check_integer
from kdopt.schedules.base import Schedule

MAX_UPDATES = 100_000
_COLORS = ("#3b82c4", "#e07a3f", "#2a9d8f", "#a267c9", "#c94f6d", "#8a8f98")
_LINES = ("-", "--", "-.", ":")


def mask_sparsity(schedule: Schedule, steps: int | None = None) -> tuple[list[int], list[float]]:
    """The staircase that the masks follow: they hold the sparsity of the last update until the next one.

    Args:
        schedule: With all times in optimizer updates.
        steps: Integer >= 1, updates up to which to look. Defaults to `None`: up to the last one.

    Returns: steps (from 0 on, strictly increasing) and the sparsity from each of them on.
    Raises: ValueError for a schedule that never ends, without `steps`.

    Example:
    ```
    mask_sparsity(OneShot(0.8, begin_step=100))      # [0, 100], [0.0, 0.8]
    ```
    """
    at, sparsities = [0], [0.0]
    step = schedule.next_update(-1)
    while step is not None and (steps is None or step <= steps):
        if len(at) > MAX_UPDATES:
            raise ValueError(f"{schedule!r} has more than {MAX_UPDATES} updates: pass `steps` to see the first ones.")
        if step == 0:
            at, sparsities = [], []
        at.append(step)
        sparsities.append(schedule(step))
        step = schedule.next_update(step)
    return at, sparsities


def plot(
    *schedules: Schedule,
    labels: Sequence[str] | None = None,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> Any:
    """Draws schedules into one figure: the sparsity of the masks over the optimizer updates.

    Args:
        schedules: One or several.
        labels: One for each. Defaults to `None`: the kind, and the sparsity it ends at.
        steps: Integer >= 1, updates to show. Defaults to `None`: a little more than the longest schedule takes.
        steps_per_epoch: Integer >= 1, needed for times in `Epochs`; the axis then counts epochs. Defaults to `None`.

    Returns: `matplotlib.figure.Figure`: `figure.savefig("schedule.png")` writes it, a notebook with
        `%matplotlib inline` shows it.
    Raises: ImportError without matplotlib; TypeError for something that is no schedule; ValueError for wrong labels.

    Example:
    ```
    plot(Polynomial(0.8, end_step=1000), Cyclic(0.8, period=500, cycles=2))
    ```
    """
    names = _names(schedules, labels)
    shown = None if steps is None else check_integer("steps", steps)
    curves = [mask_sparsity(schedule.in_steps(steps_per_epoch), shown) for schedule in schedules]
    end = shown or max(1, round(1.1 * max(at[-1] for at, _ in curves)))
    unit = 1 if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch)
    figure = require("matplotlib.figure", extra="report").Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, (at, sparsities)) in enumerate(zip(names, curves, strict=True)):
        x = [step / unit for step in [*at, end]]
        y = [100 * sparsity for sparsity in [*sparsities, sparsities[-1]]]
        style = {"color": _COLORS[number % len(_COLORS)], "linestyle": _LINES[number // len(_COLORS) % len(_LINES)]}
        axes.plot(x, y, drawstyle="steps-post", label=name, linewidth=1.8, **style)
    _decorate(axes, end / unit, "optimizer updates" if steps_per_epoch is None else "epochs")
    if len(names) > 1:
        figure.legend(loc="outside right center", frameon=False)
    else:
        axes.set_title(names[0], fontsize=11, loc="left")
    return figure


def _decorate(axes: Any, end: float, unit: str) -> None:
    axes.set_xlabel(unit)
    axes.set_ylabel("sparsity of the masks, %")
    axes.set_xlim(0, end)
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)


def _names(schedules: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    wrong = [schedule for schedule in schedules if not isinstance(schedule, Schedule)]
    if wrong or not schedules:
        raise TypeError(f"plot takes schedules, e.g. plot(Constant(0.8)); got {repr(wrong[0]) if wrong else 'none'}.")
    if labels is None:
        return [f"{type(schedule).__name__}, {100 * schedule.final_sparsity:g} %" for schedule in schedules]
    if isinstance(labels, str) or len(labels) != len(schedules):
        raise ValueError(f"`labels` must be a list of {len(schedules)} strings, one for each schedule; got {labels!r}.")
    return list(labels)
