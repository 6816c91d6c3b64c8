"""A distillation loss with a temperature."""

from typing import Any

from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.scheduled import Scheduled, check_scheduled, to_config


class TemperedLoss(DistillationLoss):
    """Divides logits by a temperature before it compares them.

    Args:
        temperature: Float > 0, or a schedule of it. 1 leaves the probabilities as they are, more softens them. Defaults
            to `4.0`.
        options: `activation`, `output` and `name` of `DistillationLoss`.

    Raises: ValueError for a temperature that is not a number > 0.
    """

    def __init__(self, temperature: Scheduled = 4.0, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = check_scheduled("temperature", temperature)

    def scheduled(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def get_config(self) -> dict[str, Any]:
        return {"temperature": to_config(self.temperature), **super().get_config()}
