"""The Distiller: a `keras.Model` that trains a student against a teacher."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.validation import check_fraction, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss, snake_case
from kdopt.distillation.outputs import OutputPair, pair_outputs, symbolic_outputs
from kdopt.distillation.reduction import response_loss
from kdopt.distillation.stock import check_stock, stock_loss
from kdopt.distillation.validation import check_from_logits, check_models, select_outputs

AnyLoss = Any  # DistillationLoss, registered name, config, or keras.distillation.DistillationLoss


@keras.saving.register_keras_serializable("kdopt")
class Distiller(keras.Model):
    """Trains `student` on the labels and on what `teacher` says of the same batch.

        loss = a * hard + (1 - a) * sum_i w_i * soft_i + regularization of the student,   a = student_loss_weight

    It compiles and fits like any model; metrics, `predict`, `evaluate` and calls are the student's. `hard` is the
    compiled loss. The logs hold `loss`, `student_loss` (hard) and one `{name}_loss` for every distillation loss. Each
    step runs the student once and the teacher once, the teacher in inference mode. The teacher is not a layer of the
    Distiller: its variables, trainable flags, statistics and seeds are neither trained nor touched, and callbacks that
    walk the layers (pruning) see the student only. `evaluate` runs it too, to report the same `loss`; `predict` does
    not.

    Afterwards `distiller.student` is the plain trained model. Saving the Distiller stores both models.

    Args:
        student: Built or unbuilt `keras.Model`; its variables are trained in place.
        teacher: Built (trained) `keras.Model` with the student's inputs and outputs.
        distillation_losses: List of `DistillationLoss`, registered names (`"soft_targets"`), or loss objects of
            `keras.distillation`; or one of these. Defaults to `[SoftTargets(temperature=4.0)]`.
        distillation_loss_weights: One number >= 0 for each. Defaults to `None`: 1.0 each.
        student_loss_weight: Float in [0, 1], the `a` above. At 0 the hard loss is not computed and no labels are
            needed; at 1 the teacher does not run. Defaults to `0.5`.
        from_logits: Whether the models return logits: True, False, or `{"student": ..., "teacher": ...}`. Defaults to
            `None`: read from the last activation.
        name: Defaults to `"distiller"`.

    Raises: ValueError, TypeError when models, losses or numbers do not fit together.

    Example:
    ```
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[SoftTargets(temperature=4.0)])
    distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    distiller.fit(x, y, epochs=5)
    distiller.student.save("student.keras")
    ```

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    def __init__(
        self,
        *,
        student: keras.Model,
        teacher: keras.Model,
        distillation_losses: AnyLoss | Sequence[AnyLoss] = ("soft_targets",),
        distillation_loss_weights: Sequence[float] | None = None,
        student_loss_weight: float = 0.5,
        from_logits: bool | dict[str, bool] | None = None,
        name: str = "distiller",
    ) -> None:
        require_tensorflow("Distiller")
        check_models(student, teacher)
        # The student's policy decides about loss scaling; no autocast: both models cast their own inputs.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student_loss_weight = check_fraction("student_loss_weight", student_loss_weight, one=True)
        self.distillation_losses = _as_losses(distillation_losses)
        self.distillation_loss_weights = _as_weights(distillation_loss_weights, len(self.distillation_losses))
        self.from_logits = check_from_logits(from_logits)
        self.student = student
        # Past Keras' tracking, so that the teacher is no layer of this model; saving walks attributes and finds it.
        object.__setattr__(self, "_teacher", teacher)
        self._check_losses()
        self._make_trackers()
        self.supports_jit = all(layer.supports_jit for layer in teacher._flatten_layers())
        self.built = student.built

    @property
    def teacher(self) -> keras.Model:
        """The model that is imitated."""
        return self._teacher

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics are given by output name as for the student."""
        return self.student.output_names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The total loss of a batch, a float32 scalar; see the class for the formula."""
        del training  # the teacher always infers; the student has run already
        batch = ops.shape(keras.tree.flatten(x)[0])[0]
        parts = [self._aggregate_additional_loss(loss) for loss in self.losses]
        if self.student_loss_weight > 0:
            hard = self._hard_loss(y, y_pred, sample_weight)
            _log(self._student_tracker, hard, batch)
            parts.append(self.student_loss_weight * hard)
        if self.student_loss_weight < 1:
            soft = self._soft_losses(x, y_pred, sample_weight)
            for tracker, weight, value in zip(self._soft_trackers, self.distillation_loss_weights, soft, strict=True):
                _log(tracker, value, batch)
                parts.append((1 - self.student_loss_weight) * weight * value)
        self._check_log_names()
        return ops.sum(ops.stack([ops.cast(part, "float32") for part in parts]))

    def _hard_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        if self._compile_loss is None or y is None:
            missing = "`compile` got no `loss`" if self._compile_loss is None else "the data holds no labels"
            raise ValueError(
                f"`student_loss_weight` is {self.student_loss_weight}, but {missing}. Give both, or distill without "
                "labels: `Distiller(..., student_loss_weight=0)`."
            )
        return self._compile_loss(y, y_pred, sample_weight)

    def _soft_losses(self, x: Any, y_pred: Any, sample_weight: Any) -> list[Any]:
        pairs = self._pairs(y_pred, self._teacher_outputs(x))
        values = []
        for loss in self.distillation_losses:
            if isinstance(loss, DistillationLoss):
                values.append(response_loss(loss, select_outputs(loss, pairs), sample_weight, len(pairs)))
            else:
                values.append(stock_loss(loss, pairs, y_pred, sample_weight))
        return values

    def _teacher_outputs(self, x: Any) -> Any:
        # Whatever the teacher would write even in inference (seeds, counters, its own losses) ends with the scope.
        with keras.StatelessScope():
            return self.teacher(x, training=False)

    def _pairs(self, student_outputs: Any, teacher_outputs: Any) -> list[OutputPair]:
        return pair_outputs(self.student, self.teacher, student_outputs, teacher_outputs, self.from_logits)

    def _check_losses(self) -> None:
        """Says at construction what would fail in the first step, where both models' outputs are known."""
        for loss in self.distillation_losses:
            if not isinstance(loss, DistillationLoss):
                check_stock(loss, self.student, self.teacher)
        structures = symbolic_outputs(self.student), symbolic_outputs(self.teacher)
        if any(structure is None for structure in structures):
            return
        pairs = self._pairs(*structures)
        for loss in self.distillation_losses:
            if isinstance(loss, DistillationLoss):
                for pair in select_outputs(loss, pairs):
                    pair.activation(loss.activation)

    def _make_trackers(self) -> None:
        """One mean for each line of the log; a repeated loss name gets a number."""
        names: list[str] = ["student"]
        for loss in self.distillation_losses:
            name = base = getattr(loss, "name", None) or snake_case(type(loss).__name__)
            while name in names:
                name = f"{base}_{sum(other.startswith(base) for other in names)}"
            names.append(name)
        self._student_tracker = keras.metrics.Mean(name="student_loss") if self.student_loss_weight > 0 else None
        used = names[1:] if self.student_loss_weight < 1 else []
        self._soft_trackers = [keras.metrics.Mean(name=f"{name}_loss") for name in used]

    def _check_log_names(self) -> None:
        names = [metric.name for metric in self.metrics]
        for tracker in (self._student_tracker, *self._soft_trackers):
            if tracker is not None and names.count(tracker.name) > 1:
                raise ValueError(
                    f"{tracker.name!r} would be in the logs twice: a model output and a distillation loss share the "
                    "name. Rename the output, or give the loss another `name`."
                )

    def __tflite_source__(self) -> dict[str, Any]:
        """Refuses: what is shipped is the student."""
        raise TypeError("A Distiller is no model to ship: convert its student, `distiller.student`.")

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "student": serialize(self.student),
            "teacher": serialize(self.teacher),
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "distillation_loss_weights": list(self.distillation_loss_weights),
            "student_loss_weight": self.student_loss_weight,
            "from_logits": dict(self.from_logits),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        deserialize = keras.saving.deserialize_keras_object
        made = {key: deserialize(config[key], custom_objects=custom_objects) for key in ("student", "teacher")}
        losses = [deserialize(loss, custom_objects=custom_objects) for loss in config["distillation_losses"]]
        return cls(**{**config, **made, "distillation_losses": losses})


def _as_losses(losses: Any) -> list[Any]:
    items = list(losses) if isinstance(losses, list | tuple) else [losses]
    if not items:
        raise ValueError("`distillation_losses` is empty; give at least one, e.g. [SoftTargets(temperature=4.0)].")
    stock = keras.distillation.DistillationLoss
    return [item if isinstance(item, stock) else DISTILLATION_LOSSES.get(item) for item in items]


def _as_weights(weights: Any, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if not isinstance(weights, list | tuple) or len(weights) != count:
        raise ValueError(
            f"`distillation_loss_weights` must be a list of {count} numbers, one for each distillation loss; "
            f"got {weights!r}."
        )
    return [check_positive("distillation_loss_weights", weight, zero=True) for weight in weights]


def _log(tracker: keras.metrics.Mean, value: Any, batch: Any) -> None:
    # Keras divides a replica's loss by the number of replicas; the log shows the mean over samples.
    tracker.update_state(value * tf.distribute.get_strategy().num_replicas_in_sync, sample_weight=batch)
