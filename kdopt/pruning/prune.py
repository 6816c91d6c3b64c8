"""Pruning without training."""

from typing import Any

import keras
import numpy as np

from kdopt.core import measure
from kdopt.core.copying import copy_model
from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_fraction
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.allocation import PerLayer, Threshold
from kdopt.pruning.budget import Budget, sparsity_for
from kdopt.pruning.masking import Layers
from kdopt.pruning.patterns import Pattern
from kdopt.pruning.report import LayerPruning, PruningReport
from kdopt.pruning.selection import Selection, scores_of


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    criterion: str | Criterion = "l1",
    pattern: str | Pattern = "unstructured",
    *,
    allocation: Any = "uniform",
    threshold: float | None = None,
    budget: Budget | None = None,
    layers: Layers = None,
    data: Any = None,
) -> tuple[keras.Model, PruningReport]:
    """Makes weights zero once, in a copy.

    The accuracy falls; train on with `GradualPruning(Constant(sparsity))` or `keep_zeros`. Say how much goes by one of
    `sparsity`, `threshold`, `budget`, or by a dict as `allocation`.

    Args:
        model: Built Keras 3 model; left as it is.
        sparsity: Float in [0, 1), fraction of zeros in the kernels.
        criterion: Name in `kdopt.criteria.CRITERIA`, or a `Criterion`. Defaults to `"l1"`.
        pattern: Name in `kdopt.pruning.PATTERNS`, or a `Pattern`. Defaults to `"unstructured"`.
        allocation: As in `GradualPruning`. Defaults to `"uniform"`.
        threshold: Float >= 0: units with a score above it stay.
        budget: `Budget`: the lowest sparsity that meets it.
        layers: As in `GradualPruning`.
        data: For a criterion that needs gradients or samples, what its `scores` takes.

    Returns: (new model, `PruningReport`).
    Raises: ValueError for contradictory or impossible arguments; nothing is changed then.

    Example:
    ```
    sparse, report = prune(model, 0.8)
    print(report)
    ```
    """
    scorer = CRITERIA.get(criterion)
    allocation = _check_amount(sparsity, threshold, budget, allocation)
    own = Selection(model, layers, pattern, allocation)
    if sparsity is not None:
        own.check_sparsity(sparsity)
    scores = scores_of(scorer, model, own.kernels, data)
    amount = sparsity
    if budget is not None:
        amount = sparsity_for(budget, model, own.kernels, lambda s: own.masks(scores, s)[: len(own.kernels)])
    masks = own.masks(scores, amount or 0.0)
    pruned = copy_model(model)
    places = {id(variable): i for i, variable in enumerate(model.weights)}
    for variable, mask in zip(own.variables, masks, strict=True):
        target = pruned.weights[places[id(variable)]]
        target.assign(keras.ops.where(mask, target, keras.ops.zeros_like(target)))
    return pruned, _report(pruned, own, masks, amount)


def _check_amount(sparsity: float | None, threshold: float | None, budget: Budget | None, allocation: Any) -> Any:
    given = [
        name
        for name, value in (("sparsity", sparsity), ("threshold", threshold), ("budget", budget))
        if value is not None
    ]
    by_layer = isinstance(allocation, (dict, PerLayer, Threshold))
    if len(given) + by_layer != 1:
        told = ", ".join([*given, *(["allocation"] if by_layer else [])]) or "none of them"
        raise ValueError(
            "Say how much to prune by one of `sparsity`, `threshold`, `budget`, or a dict layer name -> sparsity as "
            f"`allocation`; got {told}."
        )
    if sparsity is not None:
        check_fraction("sparsity", sparsity)
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"`budget` must be a Budget, e.g. Budget(parameters=100_000); got {budget!r}.")
    return allocation if threshold is None else Threshold(threshold)


def _report(model: keras.Model, own: Selection, masks: list[np.ndarray], amount: float | None) -> PruningReport:
    asked = own.allocation.asked(own.kernels, amount)
    records = [_record(view, mask, want) for view, mask, want in zip(own.kernels, masks, asked, strict=False)]
    zeros, weights = sum(record.zeros for record in records), sum(record.weights for record in records)
    left_out = [LayerPruning(skip.name, None, None, 0, 0, skip.reason) for skip in own.skipped]
    return PruningReport(
        amount, zeros / weights, measure.parameters(model), measure.nonzero(model), (*records, *left_out)
    )


def _record(view: KernelView, mask: np.ndarray, asked: float | None) -> LayerPruning:
    zeros = int(mask.size - np.count_nonzero(np.where(mask, view.numpy(), 0)))
    return LayerPruning(view.name, asked, zeros / mask.size, int(mask.size), zeros)
