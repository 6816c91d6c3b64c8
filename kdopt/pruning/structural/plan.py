"""Which channels go, so that a target is met with the least loss."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kdopt.core.validation import check_integer, check_one_of
from kdopt.criteria.base import Criterion
from kdopt.graph.channels.constants import Constants
from kdopt.graph.channels.dead import dead_channels
from kdopt.graph.channels.groups import ChannelGraph, trace_channels
from kdopt.graph.channels.labels import Slot
from kdopt.graph.rebuild import without
from kdopt.pruning.structural.costs import Costs
from kdopt.pruning.structural.ranking import Ranking, least_of
from kdopt.pruning.structural.record import ChannelPlan, LayerWidth, ReachedError
from kdopt.pruning.structural.units import units_of
from kdopt.pruning.structural.widths import checked_round_to

TARGETS = ("channels", "parameters", "macs", "size_bytes", "latency")


_GATED = (keras.layers.LSTM, keras.layers.GRU)  # each of their gates has all units


def plan_channels(
    model: keras.Model,
    *,
    channels: float | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    size_bytes: float | None = None,
    latency: float | None = None,
    latency_of: Callable[[keras.Model], float] | None = None,
    criterion: str | Criterion = "l1",
    scope: str = "global",
    minimum: int = 1,
    round_to: int | str = 1,
    layers: Any = None,
    exclude: Sequence[Any] | None = None,
    normalize: bool | None = None,
    data: Any = None,
    allow_normalized_axes: bool = False,
    input_shape: Any = None,
) -> ChannelPlan:
    """Chooses channels to remove until a model costs no more than a target.

    Channels that the graph couples (through residuals, gates, depthwise layers, heads) go together; each of these units
    has one score, and the lowest go first:

        score(u) = mean over the kernels that make u of criterion(its slice), over the mean of its group

    Dead channels, which are constant where they are read (a zero kernel before a BatchNormalization, a gamma of zero),
    go before all others, and layers that read them take the constant over in their biases: nothing is lost with them.

    Give one target: what may be left, as a fraction of the model's own in (0, 1), or as a number of 1 or more.

    Args:
        model: Built Functional, Sequential or traceable subclassed `keras.Model`; left as it is.
        channels: Of those that may go.
        parameters: Weights.
        macs: Multiply-accumulates of one sample.
        size_bytes: Bytes of the weights.
        latency: As `latency_of` measures it. Costs a model and a measurement for each of about ten steps.
        latency_of: Function model -> float, e.g. milliseconds.
        criterion: Name in `kdopt.criteria.CRITERIA`, a `Criterion`, or `"mask"`: exactly the dead channels, such as
            those that training made zero (kernel, bias, gamma and beta), without a target.
        scope: `"global"` (default): the lowest scores of the whole model go; `"layer"`: every group of coupled channels
            loses the same share; `"isomorphic"`: groups that are held by the same kinds of layers are ranked together,
            by their scores as they are, and every such kind loses the same share.
        minimum: Integer >= 0, channels that stay of each group. With `0` those of a residual branch may all go: its
            layers go, too, and the model becomes less deep; and so do those of a branch that adds nothing but a
            constant as it is, e.g. with a last gamma of zero. A channel is gone from a branch if its kernel, bias,
            gamma and beta are zero, or if what reads it can take over the constant that is left. That is for branches
            that training has emptied: by scores divided by their group's mean no group goes as a whole. Defaults to
            `1`.
        round_to: Integer >= 1: what stays of a group is a multiple of it, or all; so a step less than the target may be
            left. Or a target, `"arm"` (8) or `"avx512"` (32), which computes that many channels at a time;
            `measure_round_to` finds it for a device.
        layers: Whose channels may go, as in `GradualPruning`. Defaults to `None`: all that are trained; what a layer
            with `trainable=False` makes stays, while it may read fewer, and a frozen BatchNormalization follows what it
            normalizes.
        exclude: List of layers, names, classes, regular expressions: whose channels stay.
        normalize: Whether scores are divided by their group's mean; without it some layers may keep single channels.
            Defaults to `None`: yes, but with `scope="isomorphic"`.
        data: For a criterion that needs gradients or samples.
        allow_normalized_axes: Whether channels may go that a LayerNormalization, or a mean or softmax over channels,
            takes together; the smaller model then is another function, not the old one without them.
        input_shape: For `macs` of a model with an open input shape.

    Returns: `ChannelPlan`; `print(plan.summary())` shows it.
    Raises: `ReachedError` (a ValueError) for a target that cannot be met; ValueError, TypeError for other arguments
        that cannot be used, a model that cannot be traced, NaN weights, and if no channel may go.

    Example:
    ```
    plan = plan_channels(model, macs=0.5)
    print(plan.summary())
    small = apply_plan(model, plan)
    ```

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; for coupled channels: Fang et al.,
        "DepGraph: Towards Any Structural Pruning", CVPR 2023; for `"isomorphic"`: Fang et al., "Isomorphic Pruning for
        Vision Models", ECCV 2024.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a built keras.Model; got {type(model).__name__}.")
    check_one_of("scope", scope, ("global", "layer", "isomorphic"))
    check_integer("minimum", minimum, minimum=0)
    multiple = checked_round_to(round_to)
    given = dict(zip(TARGETS, (channels, parameters, macs, size_bytes, latency), strict=True))
    target = _checked_target(given, criterion, latency_of, data)
    for name, flag in (("normalize", normalize), ("allow_normalized_axes", allow_normalized_axes)):
        if not (flag is None and name == "normalize") and not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"`{name}` must be True or False; got {flag!r}.")
    _refuse_wrapped(model)
    _refuse_nan(model)
    graph = trace_channels(model, allow_normalized_axes=allow_normalized_axes)
    dead = dead_channels(model, graph)
    normalize = scope != "isomorphic" if normalize is None else normalize
    units = units_of(
        model, graph, criterion, layers=layers, exclude=exclude, normalize=normalize, data=data, dead=dead.roots
    )

    memo: dict[tuple[int, int], np.ndarray] = {}

    def left(removed: np.ndarray) -> Constants:
        return Constants(graph, removed, dead.folds(removed), not minimum, memo)

    def build(removed: np.ndarray | None) -> keras.Model:
        return model if removed is None else without(model, graph, removed, dead.folds(removed), not minimum)

    ranking = Ranking(units, scope, least_of(units, minimum, left), multiple)
    costs = Costs(model, graph, left, input_shape, branches=not minimum)

    cost = None if target is None else _cost_of(target[0], costs, ranking, build, latency_of)

    def choose() -> np.ndarray:
        if target is None or cost is None:
            return ranking.dead()
        found, limit = _search(ranking, cost, *target, graph)
        # Not for a latency, of which each question is a measurement.
        return found if multiple == 1 or latency is not None else ranking.give_back(found, lambda g: cost(g) <= limit)

    removed = choose()
    while (found := left(removed)).refused:  # branches that could go, but not beside all others
        ranking.hold(found.emptied)
        removed = choose()
    if target is None:
        _freeze_zeros(graph, left(removed), removed)
    graph.labels.freeze(ranking.whole(), "`round_to` or `minimum` keeps all")
    made = _plan(model, graph, removed, costs, allow_normalized_axes)
    dead_ones = int(np.isin(dead.roots, removed).sum())
    if target is None or cost is None:
        return replace(made, dead=dead_ones, branches=not minimum)
    met = (target[0], cost(None), cost(removed))
    asked = target[1] * met[1] if target[1] < 1 else target[1]
    return replace(made, dead=dead_ones, branches=not minimum, target=met, asked=asked)


def _checked_target(
    given: dict[str, float | None], criterion: Any, latency_of: Any, data: Any
) -> tuple[str, float] | None:
    named = {name: value for name, value in given.items() if value is not None}
    if criterion == "mask":
        if data is not None:
            raise ValueError("criterion='mask' looks at the weights alone: leave `data` out.")
        if named:
            raise ValueError(
                f"criterion='mask' takes the channels that are zero already, so a target has no meaning; got {named}."
            )
        return None
    if len(named) != 1:
        raise ValueError(f"Give one target of {', '.join(TARGETS)}, e.g. macs=0.5; got {named or 'none'}.")
    name, value = next(iter(named.items()))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be a fraction in (0, 1), or a number of 1 or more; got {value!r}.")
    if latency_of is not None and not callable(latency_of):
        raise TypeError(f"`latency_of` must be a function model -> number; got {latency_of!r}.")
    if (name == "latency") != (latency_of is not None):
        raise ValueError("`latency` and `latency_of` (a function model -> milliseconds) go together.")
    return name, float(value)


def _cost_of(
    name: str,
    costs: Costs,
    ranking: Ranking,
    build: Callable[[np.ndarray | None], keras.Model],
    latency_of: Callable[[keras.Model], float] | None,
) -> Callable[[np.ndarray | None], float]:
    if name == "channels":
        return lambda removed: len(ranking) - (0 if removed is None else len(removed))
    if name == "latency":
        assert latency_of is not None
        known: dict[bytes | None, float] = {}

        def measured(removed: np.ndarray | None) -> float:
            key = None if removed is None else removed.tobytes()
            if key not in known:
                known[key] = _checked_latency(latency_of(build(removed)))
            return known[key]

        return measured
    return getattr(costs, name)


def _checked_latency(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise TypeError(
            f"`latency_of` must return a number, e.g. `benchmark(...).median_ms` and not the record; got {value!r}."
        )
    return float(value)


def _search(
    ranking: Ranking, cost: Callable[[np.ndarray | None], float], name: str, target: float, graph: ChannelGraph
) -> tuple[np.ndarray, float]:
    """(the fewest channels whose absence meets the target, what may be left), by halving."""
    whole, nothing = cost(None), np.empty(0, int)
    unit = ",.6g" if name == "latency" else ",.0f"
    limit = target * whole if target < 1 else target
    low, high = 0, len(ranking)
    if whole <= limit or cost(nothing) <= limit:
        return nothing, limit
    least = cost(ranking.removed(high))
    if least > limit:
        frozen = sorted(set(graph.labels.frozen().values()))
        raise ReachedError(
            f"{name}={target:g} ({limit:{unit}} of {whole:{unit}}) cannot be reached: with all channels gone that may "
            f"go, {least:{unit}} are left ({least / whole:.3f}). "
            f"{'A fraction is below 1. ' if 1 <= target <= 100 else ''}{ranking.held()}What stays: "
            f"{'; '.join(frozen[:4])}. Use a larger target, a smaller `minimum` or `round_to`, or fewer exclusions."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(ranking.removed(middle)) <= limit else (middle, high)
    return ranking.removed(high), limit


def _plan(model: keras.Model, graph: ChannelGraph, removed: np.ndarray, costs: Costs, normalized: bool) -> ChannelPlan:
    places = {id(weight): i for i, weight in enumerate(model.weights)}
    frozen = graph.labels.frozen()
    try:
        macs, by_layer = (costs.macs(None), costs.macs(removed)), costs.macs_by_layer(removed)
    except ValueError:  # a layer whose multiply-accumulates nobody knows, or an open input shape
        macs, by_layer = None, {}
    entries, layers, dropped = [], [], costs.dropped(removed)
    own: dict[str, list[Slot]] = defaultdict(list)
    for slot in graph.labels.slots():
        if slot.role == "makes":
            own[graph.paths.get(id(slot.layer), slot.layer.name)].append(slot)
    for name, slot in [(name, slot) for name, slots in own.items() for slot in slots]:
        roots = graph.labels.roots(slot.labels)
        gone = np.flatnonzero(np.isin(roots, removed))
        if gone.size:
            entries.append((places[id(slot.variable)], slot.axis, tuple(gone.tolist())))
        reason = next((frozen[root] for root in roots.tolist() if root in frozen), "")
        width = slot.layer.units if isinstance(slot.layer, _GATED) else roots.size
        left = 0 if id(slot.variable) in dropped else width - gone.size * width // roots.size
        layers.append(LayerWidth(_row(name, slot, own[name]), width, left, reason, by_layer.pop(name, None)))
    shapes = tuple(tuple(weight.shape) for weight in model.weights)
    counts = (costs.parameters(None), costs.parameters(removed))
    return ChannelPlan(tuple(entries), shapes, tuple(layers), counts, macs, normalized)


def _freeze_zeros(graph: ChannelGraph, constants: Constants, removed: np.ndarray) -> None:
    """Says of channels why they stay although their kernel is zero."""
    for slot in graph.labels.slots():
        zero = constants.zero(slot.variable, slot.labels) if slot.role == "makes" else None
        if zero is not None:
            roots = graph.labels.roots(slot.labels[zero])
            reason = "its kernel is zero, but it is no constant where it is read, or the reader cannot take that over"
            graph.labels.freeze(roots[~np.isin(roots, removed)], f"{reason} (padding, no bias)")


def _row(path: str, slot: Slot, own: Sequence[Slot]) -> str:
    """The path of a layer, and which of its kernels and axes, if it makes channels of several kinds."""
    if len(own) < 2:
        return path
    last = path.split("/")[-1]
    inner = (slot.layer.name, *slot.variable.path.split("/")[-2:])
    kernel = next(name for name in inner if name != last)
    several = sum(one.variable is slot.variable for one in own) > 1
    return f"{path}: {kernel}" + (f" axis {slot.axis}" if several else "")


def _refuse_nan(model: keras.Model) -> None:
    for weight in model.weights:
        if "float" in str(weight.dtype) and keras.ops.any(keras.ops.isnan(weight)):
            raise ValueError(f"Weights of {weight.path!r} are NaN: training has diverged. Use an earlier state.")


def _refuse_wrapped(model: keras.Model) -> None:
    if callable(getattr(model, "strip", None)) and hasattr(model, "__tflite_source__"):
        raise TypeError(
            f"{model.name!r} trains with rounding: shrink first and quantize then, or shrink `model.strip()`, which "
            "has the trained weights, and quantize that."
        )
    wrapped = [layer.name for layer in model._flatten_layers() if hasattr(layer, "to_plain")]
    if wrapped:
        raise ValueError(
            f"{model.name!r} has layers with a wrapper for training ({', '.join(map(repr, wrapped[:3]))}): take them "
            "off first, with `kdopt.pruning.strip` or `kdopt.regularizers.strip_regularizers`."
        )
