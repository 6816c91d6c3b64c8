"""Channels that layers share, as numbers: which places of which Variables belong to the same one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.groups import ChannelGraph, trace_channels
from kdopt.graph.channels.labels import Slot


@dataclass(frozen=True)
class Part:
    """One axis of one Variable that makes or follows shared channels.

    Attributes:
        variable: The Variable.
        axis: Integer >= 0.
        channels: Integer array (n,): number of the channel at each place, -1 where none is that may go.
    """

    variable: keras.Variable
    axis: int
    channels: np.ndarray


@dataclass(frozen=True)
class CoupledSet:
    """Channels of one or several kernels; each stays or goes as a whole.

    Attributes:
        count: Integer, how many channels.
        kernels: One `Part` a kernel.
        companions: What must be zero with them: biases, gammas, betas.
    """

    count: int
    kernels: tuple[Part, ...]
    companions: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them."""
        return self.kernels + self.companions


def coupled_sets(model: keras.Model, kernels: Collection[keras.Variable]) -> tuple[list[CoupledSet], dict[int, str]]:
    """Which channels of some kernels must become zero together.

    A channel that leaves several kernels (at a residual connection), and what follows it (depthwise and recurrent
    kernels, biases, normalizations), is one. It may go if every kernel that makes it is among `kernels`.

    Args:
        model: Built Functional, Sequential or traceable subclassed model, or a `Distiller` (its student is meant).
        kernels: Variables.

    Returns: the sets in the model's order, no kernel in two of them; and identity of a kernel -> why none of its
        channels may go, for those in no set.
    Raises: TypeError, ValueError as `channel_groups`.
    """
    graph = trace_channels(getattr(model, "student", model))
    given = {id(variable) for variable in kernels}
    first: dict[int, Slot] = {}  # the axis of a Variable's channels; an attention's kernels have heads and widths
    for slot in graph.labels.slots():
        if slot.role != "reads":
            first.setdefault(id(slot.variable), slot)
    stay = dict(graph.labels.frozen())
    for slot in graph.labels.slots():
        if slot.role == "makes" and (id(slot.variable) not in given or first[id(slot.variable)] is not slot):
            reason = f"its channels are also those of {graph.paths.get(id(slot.layer), slot.layer.name)!r}"
            stay.update((root, reason) for root in graph.labels.roots(slot.labels).tolist() if root not in stay)
    chosen = [slot for key, slot in first.items() if key in given]
    sets, lonely = _sets(graph, chosen, first, stay)
    unknown = {key: "nothing is known of its channels" for key in given - set(first)}
    return sets, {**unknown, **lonely}


def _sets(
    graph: ChannelGraph, chosen: list[Slot], first: dict[int, Slot], stay: dict[int, str]
) -> tuple[list[CoupledSet], dict[int, str]]:
    roots = {id(slot): graph.labels.roots(slot.labels) for slot in first.values()}
    free = {id(slot): [root for root in np.unique(roots[id(slot)]).tolist() if root not in stay] for slot in chosen}
    sets: list[CoupledSet] = []
    for members in _connected(chosen, free):
        number = {root: i for i, root in enumerate(sorted({r for slot in members for r in free[id(slot)]}))}
        own = {id(slot.variable) for slot in members}

        def part(slot: Slot, number: dict[int, int] = number) -> Part:
            return Part(slot.variable, slot.axis, np.array([number.get(r, -1) for r in roots[id(slot)].tolist()], int))

        follow = [
            part(slot)
            for slot in first.values()
            if slot.role == "follows" and slot.variable.trainable and id(slot.variable) not in own
        ]
        companions = tuple(found for found in follow if (found.channels >= 0).any())
        sets.append(CoupledSet(len(number), tuple(part(slot) for slot in members), companions))
    lonely = {
        id(slot.variable): next((stay[r] for r in roots[id(slot)].tolist() if r in stay), "it makes no channel")
        for slot in chosen
        if not free[id(slot)]
    }
    return sets, lonely


def _connected(slots: list[Slot], free: dict[int, list[int]]) -> list[list[Slot]]:
    """Slots that share a free identity, in groups."""
    groups: list[tuple[set[int], list[Slot]]] = []
    for slot in slots:
        roots = set(free[id(slot)])
        if roots:
            touching = [group for group in groups if group[0] & roots]
            members = [member for group in touching for member in group[1]]
            groups = [group for group in groups if not group[0] & roots]
            groups.append((roots.union(*(group[0] for group in touching)), [*members, slot]))
    place = {id(slot): i for i, slot in enumerate(slots)}
    return sorted((members for _, members in groups), key=lambda members: place[id(members[0])])


def sums_by_channel(part: Part, values: Any) -> np.ndarray:
    """Sum of `values`, an array of the Variable's shape, over each channel; NumPy, (largest number + 1,)."""
    others = tuple(axis for axis in range(values.ndim) if axis != part.axis)
    inside = part.channels >= 0
    return np.bincount(part.channels[inside], weights=values.sum(axis=others)[inside])
