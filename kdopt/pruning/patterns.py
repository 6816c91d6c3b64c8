"""What is pruned as a whole: a weight, a block, n of m, a channel, a head."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.core.registry import Registry
from kdopt.core.validation import check_integer
from kdopt.pruning.masks import keep_highest

# A Variable that is zero where channels are, and its mask, made from those of all kernels.
Companion = tuple[keras.Variable, Callable[[Sequence[np.ndarray]], np.ndarray]]


@dataclass(frozen=True)
class Units:
    """The units of one kernel, or of several that are coupled.

    Attributes:
        members: Integers, which of the kernels they belong to.
        scores: Float array (n,), sum of the scores of the weights a unit would lose.
        sizes: Integer array (n,), number of weights a unit would lose.
        weights: Integer, number of weights of all members.
        masks: Function, bool array (n,) of the units that stay -> one bool array a member, of the kernel's shape.
    """

    members: tuple[int, ...]
    scores: np.ndarray
    sizes: np.ndarray
    weights: int
    masks: Callable[[np.ndarray], list[np.ndarray]]

    @property
    def single(self) -> bool:
        """Whether every unit is one weight."""
        return self.sizes.size == self.weights

    @property
    def empties(self) -> bool:
        """Whether no weight would be left without any unit."""
        return int(self.sizes.sum()) == self.weights

    def keep(self, lost: float) -> np.ndarray:
        """Bool array (n,): the units that stay when about `lost` weights go; see `keep_highest`."""
        return keep_highest(self.scores, self.sizes, lost, stay=int(self.empties))


class Pattern(ABC):
    """How the weights of a kernel stand together. Subclass it, implement `units`, register it in `PATTERNS`."""

    keeps_outputs = False  # whether what the model gives out is left alone, where all layers are pruned

    @property
    def largest(self) -> float:
        """Largest sparsity the pattern can reach, in (0, 1]."""
        return 1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

    @abstractmethod
    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        """Groups the weights of one kernel.

        Args:
            scores: Float array of the kernel's shape, >= 0.
            view: The kernel.

        Returns: (scores (n,), sizes (n,), function: bool array (n,) of the units that stay -> mask of the kernel).
        """

    def reason(self, view: KernelView) -> str | None:
        """Why the pattern has no meaning for this kernel; `None` where it has one."""
        del view
        return None

    def check(self, view: KernelView) -> None:
        """Refuses a kernel that the pattern is for, but cannot divide.

        Raises: ValueError with the layer's name.
        """
        del view

    def couple(self, model: keras.Model, views: Sequence[KernelView]) -> list[tuple[int, ...]]:
        """Which kernels lose a unit together. Defaults to each alone."""
        del model
        return [(i,) for i in range(len(views))]

    def companions(self, views: Sequence[KernelView]) -> list[Companion]:
        """Variables that are zero where the channels of kernels are, such as biases. Defaults to none."""
        del views
        return []

    def bound(self, model: keras.Model, views: Sequence[KernelView]) -> "Pattern":
        """The pattern as it is in one model, for those kernels that were chosen. Defaults to itself."""
        del model, views
        return self

    def group(self, views: Sequence[KernelView], members: tuple[int, ...], scores: Sequence[np.ndarray]) -> Units:
        """The units of coupled kernels (of one, for most patterns).

        Args:
            views: All kernels.
            members: Those that are coupled, as `couple` returned them.
            scores: One array a member.
        """
        found = [self.units(score, views[i]) for i, score in zip(members, scores, strict=True)]
        return Units(
            members=members,
            scores=np.sum([own for own, _, _ in found], axis=0) if len(found) > 1 else found[0][0],
            sizes=np.sum([sizes for _, sizes, _ in found], axis=0) if len(found) > 1 else found[0][1],
            weights=sum(score.size for score in scores),
            masks=lambda keep: [mask(keep) for _, _, mask in found],
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Pattern":
        """Makes the pattern from `get_config()`."""
        return cls(**config)


PATTERNS: Registry[Pattern] = Registry("pattern", Pattern)  # type: ignore[type-abstract]


@PATTERNS.register("unstructured")
class Unstructured(Pattern):
    """Every weight alone. The best accuracy at a sparsity; only compression gains from it."""

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        return scores.reshape(-1), np.broadcast_to(1, scores.size), lambda keep: keep.reshape(scores.shape)


@PATTERNS.register("block")
class Block(Pattern):
    """Blocks of h input channels x w output channels, at every position of a convolution's window.

    Sizes that do not divide leave smaller blocks at the end. Kernels without input channels (depthwise) have none.

    Args:
        shape: Two integers >= 1, (h, w). Defaults to `(1, 4)`.
    """

    def __init__(self, shape: tuple[int, int] = (1, 4)) -> None:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ValueError(f"`shape` must be two integers (input channels, output channels); got {shape!r}.")
        self.shape = (check_integer("shape[0]", shape[0]), check_integer("shape[1]", shape[1]))

    def reason(self, view: KernelView) -> str | None:
        if len(view.input_axes) != 1:
            return "its kernel has no single axis of input channels"
        return None

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        axes = (view.input_axes[0], view.channel_axis)
        moved = np.moveaxis(scores, axes, (-2, -1))
        starts = [np.arange(0, size, step) for size, step in zip(moved.shape[-2:], self.shape, strict=True)]
        sums = np.add.reduceat(np.add.reduceat(moved, starts[0], axis=-2), starts[1], axis=-1)
        rows, columns = (np.diff([*start, size]) for start, size in zip(starts, moved.shape[-2:], strict=True))
        sizes = np.broadcast_to(np.outer(rows, columns), sums.shape).reshape(-1)

        def mask(keep: np.ndarray) -> np.ndarray:
            wide = np.repeat(np.repeat(keep.reshape(sums.shape), rows, axis=-2), columns, axis=-1)
            return np.moveaxis(wide, (-2, -1), axes)

        return sums.reshape(-1), sizes, mask

    def get_config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


@PATTERNS.register("n_m")
class NM(Pattern):
    """At least `m - n` zeros among every `m` weights that follow each other along the input channels.

    A unit is one such run of `m`, which loses its `m - n` lowest weights; so the sparsity goes up to 1 - n / m, where
    every run has exactly `n` weights left.

    Args:
        n: Integer >= 1, weights that stay of `m`. Defaults to `2`.
        m: Integer > n. Defaults to `4`.

    Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    """

    def __init__(self, n: int = 2, m: int = 4) -> None:
        self.n, self.m = check_integer("n", n), check_integer("m", m)
        if self.n >= self.m:
            raise ValueError(f"`m` must be greater than n={n}; got {m}.")

    @property
    def largest(self) -> float:
        return 1 - self.n / self.m

    def reason(self, view: KernelView) -> str | None:
        return None if view.input_axes else "its kernel has no axis of input channels"

    def check(self, view: KernelView) -> None:
        inputs = int(np.prod([view.variable.shape[axis] for axis in view.input_axes]))
        if inputs % self.m:
            other = f", or choose an m that divides {inputs}" if inputs > 1 else ""
            raise ValueError(
                f"Layer {view.name!r} has {inputs} input channels, which {self.n}:{self.m} does not divide. Leave it "
                f"out, e.g. layers=lambda view: view.name != {view.name!r}{other}."
            )

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        count = len(view.input_axes)
        last = tuple(range(-count, 0))
        moved = np.moveaxis(scores, view.input_axes, last)
        runs = moved.reshape(-1, self.m)
        lose = self.m - self.n
        lowest = np.argsort(runs, axis=1, kind="stable")[:, :lose]
        sums = np.take_along_axis(runs, lowest, axis=1).sum(axis=1)

        def mask(keep: np.ndarray) -> np.ndarray:
            flat = np.ones(runs.shape, bool)
            np.put_along_axis(flat, lowest, np.repeat(keep[:, None], lose, axis=1), axis=1)
            return np.moveaxis(flat.reshape(moved.shape), last, view.input_axes)

        return sums, np.broadcast_to(lose, len(sums)), mask

    def get_config(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m}
