"""The channels of a model as units that can go, and what they are worth."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import find_kernels, select
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.graph.channels.groups import ChannelGraph


@dataclass(frozen=True)
class Unit:
    """Channels that go together.

    Attributes:
        root: Integer, their identity.
        group: Integer, number of the kind it belongs to: units in the same places of the same Variables.
        score: Float >= 0, what is lost with it.
        kind: Integer, the same for groups that are held by the same kinds of layers in the same roles.
    """

    root: int
    group: int
    score: float
    kind: int = 0


def units_of(
    model: keras.Model,
    graph: ChannelGraph,
    criterion: str | Criterion,
    *,
    layers: Any = None,
    exclude: Any = None,
    normalize: bool = True,
    data: Any = None,
    dead: np.ndarray | None = None,
) -> list[Unit]:
    """All channels that may go, scored.

        score(u) = mean over the kernels' slices that make u of criterion(slice),  divided by the mean of its group

    Kernels that the criterion has no score for (`bn_scale` without a BatchNormalization) are left out of the mean;
    where it has none for all of them the channel is frozen in `graph`, with the reason.

    Args:
        model: The model that was traced.
        graph: What was found.
        criterion: Name in `CRITERIA`, a `Criterion`, or `"mask"`: infinite for all but the dead ones.
        layers, exclude: Whose channels may go; as in `plan_channels`. The others are frozen in `graph`.
        normalize: Whether to divide by the group's mean, so that groups can be compared. Defaults to `True`.
        data: For a criterion that needs it.
        dead: Integer array, identities of channels with which nothing is lost, whatever the criterion says of them.

    Raises: ValueError if no channel may go.
    """
    found, skipped = find_kernels(model)
    excluded = [] if exclude is None else select(found, exclude, skipped, "exclude")
    views = [view for view in select(found, layers, skipped) if not any(view is one for one in excluded)]
    _freeze(graph, found, views, excluded)
    if criterion == "mask":
        table = _Table(graph)
        free = table.free({id(view.variable) for view in views})
        loss = np.full(free.sum(), np.inf)
    else:
        table, free, loss = _scored(model, graph, views, criterion, data)
    roots, groups = table.roots[free], table.groups()[free]
    if not roots.size:
        reasons = sorted(set(graph.labels.frozen().values()))[:3]
        raise ValueError(f"No channel of {model.name!r} may go: {'; '.join(reasons) or 'no layer makes any'}.")
    if normalize and criterion != "mask":
        means = np.bincount(groups, loss) / np.maximum(np.bincount(groups), 1)
        loss = loss / np.where(means == 0, 1, means)[groups]
    loss = np.where(np.isin(roots, [] if dead is None else dead), 0.0, loss)
    kinds = table.kinds(groups, np.flatnonzero(free))
    return [Unit(*one) for one in zip(roots.tolist(), groups.tolist(), loss.tolist(), kinds, strict=True)]


def _freeze(graph: ChannelGraph, found: Sequence[Any], chosen: Sequence[Any], excluded: Sequence[Any]) -> None:
    """Freezes what kernels make that were not chosen, and all that follows an excluded one."""
    known, free, held = ({id(view.variable) for view in views} for views in (found, chosen, excluded))
    for slot in graph.labels.slots():
        key, name = id(slot.variable), graph.paths.get(id(slot.layer), slot.layer.name)
        if key in held and slot.role != "reads":
            graph.labels.freeze(slot.labels, f"{name!r} is excluded")
        elif slot.role == "makes" and key not in free:
            reason = "has a kernel without a score: give the layer a method get_prunable_weights()"
            reason = reason if slot.variable.trainable else "has a kernel that is not trained (trainable=False)"
            graph.labels.freeze(slot.labels, f"{name!r} {'is not among `layers`' if key in known else reason}")


class _Table:
    """All identities of a model in a row, with what is counted of each."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.slots = graph.labels.slots()
        rows = [graph.labels.roots(slot.labels) for slot in self.slots]
        self.roots, places = np.unique(np.concatenate([np.empty(0, int), *rows]), return_inverse=True)
        self._places = np.split(places, np.cumsum([row.size for row in rows])[:-1])
        self._frozen = np.isin(self.roots, list(graph.labels.frozen()))

    def sums(self, index: int, values: np.ndarray | None = None) -> np.ndarray:
        """For each identity the sum of what stands at its places of a slot; without values, how many they are."""
        return np.bincount(self._places[index], values, self.roots.size)

    def free(self, chosen: Collection[int]) -> np.ndarray:
        """Whether each identity may go: not frozen, and made by chosen kernels."""
        made = np.zeros(self.roots.size, bool)
        for index, slot in enumerate(self.slots):
            if slot.role == "makes" and id(slot.variable) in chosen:
                made[self._places[index]] = True
        return ~self._frozen & made

    def groups(self) -> np.ndarray:
        """A number for each identity, the same for those that are held by the same slots."""
        found, following = np.zeros(self.roots.size, int), 1
        for places in self._places:
            here = np.unique(places)
            kinds, number = np.unique(found[here], return_inverse=True)
            found[here] = following + number
            following += kinds.size
        return np.unique(found, return_inverse=True)[1]

    def kinds(self, groups: np.ndarray, rows: np.ndarray) -> list[int]:
        """For each of some rows, of known groups, a number for the layers and roles of what holds its group."""
        found: dict[int, int] = {}
        numbers: dict[Any, int] = {}
        for group, row in zip(*(part.tolist() for part in _firsts(groups, rows)), strict=True):
            holding = [s for s, places in zip(self.slots, self._places, strict=True) if (places == row).any()]
            told = tuple(sorted((type(s.layer).__name__, s.role, s.axis - len(s.variable.shape)) for s in holding))
            found[group] = numbers.setdefault(told, len(numbers))
        return [found[group] for group in groups.tolist()]


def _firsts(groups: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each group, its first row)."""
    unique, at = np.unique(groups, return_index=True)
    return unique, rows[at]


def _scored(
    model: keras.Model, graph: ChannelGraph, views: Sequence[Any], criterion: str | Criterion, data: Any
) -> tuple[_Table, np.ndarray, np.ndarray]:
    """(table, which of its channels may go and have a score, their mean scores)."""
    table, scorer = _Table(graph), CRITERIA.get(criterion)
    scores, unscored = _channel_scores(model, views, scorer, data), _unscored(views, scorer)
    free = table.free([id(view.variable) for view in views])
    total, count = np.zeros((2, table.roots.size))
    reasons: list[tuple[np.ndarray, str]] = []
    for index, slot in enumerate(table.slots):
        if slot.role != "makes":
            continue
        if (key := id(slot.variable)) in scores:
            total += table.sums(index, scores[key][slot.axis])
            count += table.sums(index) > 0
        elif key in unscored:
            reasons.append((table.sums(index) > 0, unscored[key]))
    for made, reason in reasons:
        graph.labels.freeze(table.roots[free & made & (count == 0)], reason)
    free &= count > 0
    return table, free, total[free] / count[free]


def _channel_scores(
    model: keras.Model, views: Sequence[Any], scorer: Criterion, data: Any
) -> dict[int, dict[int, np.ndarray]]:
    """id(kernel) -> axis -> score of each place, the sum over the others."""
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
