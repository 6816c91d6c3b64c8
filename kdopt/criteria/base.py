"""What a pruning criterion is, and the registry of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.core.registry import Registry

Needs = Literal["weights", "gradients", "data"]


class Criterion(ABC):
    """Scores weights: the lowest scores are pruned first.

    Subclass it, implement `score`, and register it under a name with `@CRITERIA.register("name")`. A unit of several
    weights (a channel, a block) has the sum of their scores.

    Attributes:
        needs: `"weights"`: nothing else. `"gradients"`: gradients of the loss, which a running `fit` gives for free.
            `"data"`: a pass over samples.
    """

    needs: Needs = "weights"

    @abstractmethod
    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        """Importance of each weight.

        Args:
            weights: Float array of any shape, one kernel.
            view: Where the kernel sits; `None` where only the values are known.

        Returns: finite array of the same shape, >= 0; higher is more important.
        """

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        """Importance of each weight of several kernels of a model.

        Args:
            model: The model, left as it is.
            views: Its kernels.
            data: What the criterion needs beyond the weights; see `needs`.
        """
        del model, data
        return [self.score(view.numpy(), view) for view in views]

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Criterion":
        """Makes the criterion from `get_config()`."""
        return cls(**config)


CRITERIA: Registry[Criterion] = Registry("criterion", Criterion)  # type: ignore[type-abstract]
