"""Which patterns excite the neurons: neuron selectivity as a distribution."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_one_of, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import ChannelFreeLoss
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.taps import Taps

_KERNELS = ("linear", "polynomial", "gaussian")


@DISTILLATION_LOSSES.register("nst")
class NST(ChannelFreeLoss):
    """The channels of the student respond to places in the image as the teacher's do, as distributions.

        loss = mean_{i,j} k(t_i, t_j) + mean_{i,j} k(s_i, s_j) - 2 mean_{i,j} k(t_i, s_j)

    the squared maximum mean discrepancy between the channels; t_i, s_j are the maps of single channels, each of length
    1. Kernels: x . y ("linear"), (x . y)^2 ("polynomial"), exp(-|x - y|^2 / (2 sigma^2)) ("gaussian"). Needs no
    projector. Its cost grows with the square of the channels.

    Args:
        student_tap, teacher_tap, name: As in `FeatureLoss`; maps or sequences. Defaults to `"stages"`.
        kernel: `"linear"`, `"polynomial"` or `"gaussian"`. Defaults to `"polynomial"`, the paper's best.
        sigma: Float > 0, width of the Gaussian. Defaults to `1.0`.

    Reference: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, equations 2
    to 5.
    """

    ranks = (3, 4)

    def __init__(
        self,
        student_tap: Taps = "stages",
        teacher_tap: Taps | None = None,
        *,
        kernel: str = "polynomial",
        sigma: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        self.kernel, self.sigma = check_one_of("kernel", kernel, _KERNELS), check_positive("sigma", sigma)

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        theirs, ours = _channels(teacher), _channels(student)
        means = [self._mean(*pair) for pair in ((theirs, theirs), (ours, ours), (theirs, ours))]
        return means[0] + means[1] - 2.0 * means[2]

    def _mean(self, one: Any, other: Any) -> Any:
        """Mean of the kernel over all pairs of channels, shape (batch,)."""
        products = ops.matmul(one, ops.transpose(other, (0, 2, 1)))
        if self.kernel == "polynomial":
            products = ops.square(products)
        elif self.kernel == "gaussian":
            lengths = [ops.sum(ops.square(values), axis=-1) for values in (one, other)]  # 1, or 0 of a silent channel
            apart = lengths[0][:, :, None] + lengths[1][:, None, :] - 2.0 * products
            products = ops.exp(-apart / (2.0 * self.sigma**2))
        return ops.mean(products, axis=(1, 2))

    def get_config(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "sigma": self.sigma, **super().get_config()}


def _channels(values: Any) -> Any:
    """Shape (batch, channels, positions), each channel of length 1."""
    flat = ops.reshape(values, (ops.shape(values)[0], -1, values.shape[-1]))
    return unit(ops.transpose(flat, (0, 2, 1)))
