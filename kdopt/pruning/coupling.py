"""Channels that layers share, pruned as one."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.graph.channels.coupled import CoupledSet, Part, coupled_sets, sums_by_channel
from kdopt.graph.trace import is_graph
from kdopt.pruning.patterns import Companion, Pattern, Units


class CoupledChannels(Pattern):
    """`Channel(groups="coupled")` in one model.

        score(channel) = sum over the kernels that make or follow it of the scores of its weights

    Every kernel keeps at least one channel.

    Args:
        model: Built model whose graph can be traced.
        views: Kernels whose channels may go.
    """

    def __init__(self, model: keras.Model, views: Sequence[KernelView]) -> None:
        if not isinstance(model, keras.Model):
            raise ValueError(
                "groups='coupled' needs the whole model, to see which layers share channels: prune it with "
                "GradualPruning or prune, not layer by layer with Prunable."
            )
        self._sets, self._reasons = coupled_sets(model, [view.variable for view in views])
        self._parts = {id(part.variable): part for found in self._sets for part in found.kernels}

    def reason(self, view: KernelView) -> str | None:
        return None if id(view.variable) in self._parts else self._reasons[id(view.variable)]

    def couple(self, model: keras.Model, views: Sequence[KernelView]) -> list[tuple[int, ...]]:
        place = {id(view.variable): i for i, view in enumerate(views)}
        return [tuple(place[id(part.variable)] for part in found.kernels) for found in self._sets]

    def units(self, scores: np.ndarray, view: KernelView) -> tuple:
        raise TypeError("Channels that are coupled are no units of one kernel.")

    def group(self, views: Sequence[KernelView], members: tuple[int, ...], scores: Sequence[np.ndarray]) -> Units:
        found = next(f for f in self._sets if f.kernels[0].variable is views[members[0]].variable)
        totals, sizes = np.zeros(found.count), np.zeros(found.count)
        for part, score in zip(found.kernels, scores, strict=True):
            for target, values in ((totals, score), (sizes, np.broadcast_to(1, score.shape))):
                sums = sums_by_channel(part, values)
                target[: sums.size] += sums

        def masks(keep: np.ndarray) -> list[np.ndarray]:
            keep = _with_one_each(found, keep, totals)
            return [_mask(part, keep) for part in found.kernels]

        weights = sum(int(score.size) for score in scores)
        return Units(members, totals, sizes.astype(int), weights, masks)

    def companions(self, views: Sequence[KernelView]) -> list[Companion]:
        return list(self._companions(views))

    def _companions(self, views: Sequence[KernelView]) -> list[Companion]:
        place = {id(view.variable): i for i, view in enumerate(views)}
        held: dict[int, list[tuple[CoupledSet, Part]]] = {}
        for found in self._sets:
            for part in found.companions:
                held.setdefault(id(part.variable), []).append((found, part))

        def companion(pairs: list[tuple[CoupledSet, Part]]) -> Companion:
            def mask(masks: Sequence[np.ndarray]) -> np.ndarray:
                both = [
                    _mask(part, _kept(found, [masks[place[id(p.variable)]] for p in found.kernels]))
                    for found, part in pairs
                ]
                return np.logical_and.reduce(both)

            return pairs[0][1].variable, mask

        return [companion(pairs) for pairs in held.values()]


def gone_with_channels(
    model: keras.Model, kernels: Sequence[keras.Variable]
) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    """(bias, gamma or beta, its mask) of the channels of which all that makes and follows them is zero now.

    Nothing for a model whose calls are not recorded.
    """
    if not is_graph(getattr(model, "student", model)):
        return
    for found in coupled_sets(model, kernels)[0]:
        left = np.zeros(found.count)
        for part in found.parts:
            sums = sums_by_channel(part, keras.ops.convert_to_numpy(part.variable) != 0)
            left[: sums.size] += sums
        for part in found.companions:
            mask = _mask(part, left > 0)
            if not mask.all():
                yield part.variable, mask


def _mask(part: Part, keep: np.ndarray) -> np.ndarray:
    """Bool array of a Variable's shape, False where it belongs to a channel that goes."""
    shape = tuple(part.variable.shape)
    stays = np.append(keep, True)[part.channels]  # -1 is the last one, which stays
    return np.broadcast_to(stays.reshape([-1 if axis == part.axis else 1 for axis in range(len(shape))]), shape)


def _kept(found: CoupledSet, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Which channels the masks of the kernels leave."""
    keep = np.zeros(found.count, bool)
    for part, mask in zip(found.kernels, masks, strict=True):
        left = mask.any(axis=tuple(axis for axis in range(mask.ndim) if axis != part.axis))
        keep[part.channels[left & (part.channels >= 0)]] = True
    return keep


def _with_one_each(found: CoupledSet, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`keep`, and for each kernel that would lose all its channels the one with the highest score."""
    keep = keep.copy()
    for part in found.kernels:
        if not np.append(keep, True)[part.channels].any():
            keep[part.channels[np.argmax(scores[part.channels])]] = True
    return keep
