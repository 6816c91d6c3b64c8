"""When masks change, and into what."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core.live import Live
from kdopt.criteria.base import Criterion
from kdopt.criteria.gradient import GradientCriterion
from kdopt.pruning.selection import Selection, scores_of
from kdopt.schedules.base import Schedule


class MaskRule(ABC):
    """Decides the masks of a running `fit`."""

    selection: Selection

    @abstractmethod
    def next_update(self, step: int) -> int | None:
        """The first step > `step` (updates since the rule began) at which masks change; `None` when no more do."""

    @abstractmethod
    def masks(self, model: keras.Model, step: int, current: list[np.ndarray]) -> list[np.ndarray] | None:
        """The masks from `step` on, one for each of `selection.variables`; `None` to be asked again a batch later."""

    def attach(self, live: Live) -> None:
        """Attaches what the rule must see of the training. Defaults to nothing."""
        del live

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the masks of a backup must have been made with, to be this rule's; JSON-able."""


class GradualRule(MaskRule):
    """Prunes to the sparsity of a schedule by a criterion.

    Args:
        selection: What is pruned.
        schedule: step -> sparsity.
        criterion: Scores the weights.
        data: For a criterion that needs it; one that needs gradients takes those of the training without it.
    """

    def __init__(self, selection: Selection, schedule: Schedule, criterion: Criterion, data: Any = None) -> None:
        self.selection, self.schedule, self.criterion, self.data = selection, schedule, criterion, data
        self._sums: Any = None

    def next_update(self, step: int) -> int | None:
        return self.schedule.next_update(step)

    def attach(self, live: Live) -> None:
        if isinstance(self.criterion, GradientCriterion) and self.criterion.needs == "gradients" and self.data is None:
            variables = [view.variable for view in self.selection.kernels]
            self._sums = live.accumulate(variables, self.criterion.transform)

    def masks(self, model: keras.Model, step: int, current: list[np.ndarray]) -> list[np.ndarray] | None:
        scores = self._scores(model)
        if scores is None:
            return None
        if self.criterion.needs == "data":  # which gives a dead channel's weights a score, too: they would come back
            scores = [_surviving(score, mask) for score, mask in zip(scores, current, strict=False)]
        sparsity, final = self.schedule(step), self.schedule.final_sparsity
        return self.selection.masks(scores, sparsity, min(1.0, sparsity / final) if final else 1.0)

    def _scores(self, model: keras.Model) -> Sequence[np.ndarray] | None:
        kernels = self.selection.kernels
        if self._sums is None:
            return scores_of(self.criterion, model, kernels, self.data)
        batches = self._sums.batches()
        if batches == 0:
            return None  # no gradient was seen yet
        assert isinstance(self.criterion, GradientCriterion)
        means = [total / batches for total in self._sums.sums()]
        self._sums.reset()
        return [self.criterion.finish(view.numpy(), mean) for view, mean in zip(kernels, means, strict=True)]

    def identity(self) -> dict[str, Any]:
        return {
            "schedule": _named(self.schedule),
            "criterion": _named(self.criterion),
            "pattern": _named(self.selection.pattern),
            "allocation": _named(self.selection.allocation),
        }


def _surviving(score: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scores in which weights that are out come after all others."""
    return np.where(mask, np.maximum(score, np.finfo(np.float32).tiny), 0)


def _named(thing: Any) -> list[Any]:
    return [type(thing).__name__, thing.get_config()]
