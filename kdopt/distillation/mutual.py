"""Mutual learning: students without a teacher, each the teacher of the others."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Self

import keras

from kdopt.core.backend import require_tensorflow
from kdopt.core.compiling import renewed
from kdopt.core.recording import Recording
from kdopt.distillation.config import losses_config, refuse_shared
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.health import FirstBatch
from kdopt.distillation.joined import join, samples_in
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.scheduled import Scheduled
from kdopt.distillation.steps import run_step, running
from kdopt.distillation.taps import Tapped
from kdopt.distillation.teachers import ModelTeacher, Observation, observed

_PEERS = "kdopt/peers"


class Peer(ModelTeacher):
    """Another student, which has seen the batch already.

    Args:
        model: The student.
        place: Its number among the students.
    """

    waits = True

    def __init__(self, model: keras.Model, place: int) -> None:
        super().__init__(model)
        self.place = place

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        del x, wanted, student
        return batch.said[_PEERS][self.place]


@keras.saving.register_keras_serializable("kdopt")
class MutualLearning(keras.Model):
    """Trains several students at once, on the labels and on what the others say.

        loss = sum_k [ a * hard_k + (1 - a) * 1 / (K - 1) * sum_{j != k} sum_i w_i * soft_i(j, k) ]

    with a = student_loss_weight and student j as the teacher of student k. Each student runs once a step; no gradient
    flows from one to those that teach it. It is called with a batch and returns what each student says, in a list.
    The logs hold `loss` and, as `student_{k}/...`, what a `Distiller` logs, with the metrics. Afterwards `students[k]`
    are plain trained models.

    Args:
        students: List of two or more built `keras.Model` with the same inputs and outputs; start them from different
            weights.
        distillation_losses, distillation_loss_weights, from_logits: As in `Distiller`. The losses default to
            `[SoftTargets(temperature=1.0)]`.
        student_loss_weight: As in `Distiller`, the `a` above. Defaults to `0.5`.
        name: Defaults to `"mutual_learning"`.

    Raises: ValueError, TypeError when models, losses or numbers do not fit together.

    Example:
    ```
    cohort = MutualLearning(students=[small, other])
    cohort.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    cohort.fit(x, y, epochs=5)
    cohort.students[0].save("small.keras")
    ```

    Reference: Zhang et al., "Deep Mutual Learning", CVPR 2018, equations 4 to 8 (there the students are updated in
    turn, here in one step).
    """

    def __init__(
        self,
        *,
        students: Sequence[keras.Model],
        distillation_losses: Any = None,
        distillation_loss_weights: Sequence[Scheduled] | None = None,
        student_loss_weight: Scheduled = 0.5,
        from_logits: bool | None = None,
        name: str = "mutual_learning",
    ) -> None:
        require_tensorflow("MutualLearning")
        given: list[Any] = [students] if isinstance(students, keras.Model) else list(students)
        for student in given:
            if not isinstance(student, keras.Model):
                raise TypeError(f"`students` must be keras.Models; got {type(student).__name__}.")
            if not student.built:
                raise ValueError(
                    f"The student {student.name!r} is not built: give it an `Input`, or call it on a batch."
                )
        if len(given) < 2:
            raise ValueError(f"MutualLearning needs two students or more; got {len(given)}.")
        super().__init__(name=name, dtype=given[0].dtype_policy, autocast=False)
        if distillation_losses is None:
            distillation_losses = [SoftTargets(temperature=1.0)]
        self.distillers = [
            Distiller(
                student=student,
                teacher=[Peer(model, other) for other, model in enumerate(given) if other != place],
                distillation_losses=distillation_losses,
                distillation_loss_weights=distillation_loss_weights,
                student_loss_weight=student_loss_weight,
                from_logits=from_logits,
                name=f"student_{place}",
            )
            for place, student in enumerate(given)
        ]
        self.built = all(distiller.built for distiller in self.distillers)

    @property
    def students(self) -> list[keras.Model]:
        """The models that are trained."""
        return [distiller.student for distiller in self.distillers]

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **options: Any) -> None:
        """As `keras.Model.compile`; loss and metrics are those of each student, the optimizer is of all."""
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **options)
        weighted, loss_weights = options.get("weighted_metrics"), options.get("loss_weights")
        for distiller in self.distillers:
            own, own_weighted = (keras.tree.map_structure(renewed, given) for given in (metrics, weighted))
            distiller.compile(self.optimizer, loss, loss_weights, metrics=own, weighted_metrics=own_weighted)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; the first batch is looked at for a student that gives NaN."""
        given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments
        given.pop("self")
        health = [one for distiller in self.distillers for one in distiller._lesson.health]
        with FirstBatch(health, self._changing).among(given.pop("callbacks", None), self) as every:
            return super().fit(**given, callbacks=every)

    def _changing(self) -> list[keras.Variable]:
        own = [variable for distiller in self.distillers for variable in distiller._changing()]
        return list({id(variable): variable for variable in own}.values())

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def call(self, inputs: Any, training: bool | None = None) -> list[Any]:
        seen = [
            observed(functools.partial(student, inputs, training=training), self._tapped(place))
            for place, student in enumerate(self.students)
        ]
        if (step := running(self)) is not None:
            step.student = seen
        return [one.outputs for one in seen]

    def train_step(self, data: Any) -> dict[str, Any]:
        with run_step(self):
            return super().train_step(data)

    def test_step(self, data: Any) -> dict[str, Any]:
        with run_step(self):
            return super().test_step(data)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Sum over the students, a float32 scalar."""
        step = running(self)
        seen = step.student if step is not None else [Observation(outputs, Recording()) for outputs in y_pred]
        total: Any = 0.0
        for distiller, own, outputs in zip(self.distillers, seen, y_pred, strict=True):
            with run_step(distiller, own):
                loss = distiller.compute_loss(join(x, {_PEERS: seen}), y, outputs, sample_weight, training)
            distiller._trackers.log(distiller._loss_tracker, loss, samples_in(x))
            total = total + loss
        return total

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        for distiller, outputs in zip(self.distillers, y_pred, strict=True):
            distiller.compute_metrics(x, y, outputs, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict[str, Any]:
        found = super().get_metrics_result() if not self.distillers else {"loss": self._loss_tracker.result()}
        for distiller in self.distillers:
            own = distiller.get_metrics_result()
            found |= {f"{distiller.name}/{name}": value for name, value in own.items()}
        return found

    @property
    def metrics_names(self) -> list[str]:
        """Those of the logs, in their order."""
        return list(self.get_metrics_result())

    def _flatten_metrics_in_order(self, logs: dict[str, Any]) -> list[Any]:
        # Keras goes by the names of metrics, of which every student has the same.
        return [logs[name] for name in self.metrics_names if name in logs]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The total loss, and those of every student."""
        own = [] if self._loss_tracker is None else [self._loss_tracker]
        return [*own, *(metric for distiller in self.distillers for metric in distiller.metrics)]

    def _tapped(self, place: int) -> list[Tapped]:
        """Inner tensors of a student that are looked at, by itself or by those it teaches."""
        found = list(self.distillers[place]._lesson.tapped())
        for other, distiller in enumerate(self.distillers):
            if other != place:
                found += distiller._lesson.knowledge.teacher_taps(place if place < other else place - 1)
        return found

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: what is shipped is a student."""
        raise TypeError(
            "MutualLearning is no model to ship: export one of its students, `cohort.students[0].export(...)`."
        )

    def __tflite_source__(self) -> dict[str, Any]:
        """Refuses: what is shipped is a student."""
        raise TypeError("MutualLearning is no model to ship: convert one of its students, `cohort.students[0]`.")

    def get_config(self) -> dict[str, Any]:
        first = self.distillers[0]
        for distiller in self.distillers:
            refuse_shared(distiller)
        students = [keras.saving.serialize_keras_object(student) for student in self.students]
        told = first.from_logits["student"]
        return {"students": students, **losses_config(first), "from_logits": told, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        def made(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        lists = {name: [made(one) for one in config[name]] for name in _LISTS}
        return cls(**{**config, **lists, "student_loss_weight": made(config["student_loss_weight"])})


_LISTS = ("students", "distillation_losses", "distillation_loss_weights")
