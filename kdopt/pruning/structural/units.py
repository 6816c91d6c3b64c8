"""The channels of a model as units that can go, and what they are worth."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import find_kernels, select
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.graph.channels.groups import ChannelGraph
from kdopt.graph.channels.labels import Slot


@dataclass(frozen=True)
class Unit:
    """Channels that go together.

    Attributes:
        root: Integer, their identity.
        group: Integer, number of the kind it belongs to: units in the same places of the same Variables.
        score: Float >= 0, what is lost with it.
    """

    root: int
    group: int
    score: float


def units_of(
    model: keras.Model,
    graph: ChannelGraph,
    criterion: str | Criterion,
    *,
    layers: Any = None,
    normalize: bool | None = None,
    data: Any = None,
) -> list[Unit]:
    """All channels that may go, scored.

        score(u) = mean over the kernels' slices that make u of criterion(slice),  divided by the mean of its group

    Kernels that the criterion has no score for (`bn_scale` without a BatchNormalization) are left out of the mean;
    where it has none for all of them the channel is frozen in `graph`, with the reason.

    Args:
        model: The model that was traced.
        graph: What was found.
        criterion: Name in `CRITERIA`, a `Criterion`, or `"mask"`: 0 for a channel whose kernels, bias, gamma and beta
            are zero, infinite for all others.
        layers: Which layers' channels may go; as in `GradualPruning`. `None`: all.
        normalize: Whether to divide by the group's mean, so that groups can be compared. `None`: for criteria of the
            weights alone.
        data: For a criterion that needs it.

    Raises: ValueError if no channel may go.
    """
    frozen = graph.labels.frozen()
    by_root = _slots_by_root(graph)
    found, skipped = find_kernels(model)
    views = select(found, layers, skipped)
    chosen = {id(view.variable) for view in views}
    scores = {} if criterion == "mask" else _channel_scores(model, views, criterion, data)
    unscored = {} if criterion == "mask" else _unscored(views, CRITERIA.get(criterion))
    groups: dict[tuple[int, ...], int] = {}
    units: list[Unit] = []
    for root, held in by_root.items():
        makers = [(slot, places) for slot, places in held if slot.role == "makes"]
        if root in frozen or not makers or not all(id(slot.variable) in chosen for slot, _ in makers):
            continue
        scored = [(slot, places) for slot, places in makers if id(slot.variable) not in unscored]
        if not scored:
            graph.labels.freeze(np.array([root]), unscored[id(makers[0][0].variable)])
            continue
        group = groups.setdefault(tuple(id(slot) for slot, _ in held), len(groups))
        if criterion == "mask":
            score = 0.0 if all(_is_zero(slot, places) for slot, places in held if _counts(slot)) else np.inf
        else:
            score = float(np.mean([scores[id(s.variable)][s.axis][places].sum() for s, places in scored]))
        units.append(Unit(root, group, score))
    if not units:
        reasons = sorted(set(graph.labels.frozen().values()))[:3]
        raise ValueError(
            f"No channel of {model.name!r} may go"
            f"{': ' + '; '.join(reasons) if reasons else ', or `layers` chose none that may'}."
        )
    alone = criterion != "mask" and CRITERIA.get(criterion).needs == "weights"
    return _normalized(units) if (alone if normalize is None else normalize) else units


def _slots_by_root(graph: ChannelGraph) -> dict[int, list[tuple[Slot, np.ndarray]]]:
    found: dict[int, list[tuple[Slot, np.ndarray]]] = defaultdict(list)
    for slot in graph.labels.slots():
        roots = graph.labels.roots(slot.labels)
        order = np.argsort(roots, kind="stable")
        unique, starts = np.unique(roots[order], return_index=True)
        for root, places in zip(unique.tolist(), np.split(order, starts[1:]), strict=True):
            found[root].append((slot, places))
    return found


def _channel_scores(
    model: keras.Model, views: Sequence[Any], criterion: str | Criterion, data: Any
) -> dict[int, dict[int, np.ndarray]]:
    """id(kernel) -> axis -> score of each place, the sum over the others."""
    scorer = CRITERIA.get(criterion)
    views = [view for view in views if scorer.reason(view) is None]
    scores = scorer.scores(model, views, data)
    found: dict[int, dict[int, np.ndarray]] = {}
    for view, score in zip(views, scores, strict=True):
        if not np.isfinite(score).all():
            raise ValueError(
                f"The scores of {view.name!r} are NaN or infinite: so are weights, or training has diverged."
            )
        sums = {axis: score.sum(axis=tuple(a for a in range(score.ndim) if a != axis)) for axis in range(score.ndim)}
        found[id(view.variable)] = sums
    return found


def _unscored(views: Sequence[Any], scorer: Criterion) -> dict[int, str]:
    """id(kernel) -> why the criterion has no score for it."""
    found = {id(view.variable): (view.name, scorer.reason(view)) for view in views}
    name = type(scorer).__name__
    return {key: f"{name} has no score for {layer!r}: {why}" for key, (layer, why) in found.items() if why is not None}


def _counts(slot: Slot) -> bool:
    """Whether a Variable must be zero for its channel to be: what makes it, and what is added after."""
    return slot.role == "makes" or (slot.role == "follows" and slot.variable.name in ("bias", "beta", "gamma"))


def _is_zero(slot: Slot, places: np.ndarray) -> bool:
    return not np.take(keras.ops.convert_to_numpy(slot.variable), places, axis=slot.axis).any()


def _normalized(units: list[Unit]) -> list[Unit]:
    totals: dict[int, list[float]] = defaultdict(list)
    for unit in units:
        totals[unit.group].append(unit.score)
    means = {group: float(np.mean(scores)) or 1.0 for group, scores in totals.items()}
    return [Unit(unit.root, unit.group, unit.score / means[unit.group]) for unit in units]
