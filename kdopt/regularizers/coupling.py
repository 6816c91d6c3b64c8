"""Penalties on channels that several layers share: one group reaches over their kernels, biases and normalizations."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView, Skipped, find_kernels
from kdopt.core.optimizers import update_order
from kdopt.graph.channels.coupled import CoupledSet, Part, coupled_sets, sums_by_channel
from kdopt.regularizers.elementwise import soft_threshold

Tensor = Any


class CoupledGroups:
    """Groups of weights, each spread over some Variables: one group a channel, all that must be zero for it to be.

    Args:
        parts: Where the channels are.
        count: Integer, how many channels.

    Attributes:
        variables: The Variables, `leader` last: the one whose loss, or whose update, the groups are tied to.
    """

    def __init__(self, parts: Sequence[Part], count: int) -> None:
        self._parts, self._count = tuple(parts), count
        self.sizes = np.zeros(count)
        for part in parts:
            sums = sums_by_channel(part, np.broadcast_to(1, tuple(part.variable.shape)))
            self.sizes[: sums.size] += sums

    @property
    def variables(self) -> list[keras.Variable]:
        return [part.variable for part in self._parts]

    @property
    def leader(self) -> keras.Variable:
        return self._parts[-1].variable

    def values(self, of_leader: Tensor) -> list[Tensor]:
        """The Variables' values as they are now, and the one that is given for the leader."""
        others = [ops.cast(variable, of_leader.dtype) for variable in self.variables[:-1]]
        return [*others, of_leader]

    def norms(self, values: Sequence[Tensor]) -> Tensor:
        """||w_c||_2 of each channel c, (count,). The gradient where all weights are zero is zero."""
        total: Any = 0.0
        for part, value in zip(self._parts, values, strict=True):
            axes = [axis for axis in range(len(value.shape)) if axis != part.axis]
            places = np.where(part.channels < 0, self._count, part.channels)  # what stays is summed apart
            squares = ops.sum(ops.square(value), axis=axes) if axes else ops.square(value)
            total = total + ops.segment_sum(squares, places, num_segments=self._count + 1)[: self._count]
        positive = total > 0
        return ops.where(positive, ops.sqrt(ops.where(positive, total, 1.0)), 0.0)

    def scaled(self, values: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
        """The values, those of channel c times `factors[c]`."""
        factors = ops.concatenate([factors, ops.ones(1, factors.dtype)])  # -1 is the last one: what stays
        found = []
        for part, value in zip(self._parts, values, strict=True):
            shape = [-1 if axis == part.axis else 1 for axis in range(len(value.shape))]
            found.append(value * ops.reshape(ops.take(factors, part.channels % (self._count + 1)), shape))
        return found

    def factors(self, scale_by_size: bool, dtype: Any) -> Tensor:
        """sqrt(number of weights) of each channel, or 1."""
        return ops.cast(np.sqrt(self.sizes) if scale_by_size else np.ones(self._count), dtype)


def coupled_lasso(groups: CoupledGroups, values: Sequence[Tensor], scale_by_size: bool) -> Tensor:
    """sum_c s_c * ||w_c||_2, s_c = sqrt(number of weights of c) with `scale_by_size`, else 1."""
    norms = groups.norms(values)
    return ops.sum(groups.factors(scale_by_size, norms.dtype) * norms)


def coupled_threshold(
    groups: CoupledGroups, values: Sequence[Tensor], threshold: Tensor, scale_by_size: bool
) -> list[Tensor]:
    """w_c * max(1 - threshold * s_c / ||w_c||_2, 0) for each channel c."""
    norms = groups.norms(values)
    left = ops.maximum(norms - threshold * groups.factors(scale_by_size, norms.dtype), 0.0)
    return groups.scaled(values, left / ops.where(norms > 0, norms, 1.0))


def coupled_soft_threshold(values: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
    """Every weight alone nearer to zero by `threshold`."""
    return [soft_threshold(value, threshold) for value in values]


def needs_model(penalty: Any) -> bool:
    """Whether a penalty is on channels that layers share, so that it must see the whole model."""
    return getattr(penalty, "groups", None) == "coupled"


def bound_members(penalty: Any) -> CoupledGroups:
    """The groups that a penalty has been put on.

    Raises: ValueError if it is on no model.
    """
    if penalty.members is None:
        raise ValueError(
            f"{type(penalty).__name__}(groups='coupled') is about channels that layers share, so it needs the whole "
            "model: attach(model, penalty), or Proximal(penalty) as a callback; not kernel_regularizer= or "
            "SparseRegularized."
        )
    return penalty.members


def coupled_groups(
    model: keras.Model, views: Sequence[KernelView], only: bool = False
) -> tuple[list[CoupledGroups], list[KernelView], list[Skipped]]:
    """The shared channels of the chosen Variables.

    Args:
        model: Built model whose graph can be traced, or a `Distiller`.
        views: Kernels; or, with `only`, the Variables that alone are priced, such as gammas.
        only: Whether nothing else than `views` is part of a group.

    Returns: the groups, the views that are in one, and those in none with the reason.
    """
    kernels = [view.variable for view in (find_kernels(model)[0] if only else views)]
    sets, reasons = coupled_sets(model, kernels)
    order = {id(variable): i for i, variable in enumerate(update_order(model))}
    chosen = {id(view.variable) for view in views}

    def groups_of(found: CoupledSet) -> CoupledGroups | None:
        parts = [part for part in found.parts if id(part.variable) in chosen or not only]
        return CoupledGroups(sorted(parts, key=lambda p: order[id(p.variable)]), found.count) if parts else None

    groups = [made for found in sets if (made := groups_of(found)) is not None]
    held = {id(variable) for one in groups for variable in one.variables}
    told = "its channels must stay, or are made by layers that are not trained"
    skipped = [
        Skipped(v.name, reasons.get(id(v.variable), told), known=True) for v in views if id(v.variable) not in held
    ]
    return groups, [view for view in views if id(view.variable) in held], skipped
