"""Network slimming: a price on the scales of BatchNormalization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.kernels import KernelView, Skipped
from kdopt.core.validation import check_one_of
from kdopt.regularizers.base import PENALTIES, Penalty, Tensor
from kdopt.regularizers.coupling import CoupledGroups, bound_members, coupled_lasso, coupled_threshold
from kdopt.regularizers.elementwise import soft_threshold
from kdopt.regularizers.strength import Strength


@PENALTIES.register("batch_norm_scale")
class BatchNormScale(Penalty):
    """The sum of magnitudes of BatchNormalization's gamma: channels that are not needed get a small one.

        penalty(gamma) = strength * sum |gamma|       prox: sign(gamma) * max(|gamma| - step_size * strength, 0)

    As `gamma_regularizer=`, or with `attach` or `Proximal`, which put it on every BatchNormalization that
    has a gamma. A channel with gamma = 0 is constant (its beta), not zero.

    With `groups="coupled"` the gammas that one channel goes through (at a residual connection: those of all its blocks)
    are one group, and become small together:

        penalty = strength * sum over channels c of ||gammas of c||_2

    Args:
        strength: Float >= 0, or a schedule. The paper's are 1e-5 to 1e-4. Defaults to `1e-4`.
        groups: `"single"` (default): every gamma alone; or `"coupled"`, which needs the whole model: `attach` or
            `Proximal`.

    Example:
    ```
    keras.layers.BatchNormalization(gamma_regularizer=BatchNormScale(1e-4))
    handle = attach(model, BatchNormScale(1e-4))
    ```

    Reference: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV
        2017, equation 1.
    """

    members: CoupledGroups | None = None  # of `groups="coupled"`, once it is on a model

    def __init__(self, strength: Strength = 1e-4, groups: str = "single") -> None:
        super().__init__(strength)
        self.groups = check_one_of("groups", groups, ("single", "coupled"))

    def measure(self, weights: Tensor) -> Tensor:
        if self.groups == "coupled":
            members = bound_members(self)
            return coupled_lasso(members, members.values(weights), scale_by_size=False)
        return ops.sum(ops.abs(weights))

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        return soft_threshold(weights, threshold)

    def shrink_together(self, values: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
        """The proximal operator on the Variables of `members`, in their order."""
        return coupled_threshold(bound_members(self), values, threshold, scale_by_size=False)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}

    def targets(self, model: keras.Model) -> tuple[list[KernelView], list[Skipped]]:
        """The gammas that `model.fit` trains, and the BatchNormalizations without one."""
        trained = {id(variable) for variable in model.trainable_variables}
        norms = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
        names = [norm.name for norm in norms]
        found: list[KernelView] = []
        skipped: list[Skipped] = []
        for norm in norms:
            gamma = norm.gamma if norm.built else None
            name = norm.name if names.count(norm.name) == 1 else norm.path
            if gamma is None:
                reason = "has no gamma (scale=False)" if norm.built else "not built: the model has not called it"
                skipped.append(Skipped(name, reason, known=True))
            elif id(gamma) not in trained:
                skipped.append(Skipped(name, "not trained by this fit", known=True))
            else:
                found.append(
                    KernelView(name=name, path=norm.path, layer=norm, variable=gamma, channel_axis=-1, index=len(found))
                )
        return found, skipped
