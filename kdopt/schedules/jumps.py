"""Schedules that change the sparsity at a few given moments."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from kdopt.core.validation import check_fraction
from kdopt.schedules.base import Schedule
from kdopt.schedules.times import Time, check_order, check_time, steps_of, to_config


@keras.saving.register_keras_serializable("kdopt")
class Constant(Schedule):
    """The same sparsity from the first step on.

        s(t) = sparsity

    For a model that is sparse already: fine-tunes it with its zeros kept.

    Args:
        sparsity: Float in [0, 1).

    Example:
    ```
    Constant(0.8)(0)      # 0.8
    ```
    """

    def __init__(self, sparsity: float) -> None:
        self.sparsity = check_fraction("sparsity", sparsity)

    def __call__(self, step: int) -> float:
        return self.sparsity

    def next_update(self, step: int) -> int | None:
        return 0 if step < 0 else None

    @property
    def final_sparsity(self) -> float:
        return self.sparsity

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity}


@keras.saving.register_keras_serializable("kdopt")
class OneShot(Schedule):
    """Everything is pruned at once, after some dense training.

        s(t) = 0 for t < begin_step,   sparsity from then on

    Args:
        sparsity: Float in [0, 1).
        begin_step: Integer >= 0, optimizer updates, or `Epochs`.

    Example:
    ```
    OneShot(0.8, begin_step=1000)(999)       # 0.0
    OneShot(0.8, begin_step=1000)(1000)      # 0.8
    ```

    Reference: Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015,
        section 3 (train, prune, train again).
    """

    def __init__(self, sparsity: float, begin_step: Time) -> None:
        self.sparsity = check_fraction("sparsity", sparsity)
        self.begin_step = check_time("begin_step", begin_step, minimum=0)

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= steps_of(self.begin_step) else 0.0

    def next_update(self, step: int) -> int | None:
        begin = steps_of(self.begin_step)
        return begin if step < begin else None

    @property
    def final_sparsity(self) -> float:
        return self.sparsity

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity, "begin_step": to_config(self.begin_step)}


@keras.saving.register_keras_serializable("kdopt")
class MultiStep(Schedule):
    """A staircase: at each of the given times, the sparsity that goes with it.

        s(t) = 0 for t < t_1,   s_k for t_k <= t < t_(k+1),   s_n from t_n on

    A sparsity may be lower than the one before: then masks come back (dense-sparse-dense training).

    Args:
        sparsities: Mapping from time (integer >= 0, optimizer updates, or `Epochs`) to float in [0, 1), or list of
            such pairs; times strictly increasing.

    Example:
    ```
    MultiStep({100: 0.5, 200: 0.75, 400: 0.9})(250)      # 0.75
    ```

    Reference: Han et al., "DSD: dense-sparse-dense training for deep neural networks", ICLR 2017 (falling).
    """

    def __init__(self, sparsities: Mapping[Time, float] | Iterable[tuple[Time, float]]) -> None:
        self.sparsities = _checked_pairs(sparsities)

    def __call__(self, step: int) -> float:
        reached = [sparsity for time, sparsity in self.sparsities if steps_of(time) <= step]
        return reached[-1] if reached else 0.0

    def next_update(self, step: int) -> int | None:
        return next((steps_of(time) for time, _ in self.sparsities if steps_of(time) > step), None)

    @property
    def final_sparsity(self) -> float:
        return self.sparsities[-1][1]

    def get_config(self) -> dict[str, Any]:
        return {"sparsities": [[to_config(time), sparsity] for time, sparsity in self.sparsities]}


def _checked_pairs(sparsities: Any) -> tuple[tuple[Time, float], ...]:
    pairs = list(sparsities.items() if isinstance(sparsities, Mapping) else _iterated(sparsities))
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "`sparsities` must map times to fractions, e.g. MultiStep({100: 0.5, 200: 0.8}), or be a list of such "
            f"pairs; got {sparsities!r}."
        )
    checked = [
        (check_time("key of sparsities", time, minimum=0), check_fraction("value of sparsities", sparsity))
        for time, sparsity in pairs
    ]
    for (earlier, _), (later, _) in itertools.pairwise(checked):
        check_order("key of sparsities", later, "the one before", earlier)
    return tuple(checked)


def _iterated(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) else []
