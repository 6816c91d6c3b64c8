"""Penalties on groups of weights: whole channels, rows or blocks become zero."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from kdopt.core.validation import check_fraction
from kdopt.regularizers.base import PENALTIES, Penalty, Tensor
from kdopt.regularizers.coupling import (
    CoupledGroups,
    bound_members,
    coupled_lasso,
    coupled_soft_threshold,
    coupled_threshold,
)
from kdopt.regularizers.elementwise import soft_threshold
from kdopt.regularizers.grouping import Grouping, Layout, checked_layout
from kdopt.regularizers.strength import Strength


def group_lasso(weights: Tensor, grouping: Grouping, scale_by_size: bool) -> Tensor:
    """sum_g s_g * ||W_g||_2, s_g = sqrt(|g|) with `scale_by_size`, else 1."""
    norms = grouping.norms(grouping.split(weights))
    return ops.sum(_factors(weights, grouping, scale_by_size) * norms)


def group_threshold(weights: Tensor, threshold: Tensor, grouping: Grouping, scale_by_size: bool) -> Tensor:
    """W_g * max(1 - threshold * s_g / ||W_g||_2, 0) for each group g."""
    parts = grouping.split(weights)
    norms = grouping.norms(parts)
    cut = threshold * _factors(weights, grouping, scale_by_size)
    factors = ops.maximum(norms - cut, 0.0) / ops.where(norms > 0, norms, 1.0)
    return grouping.merge(parts * factors, weights.shape)


def _factors(weights: Tensor, grouping: Grouping, scale_by_size: bool) -> Tensor:
    sizes = ops.cast(grouping.sizes(weights.shape), weights.dtype)
    return ops.sqrt(sizes) if scale_by_size else ops.minimum(sizes, 1)


class GroupPenalty(Penalty):
    """Base of the penalties on groups: what a group is, and how a kernel's axes are read.

    Args:
        strength: Float >= 0, or a schedule.
        groups: See `kdopt.regularizers.grouping.Grouping`.
        block_shape: Tuple of two integers >= 1, for `groups="blocks"` only.
        layout: `"standard"`, `"transposed"` (the kernel of `Conv2DTranspose`), `"depthwise"`, or the axes of the inputs
            (`EinsumDense`), see `kdopt.regularizers.grouping.Grouping`. `None`: taken
            from the layer by `attach`, `Proximal` and `SparseRegularized`; `"standard"` in a
            `kernel_regularizer=`, which does not know its layer.
    """

    couples = False  # whether `groups="coupled"` has a meaning

    def __init__(
        self, strength: Strength, groups: str, block_shape: tuple[int, int] | None, layout: Layout | None
    ) -> None:
        super().__init__(strength)
        self.layout = self._asked_layout = None if layout is None else checked_layout(layout)
        self.groups = groups
        coupled = self.couples and groups == "coupled"
        self.block_shape = Grouping("out_channels" if coupled else groups, block_shape).block_shape

    @property
    def grouping(self) -> Grouping:
        """The groups of a kernel of this penalty's layout."""
        return Grouping(self.groups, self.block_shape, self.layout or "standard")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "block_shape": None if self.block_shape is None else list(self.block_shape),
            "layout": self._asked_layout,
        }


@PENALTIES.register("group_lasso")
class GroupLasso(GroupPenalty):
    """The sum of the norms of groups: a group becomes zero as a whole, or not at all.

        penalty(W) = strength * sum_g sqrt(|g|) * ||W_g||_2

    With `groups="out_channels"` and `Proximal`, channels become exactly zero. Note that a channel's bias
    and normalization are not part of its group.

    With `groups="coupled"` a group is all that must be zero for a channel to be: the slices of all kernels that make it
    or follow it (at a residual connection, through depthwise layers), their biases, and the gammas and betas it goes
    through. With `Proximal` these groups become exactly zero in nets of any shape, and
    `kdopt.pruning.structural.prune_channels(model, criterion="mask")` removes them without loss. Needs the whole
    model: `attach` or `Proximal`, not `kernel_regularizer=`. Channels that must stay have no price.

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        groups: `"out_channels"` (default), `"in_channels"`, `"rows"`, `"columns"` or `"blocks"`, see
            `kdopt.regularizers.grouping.Grouping`; or `"coupled"`.
        block_shape: Tuple (rows, columns) of integers >= 1, for `"blocks"` only.
        scale_by_size: Bool. `False` leaves out the factor sqrt(|g|). Defaults to `True`.
        layout: How the kernel's axes are read; `None` (default): as the layer's, where it is known, or
            (..., inputs, outputs).

    Example:
    ```
    float(GroupLasso(0.1, scale_by_size=False)([[3.0, 0.0], [4.0, 0.0]]))      # 0.5
    ```

    Reference: Yuan & Lin, "Model selection and estimation in regression with grouped variables", J. R.
        Stat. Soc. B 2006; for channels: Wen et al., "Learning Structured Sparsity in Deep Neural
        Networks", NeurIPS 2016, equation 2 (without the factor of size).
    """

    couples = True
    members: CoupledGroups | None = None  # of `groups="coupled"`, once it is on a model

    def __init__(
        self,
        strength: Strength = 1e-4,
        groups: str = "out_channels",
        block_shape: tuple[int, int] | None = None,
        scale_by_size: bool = True,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(strength, groups, block_shape, layout)
        self.scale_by_size = bool(scale_by_size)

    def measure(self, weights: Tensor) -> Tensor:
        if self.groups == "coupled":
            members = bound_members(self)
            return coupled_lasso(members, members.values(weights), self.scale_by_size)
        return group_lasso(weights, self.grouping, self.scale_by_size)

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        return group_threshold(weights, threshold, self.grouping, self.scale_by_size)

    def shrink_together(self, values: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
        """The proximal operator on the Variables of `members`, in their order."""
        return coupled_threshold(bound_members(self), values, threshold, self.scale_by_size)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale_by_size": self.scale_by_size}


@PENALTIES.register("sparse_group_lasso")
class SparseGroupLasso(GroupLasso):
    """Groups become zero, and single weights in the groups that stay.

        penalty(W) = strength * (l1_ratio * sum |w| + (1 - l1_ratio) * sum_g sqrt(|g|) * ||W_g||_2)

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        l1_ratio: Float in [0, 1]; 0 is `GroupLasso`, 1 is `L1`. Defaults to `0.5`.
        groups, block_shape, scale_by_size, layout: As in `GroupLasso`.

    Example:
    ```
    float(SparseGroupLasso(0.1, scale_by_size=False)([[3.0, 0.0], [4.0, 0.0]]))      # 0.05 * 7 + 0.05 * 5 = 0.6
    ```

    Reference: Simon et al., "A Sparse-Group Lasso", J. Comput. Graph. Stat. 2013.
    """

    def __init__(
        self,
        strength: Strength = 1e-4,
        l1_ratio: float = 0.5,
        groups: str = "out_channels",
        block_shape: tuple[int, int] | None = None,
        scale_by_size: bool = True,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(strength, groups, block_shape, scale_by_size, layout)
        self.l1_ratio = check_fraction("l1_ratio", l1_ratio, one=True)

    def measure(self, weights: Tensor) -> Tensor:
        values = bound_members(self).values(weights) if self.groups == "coupled" else [weights]
        single = sum(ops.sum(ops.abs(value)) for value in values)
        return self.l1_ratio * single + (1 - self.l1_ratio) * super().measure(weights)

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        single = soft_threshold(weights, threshold * self.l1_ratio)
        return super().shrink(single, threshold * (1 - self.l1_ratio))

    def shrink_together(self, values: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
        single = coupled_soft_threshold(values, threshold * self.l1_ratio)
        return super().shrink_together(single, threshold * (1 - self.l1_ratio))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l1_ratio": self.l1_ratio}
