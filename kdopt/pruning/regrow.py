"""Training a net that is sparse from the start and moves its weights around."""

import math
from typing import Any

import keras
import numpy as np

from kdopt.core.live import Live
from kdopt.core.validation import check_fraction, check_integer, check_one_of
from kdopt.pruning.allocation import Allocation, allocation_of
from kdopt.pruning.masking import Layers, MaskCallback
from kdopt.pruning.rules import MaskRule
from kdopt.pruning.selection import Selection, refuse_infinite

METHODS = ("set", "rigl")


class RegrowPruning(MaskCallback):
    """Keeps a sparsity from the first step on; every now and then the smallest weights go and others grow.

    Memory and updates are those of a sparse net all along, unlike gradual pruning, which starts dense.

        at update t:  k = fraction(t) * weights in use of the kernel;  the k with the lowest |w| are dropped;
        then k of those not in use grow:  "set": at random;  "rigl": those with the largest |dL/dw|
        fraction(t) = fraction                                   for "set"
        fraction(t) = fraction / 2 * (1 + cos(pi t / end_step))  for "rigl"

    A grown weight starts at zero, and so does what the optimizer keeps of it (momentum, second moment). Behaves as
    `GradualPruning` in everything else: logs, resuming, other callbacks, exact zeros at the end. `"rigl"` costs one
    accumulator a kernel: dL/dw is the mean over the batches since the last change, which is less noisy than the paper's
    gradient of one batch. "Not in use" includes those just dropped. SET in its paper drops the smallest positive
    and the largest negative weights apart, once an epoch.

    Args:
        sparsity: Float in [0, 1), of all kernels together.
        end_step: Integer >= 1, optimizer updates after which the masks stay as they are; three quarters of the
            training in the paper.
        method: `"rigl"` (default) or `"set"`.
        fraction: Float in [0, 1), share of the weights in use that moves. Defaults to `0.3`.
        frequency: Integer >= 1, updates between two changes. Defaults to `100`.
        allocation: Name in `kdopt.pruning.ALLOCATIONS` that needs no scores, a dict layer name -> sparsity, or an
            `Allocation`. Defaults to `"erdos_renyi"`.
        layers: As in `GradualPruning`.
        initial: `"random"` (default): the weights in use at the start are drawn; or `"l1"`: the largest, for a model
            that is trained already.
        seed: Integer >= 0. Defaults to `0`.

    Example:
    ```
    model.fit(x, y, epochs=20, callbacks=[RegrowPruning(0.9, end_step=7000)])
    ```

    Reference: Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity",
        Nature Communications 2018; Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
        section 3.
    """

    def __init__(
        self,
        sparsity: float,
        end_step: int,
        method: str = "rigl",
        *,
        fraction: float = 0.3,
        frequency: int = 100,
        allocation: Any = "erdos_renyi",
        layers: Layers = None,
        initial: str = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(layers)
        self.sparsity = check_fraction("sparsity", sparsity)
        self.end_step = check_integer("end_step", end_step)
        self.method = check_one_of("method", method, METHODS)
        self.fraction = check_fraction("fraction", fraction)
        self.frequency = check_integer("frequency", frequency)
        self.allocation: Allocation = allocation_of(allocation)
        self.initial = check_one_of("initial", initial, ("random", "l1"))
        self.seed = check_integer("seed", seed, minimum=0)

    def _make_rule(self) -> "RegrowRule":
        return RegrowRule(Selection(self.model, self.layers, "unstructured", self.allocation), self)

    def _describe_unfinished(self) -> str:
        return f"the masks were to move until update {self.end_step}. Train longer, or use a smaller end_step."


class RegrowRule(MaskRule):
    """Moves the weights in use; see `RegrowPruning`, whose arguments it reads."""

    def __init__(self, selection: Selection, settings: RegrowPruning) -> None:
        self.selection, self._settings = selection, settings
        self._sums: Any = None

    def next_update(self, step: int) -> int | None:
        if step < 0:
            return 0
        following = (step // self._settings.frequency + 1) * self._settings.frequency
        return following if following <= self._settings.end_step else None

    def attach(self, live: Live) -> None:
        if self._settings.method == "rigl":
            self._sums = live.accumulate([view.variable for view in self.selection.kernels])

    def masks(self, model: keras.Model, step: int, current: list[np.ndarray]) -> list[np.ndarray] | None:
        del model
        if all(mask.all() for mask in current):
            return self._first()
        gradients = self._gradients()
        if gradients is None:
            return None
        fraction = self._fraction(step)
        weights = [view.numpy() for view in self.selection.kernels]
        for view, weight in zip(self.selection.kernels, weights, strict=True):
            refuse_infinite(view.name, np.abs(weight))
        together = zip(weights, current, gradients, strict=True)
        return [
            moved(weight, mask, fraction, self._growth(step, i, gradient))
            for i, (weight, mask, gradient) in enumerate(together)
        ]

    def _first(self) -> list[np.ndarray]:
        kernels = self.selection.kernels
        if self._settings.initial == "l1":
            scores = [np.abs(view.numpy()) for view in kernels]
        else:
            scores = [self._random(0, i).random(tuple(view.variable.shape)) for i, view in enumerate(kernels)]
        return self.selection.masks(scores, self._settings.sparsity)

    def _gradients(self) -> list[Any] | None:
        if self._sums is None:
            return [None] * len(self.selection.kernels)
        if self._sums.batches() == 0:
            return None
        sums = self._sums.sums()
        self._sums.reset()
        return sums

    def _growth(self, step: int, index: int, gradient: np.ndarray | None) -> np.ndarray:
        """Array of the kernel's shape: who grows first."""
        if gradient is None:
            return self._random(step, index).random(tuple(self.selection.kernels[index].variable.shape))
        return np.abs(gradient)

    def _fraction(self, step: int) -> float:
        settings = self._settings
        if settings.method == "set":
            return settings.fraction
        return settings.fraction / 2 * (1 + math.cos(math.pi * min(1.0, step / settings.end_step)))

    def _random(self, step: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, step, index])

    def identity(self) -> dict[str, Any]:
        names = ("sparsity", "end_step", "method", "fraction", "frequency", "initial", "seed")
        allocation = [type(self._settings.allocation).__name__, self._settings.allocation.get_config()]
        return {**{name: getattr(self._settings, name) for name in names}, "allocation": allocation}


def moved(weights: np.ndarray, mask: np.ndarray, fraction: float, growth: np.ndarray) -> np.ndarray:
    """A mask with as many weights in use, some of them others.

    Args:
        weights: Float array, the kernel.
        mask: Bool array of the same shape, weights in use.
        fraction: Float in [0, 1), share of them that moves.
        growth: Float array of the same shape, those with the largest values grow.

    Returns: Bool array of the same shape. Ties go to the first in memory order.
    """
    used = np.flatnonzero(mask)
    count = min(round(fraction * used.size), mask.size - used.size)
    result = mask.reshape(-1).copy()
    result[used[np.argsort(np.abs(weights).reshape(-1)[used], kind="stable")[:count]]] = False
    free = np.flatnonzero(~result)
    result[free[np.argsort(-growth.reshape(-1)[free], kind="stable")[:count]]] = True
    return result.reshape(mask.shape)
