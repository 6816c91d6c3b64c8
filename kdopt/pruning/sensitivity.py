"""How much accuracy each kernel costs when it alone is pruned."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.copying import copy_model
from kdopt.core.optional import require
from kdopt.core.validation import check_fraction, check_positive
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.allocation import PerLayer
from kdopt.pruning.masking import Layers
from kdopt.pruning.metrics import Measure, digest, measured, metric_of, name_of, robustness_of
from kdopt.pruning.patterns import Pattern
from kdopt.pruning.rounds import Journal
from kdopt.pruning.selection import Selection


@dataclass(frozen=True)
class Measurement:
    """The model with one kernel pruned.

    Attributes:
        layer: Name of the kernel, as `GradualPruning` logs it.
        sparsity: Float in [0, 1) that was asked for.
        reached: Float in [0, 1], fraction of zeros in the kernel.
        value: Float, the metric.
        robustness: Float, the mean under corruptions; `None` if it was not asked for.
    """

    layer: str
    sparsity: float
    reached: float
    value: float
    robustness: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured; `print` shows a table, `figure()` draws it.

    Attributes:
        metric: Name of the metric.
        baseline: Float, the metric of the model as it was.
        rows: One `Measurement` a kernel and sparsity, in the model's order.
        robustness: Float, the mean under corruptions of the model as it was; `None` if it was not asked for.
    """

    metric: str
    baseline: float
    rows: tuple[Measurement, ...]
    robustness: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(dict.fromkeys(row.layer for row in self.rows))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Those that were asked for, ascending."""
        return tuple(sorted({row.sparsity for row in self.rows}))

    def row(self, layer: str, sparsity: float) -> Measurement:
        """One measurement.

        Raises: KeyError with what was measured.
        """
        for row in self.rows:
            if row.layer == layer and row.sparsity == sparsity:
                return row
        raise KeyError(
            f"({layer!r}, {sparsity}) was not measured. Kernels: {', '.join(self.layers)}; sparsities: "
            f"{', '.join(f'{s:g}' for s in self.sparsities)}."
        )

    def drop(self, layer: str, sparsity: float) -> float:
        """Baseline minus the metric with this kernel pruned; below 0 where pruning helped."""
        return self.baseline - self.row(layer, sparsity).value

    def __str__(self) -> str:
        lines = [f"{self.metric} with one kernel pruned; {self.baseline:.4f} as it was", *self._table("value")]
        if self.robustness is not None:
            lines += [f"mean under corruptions; {self.robustness:.4f} as it was", *self._table("robustness")]
        return "\n".join(lines)

    def _table(self, what: str) -> list[str]:
        width = max(len(name) for name in ("kernel", *self.layers))
        head = "".join(f"{f'{100 * s:g} %':>9}" for s in self.sparsities)
        cells = {
            name: "".join(f"{getattr(self.row(name, s), what):>9.4f}" for s in self.sparsities) for name in self.layers
        }
        return [f"{'kernel':{width}}{head}", *(f"{name:{width}}{cells[name]}" for name in self.layers)]

    def figure(self) -> Any:
        """Draws the drop of the metric as a map, kernels down, sparsities across; darker costs more.

        Returns: `matplotlib.figure.Figure`: `figure.savefig("sensitivity.png")` writes it.
        Raises: ImportError without matplotlib.
        """
        drops = np.array([[self.drop(name, s) for s in self.sparsities] for name in self.layers])
        size = (2.6 + 0.08 * max(map(len, self.layers)) + 0.75 * drops.shape[1], 1.3 + 0.3 * len(drops))
        figure = require("matplotlib.figure", extra="report").Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        top = max(float(drops.max()), 1e-9)
        image = axes.imshow(np.maximum(drops, 0), cmap="Oranges", vmin=0, vmax=top, aspect="auto")
        axes.set_xticks(range(drops.shape[1]), [f"{100 * s:g} %" for s in self.sparsities])
        axes.set_yticks(range(len(drops)), self.layers)
        axes.set_xlabel("sparsity of this kernel alone")
        axes.set_title(f"drop of {self.metric} from {self.baseline:.4g}", fontsize=11, loc="left")
        axes.spines[:].set_visible(False)
        for (row, column), drop in np.ndenumerate(drops):
            color = "white" if drop > 0.6 * top else "black"
            axes.text(column, row, f"{drop:.3f}", ha="center", va="center", fontsize=8, color=color)
        figure.colorbar(image, ax=axes, label="drop")
        return figure


def sensitivity(
    model: keras.Model,
    data: Any = None,
    metric: str | Measure = "accuracy",
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    criterion: str | Criterion = "l1",
    pattern: str | Pattern = "unstructured",
    layers: Layers = None,
    *,
    criterion_data: Any = None,
    robustness_metric: bool | Measure | None = None,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> Sensitivity:
    """Measures the model with each kernel pruned alone, without training.

        value(k, s) = metric(model with the 1 - s share of kernel k that scores highest, all other kernels whole)

    Kernels that the pattern couples (the projections of an attention layer under `Head`) are pruned together. Works on
    one copy of the model; costs `len(kernels) * len(sparsities) + 1` evaluations: measure on validation data, a
    thousand samples are often enough.

    Args:
        model: Built Keras 3 model; left as it is. Compiled, where `metric` is a name.
        data: What `model.evaluate` takes as one argument, or `(x, y)`, `(x, y, sample_weight)`. Needed where `metric`
            is a name, and only there.
        metric: Name of a compiled metric, or a function `model -> float`; higher is better. Defaults to `"accuracy"`.
        sparsities: Floats in (0, 1). Defaults to `(0.5, 0.7, 0.8, 0.9, 0.95)`.
        criterion: Name in `kdopt.criteria.CRITERIA`, or a `Criterion`. Defaults to `"l1"`.
        pattern: Name in `kdopt.pruning.PATTERNS`, or a `Pattern`. Defaults to `"unstructured"`.
        layers: As in `GradualPruning`.
        criterion_data: For a criterion that needs gradients or samples, what its `scores` takes.
        robustness_metric: Measured beside the metric: a function from the model to a `Robustness` (its mean is kept) or
            a float; or `True`: `robustness` of the metric on the images of `data=(x, y)`, at ten times the
            evaluations. Defaults to `None`.
        progress: Whether to show a progress bar. Defaults to `True`.
        resume: JSON file, written whole after every measurement. An earlier call's, of the same weights and
            arguments, is continued; other `sparsities` are added. Defaults to `None`.

    Returns: `Sensitivity`.
    Raises: ValueError, TypeError for arguments that cannot be used, and for a file that was made with others or in
        which the metric of the whole model is another one than now.

    Example:
    ```
    found = sensitivity(model, (x_val, y_val), resume="sensitivity.json")
    sparse, report = prune(model, allocation=from_sensitivity(found, max_drop=0.01))
    ```

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2; Han et al., "Learning both
        Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 5.
    """
    levels = _check_sparsities(sparsities)
    scorer = CRITERIA.get(criterion)
    if scorer.needs != "weights" and criterion_data is None:
        raise ValueError(f"The criterion {name_of(scorer)} needs samples: pass `criterion_data=`, e.g. (x, y).")
    measure = metric_of(metric, data)
    extra = robustness_of(robustness_metric, metric, data)
    own = Selection(model, layers, pattern, "uniform")
    own.check_sparsity(levels[-1])
    settings = {
        "weights": digest(model.get_weights()),
        "kernels": [[view.index, list(view.variable.shape)] for view in own.kernels],
        "criterion": [type(scorer).__name__, scorer.get_config()],
        "pattern": [type(own.pattern).__name__, own.pattern.get_config()],
        "metric": name_of(metric),
        "data": digest(data),
        "criterion_data": digest(criterion_data),
        "robustness": None if extra is None else name_of(robustness_metric),
    }
    journal = Journal(resume, settings)
    trial = _Trial(model, own, scorer.scores(model, own.kernels, criterion_data), measure, extra)
    baseline = _baseline(journal, trial)
    rows = _all_rows(trial, levels, journal, progress)
    return Sensitivity(name_of(metric), baseline["value"], rows, baseline["robustness"])


def from_sensitivity(result: Sensitivity, max_drop: float = 0.01, *, interpolate: bool = False) -> PerLayer:
    """The sparsity of each kernel that costs little: an allocation for `prune` and `GradualPruning`.

        sparsity(k) = highest measured s with baseline - value(k, s) <= max_drop,   0 where there is none

    With `interpolate`, on to where the straight line to the next measured sparsity reaches `max_drop`. That is on the
    safe side as long as the drop grows ever faster, which it mostly does up to where the metric is lost; measure more
    sparsities where that matters. Kernels pruned together cost more than each alone: train afterwards.

    Args:
        result: Of `sensitivity`.
        max_drop: Float >= 0, in the metric's unit. Defaults to `0.01`.
        interpolate: Whether to go between what was measured. Defaults to `False`.

    Returns: `PerLayer` with every kernel of `result`.
    Raises: ValueError if not even the lowest sparsity of any kernel is within `max_drop`.

    Example:
    ```
    from_sensitivity(found, max_drop=0.02).sparsities      # {"conv1": 0.5, "conv2": 0.9, "dense": 0.95}
    ```
    """
    check_positive("max_drop", max_drop, zero=True)
    if not isinstance(result, Sensitivity):
        raise TypeError(f"`result` must be what `sensitivity` returns; got {result!r}.")
    levels = np.array([0.0, *result.sparsities])
    chosen = {}
    for name in result.layers:
        drops = np.array([0.0, *(result.drop(name, s) for s in result.sparsities)])
        chosen[name] = highest_within(levels, drops, max_drop, interpolate=interpolate)
    if not any(chosen.values()):
        least = min(result.drop(row.layer, row.sparsity) for row in result.rows)
        raise ValueError(
            f"No kernel can be pruned with a drop of {max_drop:g} at most; the least that was measured is {least:g}. "
            f"Use a larger `max_drop`, or measure sparsities below {result.sparsities[0]:g}."
        )
    return PerLayer(chosen)


def highest_within(levels: np.ndarray, drops: np.ndarray, max_drop: float, *, interpolate: bool = False) -> float:
    """The highest level with a drop of `max_drop` at most, or where the line to the next level reaches it.

    Args:
        levels: Float array (n,), ascending.
        drops: Float array (n,); the first is 0.
        max_drop: Float >= 0.
        interpolate: Whether to follow the line. Defaults to `False`.
    """
    # A drop is a difference of two float32 means: what is equal but for rounding is within.
    last = int(np.flatnonzero(drops <= max_drop + 1e-6)[-1])
    if not interpolate or last == len(levels) - 1:
        return float(levels[last])
    share = max(0.0, max_drop - drops[last]) / (drops[last + 1] - drops[last])
    return float(levels[last] + share * (levels[last + 1] - levels[last]))


class _Trial:
    """A copy of the model in which one kernel after the other is pruned, and the others are whole again."""

    def __init__(
        self, model: keras.Model, own: Selection, scores: list[np.ndarray], measure: Measure, extra: Measure | None
    ) -> None:
        self.own, self._scores, self._measure, self._extra = own, scores, measure, extra
        self.copy = copy_model(model)
        self._weights = model.get_weights()
        places = {id(variable): i for i, variable in enumerate(model.weights)}
        self._places = [places[id(variable)] for variable in own.variables]

    def pruned(self, index: int, sparsity: float) -> dict[str, Any]:
        """The metrics with the kernel of this index, and those coupled to it, pruned."""
        view = self.own.kernels[index]
        self.own.allocation = PerLayer({view.name: sparsity})
        masks = self.own.masks(self._scores, sparsity)
        weights = list(self._weights)
        for place, mask in zip(self._places, masks, strict=True):
            weights[place] = np.where(mask, weights[place], np.zeros_like(weights[place]))
        self.copy.set_weights(weights)  # all of them, every time: a metric may train the model it gets
        zeros = np.count_nonzero(weights[self._places[index]] == 0)
        return {"reached": zeros / masks[index].size, **self.values(f"{view.name!r} at {sparsity:g}")}

    def value(self, what: str) -> float:
        """The metric of the copy as it is."""
        return measured(self._measure, self.copy, what)

    def values(self, what: str) -> dict[str, Any]:
        """The metric, and the robustness if it is wanted."""
        extra = None if self._extra is None else measured(self._extra, self.copy, what)
        return {"value": self.value(what), "robustness": extra}


def _baseline(journal: Journal, trial: _Trial) -> dict[str, Any]:
    """The metrics of the whole model; a continued file must have the same, or its other numbers are of other data."""
    continued = "baseline" in journal.entries
    baseline = journal.keep("baseline", lambda: trial.values("the whole model"))
    now = trial.value("the whole model") if continued else baseline["value"]
    if not math.isclose(now, baseline["value"], rel_tol=1e-4, abs_tol=1e-6):
        raise ValueError(
            f"The metric of the whole model is {now:g}, but {baseline['value']:g} in {journal.path}: the data or the "
            "metric are others. Delete the file to start anew, or give another name; a metric that draws at random "
            "needs a seed."
        )
    return baseline


def _all_rows(trial: _Trial, levels: list[float], journal: Journal, progress: bool) -> tuple[Measurement, ...]:
    kernels = trial.own.kernels
    bar = keras.utils.Progbar(len(kernels) * len(levels), verbose=int(progress), unit_name="measurement")
    rows = []
    for index, view in enumerate(kernels):
        for sparsity in levels:
            found = journal.keep(f"{view.index} {sparsity!r}", functools.partial(trial.pruned, index, sparsity))
            rows.append(Measurement(view.name, sparsity, **found))
            bar.add(1)
    return tuple(rows)


def _check_sparsities(sparsities: Sequence[float]) -> list[float]:
    levels = [check_fraction("sparsities", s) for s in sparsities]
    if not levels or len(set(levels)) < len(levels) or min(levels) == 0:
        raise ValueError(f"`sparsities` must be different fractions in (0, 1); got {sparsities!r}.")
    return sorted(levels)
