"""Identities of channels: which of them must stay or go together, and where they are kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

Role = Literal["makes", "reads", "follows"]


@dataclass(frozen=True)
class Slot:
    """One axis of one Variable whose places are channels.

    Attributes:
        layer: The layer that owns the Variable.
        variable: The Variable.
        axis: Integer >= 0.
        role: `"makes"`: the layer makes these channels (output axis of a kernel); `"reads"`: it reads them (input axis
            of a kernel); `"follows"`: one value a channel (bias, gamma, statistics).
        labels: Integer array (n,), the identity of each place.
    """

    layer: keras.layers.Layer
    variable: keras.Variable
    axis: int
    role: Role
    labels: np.ndarray


class Labels:
    """All channel identities of one model: a union-find with reasons why some may not go.

    An identity is an integer. Identities that are united stay or go together; frozen ones stay.

    Args:
        cut_normalized_axes: Whether channels that a LayerNormalization averages over may go; that is another function.
    """

    def __init__(self, cut_normalized_axes: bool = False) -> None:
        self.cut_normalized_axes = cut_normalized_axes
        self._parents = np.empty(0, np.int64)
        self._reasons: list[tuple[np.ndarray, str]] = []
        self._slots: dict[tuple[int, int], Slot] = {}
        self._unlabeled: dict[tuple[int, int], str] = {}
        self._divided: dict[int, np.ndarray] = {}

    def fresh(self, count: int) -> np.ndarray:
        """`count` new identities, (count,)."""
        start = self._parents.size
        new = np.arange(start, start + count)
        self._parents = np.concatenate([self._parents, new])
        return new

    def unite(self, one: np.ndarray | None, other: np.ndarray | None) -> None:
        """Pairs of identities that stay or go together."""
        assert one is not None
        assert other is not None
        pairs = np.stack([self.roots(one).reshape(-1), self.roots(other).reshape(-1)], axis=1)
        for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0):
            first, second = self._root(a), self._root(b)
            self._parents[max(first, second)] = min(first, second)

    def freeze(self, labels: np.ndarray | None, reason: str) -> None:
        """Identities that must stay; `None` is allowed and does nothing."""
        if labels is not None and labels.size:
            self._reasons.append((np.unique(labels), reason))

    def roots(self, labels: np.ndarray | None) -> np.ndarray:
        """One identity for each set of united ones, in the shape of `labels`."""
        found = np.asarray(labels)
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                return found
            found = above

    def frozen(self) -> dict[int, str]:
        """Root -> why it must stay, the first reason that was given."""
        reasons: dict[int, str] = {}
        for labels, reason in self._reasons:
            for root in np.unique(self.roots(labels)).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def slots(self) -> list[Slot]:
        """All axes of Variables that hold channels, in the order of the model."""
        return list(self._slots.values())

    def makes(self, layer: keras.layers.Layer, variable: keras.Variable, axis: int) -> np.ndarray:
        """The identities that an output axis makes: new ones at the first call of a layer, the same at the next."""
        axis %= len(variable.shape)
        key = (id(variable), axis)
        if key not in self._slots:
            self._slots[key] = Slot(layer, variable, axis, "makes", self.fresh(variable.shape[axis]))
        return self._slots[key].labels

    def reads(self, layer: keras.layers.Layer, variable: keras.Variable, axis: int, labels: np.ndarray | None) -> None:
        """Identities that an input axis of a kernel reads; `None` where what it reads has none and must stay."""
        self._put(layer, variable, axis, "reads", labels)

    def follows(self, layer: keras.layers.Layer, variable: Any, axis: int, labels: np.ndarray | None) -> None:
        """Identities of a bias, a scale, a statistic; nothing is done where the layer has no such Variable."""
        if isinstance(variable, keras.Variable):
            self._put(layer, variable, axis, "follows", labels)

    def divides(self, variable: Any, labels: np.ndarray) -> None:
        """A Variable whose products Keras divides by the square root of how many identities there are."""
        if isinstance(variable, keras.Variable):
            self._divided[id(variable)] = labels

    def divided(self, variable: keras.Variable) -> np.ndarray | None:
        """The identities that `divides` named."""
        return self._divided.get(id(variable))

    def _put(
        self, layer: keras.layers.Layer, variable: keras.Variable, axis: int, role: Role, labels: np.ndarray | None
    ) -> None:
        axis %= len(variable.shape)
        key, reason = (id(variable), axis), f"{layer.name!r} is called on something that has no channels to remove, too"
        before = self._slots.get(key)
        if labels is None:
            self._unlabeled[key] = reason
            self.freeze(None if before is None else before.labels, reason)
            return
        if labels.shape != (variable.shape[axis],):
            raise ValueError(
                f"A channel rule gave {labels.size} identities for axis {axis} of {variable.path!r}, which has "
                f"{variable.shape[axis]}."
            )
        if key in self._unlabeled:
            self.freeze(labels, self._unlabeled[key])
        if before is not None:
            self.unite(before.labels, labels)
        else:
            self._slots[key] = Slot(layer, variable, axis, role, labels)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            label = self._parents[label]
        return int(label)


@dataclass(frozen=True, eq=False)
class Flow:
    """A tensor of the model: for each axis the identities of its places, or `None` where nothing can go.

    Attributes:
        shape: Sizes, `None` where they are open; axis 0 is the batch.
        labels: For each axis integers (size,), or `None`.
    """

    shape: tuple[int | None, ...]
    labels: tuple[np.ndarray | None, ...]

    @classmethod
    def plain(cls, shape: Iterable[int | None]) -> "Flow":
        """A tensor in which nothing can go."""
        shape = tuple(shape)
        return cls(shape, (None,) * len(shape))

    def at(self, axis: int) -> np.ndarray | None:
        """The identities along an axis."""
        return self.labels[axis]

    def given(self, shape: Iterable[int | None], labels: dict[int, np.ndarray | None]) -> "Flow":
        """A tensor of another shape, with identities on some axes (any sign), and none on the others."""
        shape = tuple(shape)
        placed = {axis % len(shape): label for axis, label in labels.items()}
        return Flow(shape, tuple(placed.get(axis) for axis in range(len(shape))))

    def labeled(self) -> list[int]:
        """The axes >= 0 that have identities."""
        return [axis for axis, label in enumerate(self.labels) if label is not None]
