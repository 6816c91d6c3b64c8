"""The lines a Distiller adds to the logs."""

from typing import Any

import keras
import tensorflow as tf

from kdopt.distillation.losses.base import DistillationLoss, snake_case
from kdopt.distillation.scheduled import now


class Trackers:
    """One mean for each distillation loss, and one for each schedule; a repeated loss name gets a number.

    Args:
        distiller: A `Distiller` with its losses and weights set.
    """

    def __init__(self, distiller: Any) -> None:
        self._distiller = distiller
        hard = distiller.student_loss_weight
        names: list[str] = ["student"]
        for loss in distiller.distillation_losses:
            name = base = getattr(loss, "name", None) or snake_case(type(loss).__name__)
            while name in names:
                name = f"{base}_{sum(other.startswith(base) for other in names)}"
            names.append(name)
        self.student = _mean("student_loss") if callable(hard) or hard > 0 else None
        self.soft = [_mean(f"{name}_loss") for name in names[1:]] if callable(hard) or hard < 1 else []
        self._schedules = _schedules(distiller, names[1:])

    def all(self) -> list[keras.metrics.Metric]:
        """Every metric of them, and those of the losses."""
        terms = self._distiller._lesson.knowledge.terms
        own = [term.loss for of_loss in terms for term in of_loss if isinstance(term.loss, DistillationLoss)]
        first = [] if self.student is None else [self.student]
        return [*first, *self.soft, *(mean for mean, _ in self._schedules), *(m for loss in own for m in loss.metrics)]

    def log(self, tracker: keras.metrics.Mean, value: Any, size: Any) -> None:
        """Adds the value of a batch of `size` samples."""
        # Keras divides a replica's loss by the number of replicas; the log shows the mean over samples.
        tracker.update_state(value * tf.distribute.get_strategy().num_replicas_in_sync, sample_weight=size)

    def log_schedules(self) -> None:
        """Adds what each schedule gives at this step."""
        for mean, schedule in self._schedules:
            mean.update_state(now(schedule))

    def check_names(self) -> None:
        """Refuses two lines of one name.

        Raises: ValueError.
        """
        compiled = getattr(self._distiller, "_compile_metrics", None)
        given = [] if compiled is None else [compiled._user_metrics, compiled._user_weighted_metrics]
        own = [metric for metric in keras.tree.flatten(given) if isinstance(metric, keras.metrics.Metric)]
        names = [metric.name for metric in (*self._distiller.metrics, *own)]
        for tracker in ([] if self.student is None else [self.student]) + self.soft:
            if names.count(tracker.name) > 1:
                raise ValueError(
                    f"{tracker.name!r} would be in the logs twice: a model output or a metric and a distillation loss "
                    "share the name. Rename the former, or give the loss another `name`."
                )


def _mean(name: str) -> keras.metrics.Mean:
    return keras.metrics.Mean(name=name)


def _schedules(distiller: Any, names: list[str]) -> list[tuple[keras.metrics.Mean, Any]]:
    found = {"student_loss_weight": distiller.student_loss_weight}
    for name, loss, weight in zip(
        names, distiller.distillation_losses, distiller.distillation_loss_weights, strict=True
    ):
        found[f"{name}_weight"] = weight
        own = loss.scheduled() if isinstance(loss, DistillationLoss) else {}
        found |= {f"{name}_{argument}": value for argument, value in own.items()}
    return [(_mean(name), value) for name, value in found.items() if callable(value)]
