"""Losses on the class logits of teacher and student (response-based knowledge)."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_one_of
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.tempered import TemperedLoss
from kdopt.distillation.scheduled import Scheduled, now


def soft_targets(teacher: Any, student: Any, temperature: Any = 4.0, activation: str = "softmax") -> Any:
    """Kullback-Leibler divergence of temperature-softened probabilities, times the squared temperature.

        softmax:  T^2 * sum_c p_c * (log p_c - log q_c),    p = softmax(teacher / T), q = softmax(student / T)
        sigmoid:  T^2 * mean_c [p_c * log(p_c / q_c) + (1 - p_c) * log((1 - p_c) / (1 - q_c))],   p, q by sigmoid

    The factor T^2 keeps the gradient's size when T changes. Each sigmoid unit is a two-class softmax of its own; their
    mean, not their sum, is on the scale of Keras' binary crossentropy.

    Args:
        teacher: Float logits of shape (batch, ..., classes).
        student: Float logits of the same shape.
        temperature: Float > 0. 1 leaves the probabilities as they are, more softens them. Defaults to `4.0`.
        activation: `"softmax"` or `"sigmoid"`. Defaults to `"softmax"`.

    Returns: nats times T^2, shape (batch, ...), >= 0, and 0 where both distributions agree.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    t, s = teacher / temperature, student / temperature
    if activation == "sigmoid":
        positive = ops.sigmoid(t) * (ops.log_sigmoid(t) - ops.log_sigmoid(s))
        negative = ops.sigmoid(-t) * (ops.log_sigmoid(-t) - ops.log_sigmoid(-s))
        divergence = ops.mean(positive + negative, axis=-1)
    else:
        log_p, log_q = ops.log_softmax(t, axis=-1), ops.log_softmax(s, axis=-1)
        divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * divergence


@DISTILLATION_LOSSES.register("soft_targets")
class SoftTargets(TemperedLoss):
    """The student imitates the teacher's softened class probabilities.

    The wrong classes the teacher finds plausible tell the student which classes look alike. Costs next to nothing
    beside the teacher's forward pass. See `soft_targets` for the formula.

    Args:
        temperature: Float > 0, typically 2 to 8, or a schedule. Defaults to `4.0`.
        activation: `"softmax"`, `"sigmoid"` or `None` (read from the models). Defaults to `None`.
        output: Name or index of the output, `None` for all. Defaults to `None`.
        name: Name in the logs. Defaults to `"soft_targets"`, logged as `soft_targets_loss`.

    Raises: ValueError for a temperature that is not a number > 0.

    Example:
    ```
    import numpy as np
    loss = SoftTargets(temperature=2.0)
    loss.compute_loss(np.array([[2.0, 0.0]], "float32"), np.array([[0.0, 0.0]], "float32"))    # [0.4438]
    ```

    Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax") -> Any:
        """`soft_targets` at this temperature; shape (batch, ...)."""
        return soft_targets(teacher, student, now(self.temperature), activation)


@DISTILLATION_LOSSES.register("soft_targets_mse")
class SoftTargetsMSE(TemperedLoss):
    """The student's logits, or its softened probabilities, come near the teacher's in the mean square.

        on="logits":         mean_c (t_c - s_c)^2
        on="probabilities":  T^2 * mean_c (p_c - q_c)^2,     p, q softened by T as in `soft_targets`

    Logits are the limit of soft targets at high temperature; they pull on every class alike, also on those the teacher
    is sure not to mean.

    Args:
        on: `"logits"` or `"probabilities"`. Defaults to `"logits"`.
        temperature: Float > 0, or a schedule; only of probabilities. Defaults to `4.0`.
        activation, output, name: As in `DistillationLoss`.

    Raises: ValueError.

    Reference: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1; Kim et al., "Comparing
    Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", IJCAI 2021, equation 3.
    """

    def __init__(self, on: str = "logits", temperature: Scheduled = 4.0, **options: Any) -> None:
        super().__init__(temperature, **options)
        self.on = check_one_of("on", on, ("logits", "probabilities"))

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax") -> Any:
        """Shape (batch, ...)."""
        if self.on == "logits":
            return ops.mean(ops.square(teacher - student), axis=-1)
        temperature = now(self.temperature)
        squash = ops.sigmoid if activation == "sigmoid" else ops.softmax
        difference = squash(teacher / temperature) - squash(student / temperature)
        return temperature**2 * ops.mean(ops.square(difference), axis=-1)

    def scheduled(self) -> dict[str, Any]:
        return super().scheduled() if self.on == "probabilities" else {}

    def get_config(self) -> dict[str, Any]:
        return {"on": self.on, **super().get_config()}
