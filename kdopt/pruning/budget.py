"""From a budget to a sparsity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core import measure
from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer

_HALVINGS = 30


@dataclass(frozen=True)
class Budget:
    """What a pruned model may still cost. Give one number.

    Args:
        parameters: Integer >= 1, weights that are not zero, in the whole model.
        size_bytes: Integer >= 1, bytes of the weights that are not zero, each in its own dtype.
        macs: Integer >= 1, multiply-accumulates of one sample with weights that are not zero. Zeros are skipped by
            few runtimes; for time, remove channels.
        input_shape: For `macs` of a model with an open input shape, as `kdopt.core.measure.macs` takes it.
    """

    parameters: int | None = None
    size_bytes: int | None = None
    macs: int | None = None
    input_shape: Any = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("parameters", "size_bytes", "macs")}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) != 1:
            raise ValueError(f"Budget takes one of parameters, size_bytes and macs; got {named or 'none'}.")
        check_integer(*next(iter(named.items())))

    @property
    def unit(self) -> str:
        """Name of the number that was given."""
        return next(name for name in ("parameters", "size_bytes", "macs") if getattr(self, name) is not None)


def sparsity_for(
    budget: Budget, model: keras.Model, views: list[KernelView], masks: Callable[[float], list[np.ndarray]]
) -> float:
    """The lowest sparsity whose masks meet the budget, by halving.

    Args:
        budget: The budget.
        model: Built model.
        views: Its kernels that are pruned.
        masks: sparsity -> one mask a kernel.

    Raises: ValueError if even the highest sparsity is too large; it names the smallest cost possible.
    """
    limit = getattr(budget, budget.unit)
    prices, fixed = _prices(budget, model, views)

    def cost(sparsity: float) -> float:
        return fixed + sum(price * np.count_nonzero(m) for price, m in zip(prices, masks(sparsity), strict=True))

    low, high = 0.0, float(np.nextafter(1.0, 0.0))
    if cost(low) <= limit:
        return low
    least = cost(high)
    if least > limit:
        raise ValueError(
            f"The budget of {limit:,} {budget.unit} cannot be met: with one unit left in every kernel, "
            f"{round(least):,} are left, {round(fixed):,} of them in what is not pruned. Prune more "
            "layers or raise the budget."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return high


def _prices(budget: Budget, model: keras.Model, views: list[KernelView]) -> tuple[list[float], float]:
    """(cost of one weight of each kernel, cost of what is not pruned)."""
    inside = {id(view.variable) for view in views}
    rest = [variable for variable in model.weights if id(variable) not in inside]
    if budget.unit == "parameters":
        return [1.0] * len(views), float(sum(np.count_nonzero(_numpy(v)) for v in rest))
    if budget.unit == "size_bytes":
        prices = [float(keras.ops.convert_to_numpy(view.variable).dtype.itemsize) for view in views]
        return prices, float(sum(np.count_nonzero(_numpy(v)) * _numpy(v).dtype.itemsize for v in rest))
    return _macs_prices(budget, model, views)


def _macs_prices(budget: Budget, model: keras.Model, views: list[KernelView]) -> tuple[list[float], float]:
    """Every weight of a kernel is used equally often: MACs of its layer over the weights of the layer's kernels."""
    by_path = {record.path: record for record in measure.by_layer(model, budget.input_shape)}
    total = measure.macs(model, budget.input_shape)
    prices, pruned = [], 0.0
    for view in views:
        record = next((by_path[path] for path in _parents(view.path) if path in by_path), None)
        if record is None or record.macs is None:
            raise ValueError(f"The multiply-accumulates of {view.name!r} are not known; budget in parameters instead.")
        siblings = [v for v in views if any(path == record.path for path in _parents(v.path))]
        prices.append(record.macs / sum(int(np.prod(v.variable.shape)) for v in siblings))
        pruned += prices[-1] * int(np.prod(view.variable.shape))
    return prices, total - pruned


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(len(parts), 0, -1)]


def _numpy(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
