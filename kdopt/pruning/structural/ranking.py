"""The order in which channels go, and how many stay of each group."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from kdopt.graph.channels.constants import Constants
from kdopt.pruning.structural.units import Unit


class Ranking:
    """Units in the order in which they go, under what must stay of each group.

    Args:
        units: Of the model.
        scope, round_to: As in `plan_channels`.
        least: Number of a group -> how many stay at least.
    """

    def __init__(self, units: list[Unit], scope: str, least: Mapping[int, int], round_to: int) -> None:
        self._scope, self._least, self._round_to = scope, dict(least), round_to
        self._order = sorted(units, key=lambda unit: (unit.score, unit.root))
        self._groups: dict[int, list[Unit]]
        self._kinds: dict[int, list[Unit]]
        self._sort()

    def __len__(self) -> int:
        return len(self._order)

    def removed(self, count: int) -> np.ndarray:
        """Identities that go when about `count` units do; more never means fewer of any group."""
        wanted: dict[int, float] = defaultdict(float)
        if self._scope == "global":
            for unit in self._order[:count]:
                wanted[unit.group] += 1
        elif self._scope == "isomorphic":
            for own in self._kinds.values():
                for unit in own[: round(count / len(self._order) * len(own))]:
                    wanted[unit.group] += 1
        else:
            wanted.update({g: count / len(self._order) * len(own) for g, own in self._groups.items()})
        gone: list[int] = []
        for group, own in self._groups.items():
            gone += [unit.root for unit in own[: len(own) - self._kept(group, len(own) - round(wanted[group]))]]
        return np.array(sorted(gone), int)

    def give_back(self, removed: np.ndarray, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
        """What goes once steps of `round_to` channels that need not go stay after all, those worth most first."""
        gone = set(removed.tolist())
        lost = {group: [unit for unit in own if unit.root in gone] for group, own in self._groups.items()}
        while lost := {group: units for group, units in lost.items() if units and units[-1].score > 0}:
            group = max(lost, key=lambda g: sum(unit.score for unit in lost[g][-self._round_to :]))
            back = {unit.root for unit in lost[group][-self._round_to :]}
            if fits(np.array(sorted(gone - back), int)):
                gone, lost[group] = gone - back, lost[group][: -self._round_to]
            else:
                del lost[group]
        return np.array(sorted(gone), int)

    def hold(self, roots: np.ndarray) -> None:
        """Keeps one more channel for good: of some identities the one that is worth most."""
        held = set(roots.tolist())
        unit = next((u for u in reversed(self._order) if u.root in held and u.score < np.inf), None)
        if unit is None:
            raise ValueError(
                "With minimum=0 something would be left with nothing to read, which no channel can mend. Use minimum=1."
            )
        self._order.remove(unit)
        self._order.append(replace(unit, score=np.inf))
        count = sum(u.score == np.inf for u in self._order if u.group == unit.group)
        self._least[unit.group] = max(self._least[unit.group], count)
        self._sort()

    def _sort(self) -> None:
        self._groups, self._kinds = defaultdict(list), defaultdict(list)
        for unit in self._order:
            self._groups[unit.group].append(unit)
            self._kinds[unit.kind].append(unit)

    def whole(self) -> np.ndarray:
        """Identities in the groups that `round_to` or `minimum` keep as they are."""
        kept = [own for group, own in self._groups.items() if self._kept(group, 0) == len(own)]
        return np.array([unit.root for own in kept for unit in own], int)

    def held(self) -> str:
        """A sentence on the groups that `round_to` or `minimum` keep as they are; empty if there is none."""
        whole = [len(own) for group, own in self._groups.items() if self._kept(group, 0) == len(own)]
        if not whole:
            return ""
        sizes = ", ".join(map(str, sorted(set(whole))[:5]))
        return f"`round_to` and `minimum` keep {len(whole)} of {len(self._groups)} groups whole (of {sizes} channels). "

    def dead(self) -> np.ndarray:
        """Identities with a score of 0, but for what must stay."""
        gone = []
        for group, own in self._groups.items():
            zero = [unit.root for unit in own if unit.score == 0]
            gone += zero[: len(own) - self._kept(group, len(own) - len(zero))]
        return np.array(sorted(gone), int)

    def _kept(self, group: int, wanted: int) -> int:
        size = len(self._groups[group])
        kept = max(wanted, min(self._least[group], size))
        return min(size, -(-kept // self._round_to) * self._round_to)


def least_of(units: list[Unit], minimum: int, left: Callable[[np.ndarray], Constants]) -> dict[int, int]:
    """How many channels of each group stay; one where the model could not be made without it and those before it.

    Args:
        units, minimum: Of the plan.
        left: Function identities -> what would be left without them.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for unit in units:
        groups[unit.group].append(unit.root)
    if minimum:
        return dict.fromkeys(groups, minimum)
    found, gone = {}, np.empty(0, int)
    for group, roots in groups.items():
        both = np.concatenate([gone, roots])
        found[group], gone = (1, gone) if left(both).refused else (0, both)
    return found
