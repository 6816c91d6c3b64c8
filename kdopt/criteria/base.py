"""What a pruning criterion is, and the registry of them."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from kdopt.core.registry import Registry


class Criterion(ABC):
    """Scores weights: the lowest scores are pruned first.

    Subclass it, implement `score`, and register it under a name with `@CRITERIA.register("name")`.
    """

    @abstractmethod
    def score(self, weights: np.ndarray) -> np.ndarray:
        """Importance of each weight.

        Args:
            weights: Float array of any shape, one kernel.

        Returns: finite array of the same shape; higher is more important.
        """

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Criterion":
        """Makes the criterion from `get_config()`."""
        return cls(**config)


CRITERIA: Registry[Criterion] = Registry("criterion", Criterion)  # type: ignore[type-abstract]
