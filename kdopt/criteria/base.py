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
    weights (a channel, a block) has the sum of their scores. So a criterion that knows one number for a whole channel
    gives each of its weights that number divided by how many they are (`per_weight`).

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

        Raises: ValueError if weights and view are not all the criterion needs; then `scores` is the way.
        """

    def reason(self, view: KernelView) -> str | None:
        """Why there is no score for a kernel; `None` (the default) where there is one."""
        del view
        return None

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        """Importance of each weight of several kernels of a model.

        Args:
            model: The model, left as it is.
            views: Its kernels.
            data: What the criterion needs beyond the weights; see `needs`. Unused with `"weights"`.
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


def per_weight(values: np.ndarray, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Spreads the score of each unit evenly over its weights, so that their sum is the score again.

        score(w) = value(unit of w) / number of weights in the unit

    Args:
        values: Float array, one value a unit; reshaped to the sizes of `axes`.
        axes: Axes of the kernel that number the units, in the order of `values`; the others are inside a unit.
        shape: The kernel's.

    Returns: array of shape `shape`.

    Example:
    ```
    per_weight(np.array([6.0, 3.0]), (-1,), (3, 2))      # rows of [2.0, 1.0]
    ```
    """
    places = [axis % len(shape) for axis in axes]
    sizes = [shape[place] for place in places]
    ordered = values.reshape(sizes).transpose(np.argsort(places))
    full = ordered.reshape([shape[axis] if axis in places else 1 for axis in range(len(shape))])
    inside = np.prod(shape, dtype=int) // np.prod(sizes, dtype=int)
    return np.broadcast_to(full / inside, tuple(shape)).copy()
