"""The Distiller: a `keras.Model` that trains a student against a teacher."""

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.recording import Recording
from kdopt.core.validation import check_fraction
from kdopt.distillation.apart import check_apart
from kdopt.distillation.arguments import as_losses, as_teachers, as_weights, check_teacher_weights
from kdopt.distillation.config import distiller_config, from_distiller_config, refuse_shared, shapes_of, specs_from
from kdopt.distillation.health import FirstBatch
from kdopt.distillation.joined import samples_in, split
from kdopt.distillation.knowledge import Batch
from kdopt.distillation.lesson import Lesson
from kdopt.distillation.outputs import symbolic_outputs
from kdopt.distillation.scheduled import Scheduled, at_step, check_scheduled, now
from kdopt.distillation.steps import run_step, running
from kdopt.distillation.teachers import Observation, observed, symbolic_inputs
from kdopt.distillation.trackers import Trackers
from kdopt.distillation.validation import check_from_logits, check_models

AnyLoss = Any  # DistillationLoss, registered name, config, keras.distillation.DistillationLoss, or a function
AnyTeacher = Any  # keras.Model, MeanTeacher, DeepestExit, or a list of them


_FIXED = (
    "student",
    "distillation_losses",
    "distillation_loss_weights",
    "student_loss_weight",
    "from_logits",
    "teacher_weights",
)


@keras.saving.register_keras_serializable("kdopt")
class Distiller(keras.Model):
    """Trains `student` on the labels and on what `teacher` says of the same batch.

        loss = a * hard + (1 - a) * sum_i w_i * soft_i + regularization of the student,   a = student_loss_weight

    It compiles and fits like any model; metrics, `predict`, `evaluate` and calls are the student's. `hard` is the
    compiled loss. The logs hold `loss`, `student_loss` (hard), one `{name}_loss` for every distillation loss, and the
    value of every schedule. Each step runs the student once and the teacher once, the teacher in inference mode,
    whatever the number of losses; inner layers are tapped in these runs. The teacher is not a layer of the
    Distiller: its variables, trainable flags, statistics and seeds are neither trained nor touched, and callbacks that
    walk the layers (pruning) see the student only. `evaluate` runs it too, to report the same `loss`; `predict` does
    not. Projectors that losses on inner layers need are trained beside the student and saved with the Distiller.

    Afterwards `distiller.student` is the plain trained model. Saving the Distiller stores both models.

    Args:
        student: Built or unbuilt `keras.Model`; its variables are trained in place.
        teacher: Built (trained) `keras.Model` with the student's outputs, or with any where all losses are on inner
            layers; or a list of several; or one made of the student: `MeanTeacher()`, `DeepestExit()`; or what one said
            before: a `TeacherCache`.
        distillation_losses: List of `DistillationLoss`, registered names (`"soft_targets"`), loss objects of
            `keras.distillation`, or functions `(teacher_outputs, student_outputs) -> tensor`; or one of these. Defaults
            to `[SoftTargets(temperature=4.0)]`.
        distillation_loss_weights: One for each (or one, for a single loss): a number >= 0, or a schedule. Defaults to
            `None`: 1.0 each.
        student_loss_weight: Float in [0, 1], the `a` above, or a schedule. At 0 the hard loss is not computed and no
            labels are needed; at 1 the teacher does not run. Defaults to `0.5`.
        from_logits: Whether the models return logits: True, False, or `{"student": ..., "teacher": ...}`. Defaults to
            `None`: read from the last activation. Values that look otherwise are warned of in the first batch.
        teacher_preprocessing: Function or layer that makes the teacher's input of the student's, for another size or
            scale; one for all teachers, or a list with one (or None) for each. Defaults to `None`: the same input.
        teacher_weights: One number >= 0 for each of several teachers, or `"confidence"`: for each sample by how well
            the teacher knows its label (CA-MKD; see `teachers.confidence`). Defaults to `None`: 1 / teachers each.
        name: Defaults to `"distiller"`.

    A schedule is a `keras.optimizers.schedules.LearningRateSchedule`, or a function of the optimizer updates made so
    far (a float32 tensor) that returns a scalar: `lambda step: keras.ops.maximum(0.1, 1 - step / 5000)`.

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
        teacher: AnyTeacher,
        distillation_losses: AnyLoss | Sequence[AnyLoss] = ("soft_targets",),
        distillation_loss_weights: Scheduled | Sequence[Scheduled] | None = None,
        student_loss_weight: Scheduled = 0.5,
        from_logits: bool | dict[str, bool] | None = None,
        teacher_preprocessing: Callable[[Any], Any] | Sequence[Callable[[Any], Any] | None] | None = None,
        teacher_weights: Sequence[float] | str | None = None,
        name: str = "distiller",
    ) -> None:
        require_tensorflow("Distiller")
        teachers = as_teachers(teacher, teacher_preprocessing)
        for one in teachers:
            check_models(student, one)
        # The student's policy decides about loss scaling; no autocast: both models cast their own inputs.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student_loss_weight = check_scheduled("student_loss_weight", student_loss_weight, check_fraction, one=True)
        self.distillation_losses = as_losses(distillation_losses)
        self.distillation_loss_weights = as_weights(distillation_loss_weights, len(self.distillation_losses))
        self.from_logits = check_from_logits(from_logits)
        self.teacher_weights = check_teacher_weights(teacher_weights, len(teachers))
        self.student = student
        # Past Keras' tracking, so that teachers and projectors are no layers of this model; saving walks attributes and
        # finds them.
        self._hide("_given", (teacher, teacher_preprocessing))
        lesson = Lesson(student, teachers, self.distillation_losses, self.from_logits, self.teacher_weights)
        self._hide("_lesson", lesson)
        self._hide("_teacher", lesson.models)
        self._trackers = Trackers(self)
        self.supports_jit = all(layer.supports_jit for model in lesson.models for layer in model._flatten_layers())
        self._build_knowledge(symbolic_inputs(student) if student.built else None, symbolic_outputs(student))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and getattr(self, "_lesson", None) is not None:
            raise AttributeError(f"`{name}` of a Distiller is fixed. Make a new one: `Distiller(..., {name}=...)`.")
        super().__setattr__(name, value)

    def _hide(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def teacher(self) -> Any:
        """The model that is imitated, or what was given for it."""
        return self._given[0]

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics are given by output name as for the student."""
        return self.student.output_names

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the student and of the projectors."""
        return [*super().variables, *(variable for part in self._own_parts() for variable in part.variables)]

    @property
    def weights(self) -> list[keras.Variable]:
        """Those of the student and of the projectors."""
        return [*super().weights, *(variable for part in self._own_parts() for variable in part.weights)]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The model's, one for each distillation loss, and what losses show beside."""
        return [*super().metrics, *self._trackers.all()]

    def _own_parts(self) -> list[keras.layers.Layer]:
        lesson = getattr(self, "_lesson", None)
        return [] if lesson is None else lesson.knowledge.parts

    @property
    def _saved_parts(self) -> list[Any]:
        """Found by Keras's saving, which walks attributes."""
        return [*self._own_parts(), *self._lesson.knowledge.extras]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs, _ = split(inputs)
        if not self._lesson.knowledge.built:
            specs = keras.tree.map_structure(_spec, inputs)
            self._build_knowledge(specs, keras.tree.map_structure(_spec, self._look(inputs, specs)))
        step = running(self)
        if step is None:
            return self.student(inputs, training=training)
        step.student = observed(lambda: self.student(inputs, training=training), self._lesson.tapped())
        return step.student.outputs

    def _look(self, inputs: Any, specs: Any) -> Any:
        """Outputs of the student for their shapes; builds it, if it is not."""
        if not self.student.built:
            return self.student(inputs, training=False)
        return keras.src.backend.compute_output_spec(lambda x: self.student(x, training=False), specs)

    def train_step(self, data: Any) -> dict[str, Any]:
        with self.one_step():
            self._ask(data, training=True)
            logs = super().train_step(data)
        self._lesson.after_step()
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        with self.one_step():
            self._ask(data, training=False)
            return super().test_step(data)

    def _ask(self, data: Any, training: bool) -> None:
        step = running(self)
        if step is not None and self._trackers.soft:
            step.taught = self._lesson.ask(data, training)

    def one_step(self) -> AbstractContextManager[None]:
        """In a training loop of your own: holds the student's inner tensors from the call to `compute_loss`.

        Example:
        ```
        with tf.GradientTape() as tape, distiller.one_step():
            y_pred = distiller(x, training=True)
            loss = distiller.compute_loss(x, y, y_pred)
        ```
        A `MeanTeacher` is told of the update that follows by `distiller.teacher.after_step()`.
        """
        return run_step(self)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; the first batch is looked at for a teacher that gives NaN."""
        for model in self._lesson.models:
            check_apart(self.student, model)
        given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments
        given.pop("self")
        if isinstance(given.get("x"), tf.data.Dataset):
            given.setdefault("shuffle", False)  # a dataset shuffles itself; Keras would warn
        with FirstBatch(self._lesson.health, self._changing).among(given.pop("callbacks", None), self) as every:
            return super().fit(**given, callbacks=every)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The total loss of a batch, a float32 scalar; see the class for the formula."""
        x, said = split(x)
        size = samples_in(x)
        parts = [self._aggregate_additional_loss(loss) for loss in self.losses]
        optimizer = getattr(self, "optimizer", None)  # without `compile` there is none
        updates = 0 if optimizer is None else optimizer.iterations
        step = running(self)
        with at_step(updates):
            hard_weight = now(self.student_loss_weight)
            if self._trackers.student is not None:
                hard = self._hard_loss(y, y_pred, sample_weight)
                self._trackers.log(self._trackers.student, hard, size)
                parts.append(hard_weight * hard)
            if self._trackers.soft:
                batch = Batch(x, said, self._seen(x, y_pred), y, sample_weight, training)
                values = self._lesson.values(batch, {} if step is None else step.taught)
                for tracker, weight, value in zip(
                    self._trackers.soft, self.distillation_loss_weights, values, strict=True
                ):
                    self._trackers.log(tracker, value, size)
                    parts.append((1 - hard_weight) * now(weight) * value)
            self._trackers.log_schedules()
        self._trackers.check_names()
        return ops.sum(ops.stack([ops.cast(part, "float32") for part in parts]))

    def _hard_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        if self._compile_loss is None or y is None:
            missing = "`compile` got no `loss`" if self._compile_loss is None else "the data holds no labels"
            raise ValueError(
                f"`student_loss_weight` is {self.student_loss_weight}, but {missing}. Give both, or distill without "
                "labels: `Distiller(..., student_loss_weight=0)`."
            )
        return self._compile_loss(y, y_pred, sample_weight)

    def _seen(self, x: Any, y_pred: Any) -> Observation:
        """What the student made in the call that returned `y_pred`."""
        step, wanted = running(self), self._lesson.tapped()
        if step is not None and step.student is not None:
            return Observation(y_pred, step.student.seen)
        if not wanted:
            return Observation(y_pred, Recording())
        if keras.src.backend.common.symbolic_scope.in_symbolic_scope():
            return Observation(y_pred, observed(lambda: self.student(x, training=False), wanted).seen)
        raise ValueError(
            "Losses on inner layers need the tensors of the call that gave `y_pred`. In a loop of your own run both in "
            "`with distiller.one_step():`."
        )

    def _build_knowledge(self, inputs: Any, outputs: Any) -> None:
        known = inputs is not None and outputs is not None
        if known or (self.student.built and not self._lesson.knowledge.needs_shapes()):
            with self.distribute_strategy.scope():
                self._lesson.knowledge.build(self.student, inputs, outputs)
            self._hide("_inputs_seen", inputs)
        self.built = self.student.built and self._lesson.knowledge.built

    def _changing(self) -> list[keras.Variable]:
        """All that a training step changes."""
        own = [*self.variables, *([] if self.optimizer is None else self.optimizer.variables)]
        return own + [variable for extra in self._lesson.knowledge.extras for variable in extra.variables]

    @functools.wraps(keras.Model.save)
    def save(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`."""
        refuse_shared(self)  # before there is half a file
        super().save(*args, **kwargs)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: what is shipped is the student."""
        raise TypeError("A Distiller is no model to ship: export its student, `distiller.student.export(...)`.")

    def __tflite_source__(self) -> dict[str, Any]:
        """Refuses: what is shipped is the student."""
        raise TypeError("A Distiller is no model to ship: convert its student, `distiller.student`.")

    def get_build_config(self) -> dict[str, Any] | None:
        seen = getattr(self, "_inputs_seen", None)
        return None if seen is None else {"inputs": shapes_of(seen)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config and not self._lesson.knowledge.built:
            keras.src.backend.compute_output_spec(self.call, specs_from(config["inputs"]))

    def get_config(self) -> dict[str, Any]:
        return distiller_config(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        return cls(**from_distiller_config(config, custom_objects))


def _spec(tensor: Any) -> keras.KerasTensor:
    return keras.KerasTensor(tensor.shape, keras.backend.standardize_dtype(tensor.dtype))
