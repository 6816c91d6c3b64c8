"""Where the knowledge comes from: a model, several, or the student itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
from keras import ops

from kdopt.core.recording import Recording, recording
from kdopt.distillation.activations import output_activations
from kdopt.distillation.outputs import symbolic_outputs
from kdopt.distillation.taps import Tapped, tensors_of

Preprocessing = Callable[[Any], Any]


@dataclass(frozen=True)
class Observation:
    """What a teacher says of a batch.

    Attributes:
        outputs: As the model returns them.
        seen: Its tapped tensors.
    """

    outputs: Any
    seen: Recording


class Teacher(Protocol):
    """Something that says of each batch what the student should learn."""

    model: keras.Model | None  # of a cache it need not be there; then the teacher itself has a `name` and `layers`
    waits: bool  # whether it needs what the student made of the batch

    def kinds(self) -> list[str | None] | None:
        """The last activation of each output, as `output_activations`."""

    def outputs(self) -> Any:
        """Structure of KerasTensors; `None` if not known yet."""

    def tensors(self, inputs: Any) -> list[Tapped]:
        """What can be tapped, given the KerasTensors that the student reads; `None`: not known."""

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        """What it says of the inputs `x`, which the student has just seen.

        Args:
            x: As the student reads them.
            wanted: Its tensors to keep.
            student: What the student made.
            batch: The `Batch`: with what the data carry beside the inputs, and whether the step trains.
        """


class ModelTeacher:
    """A trained model that runs once a step, in inference mode.

    Args:
        model: Built `keras.Model`.
        preprocessing: Function of the student's batch that gives the teacher's. Defaults to `None`: the same batch.
    """

    waits = False

    def __init__(self, model: keras.Model, preprocessing: Preprocessing | None = None) -> None:
        self.model, self.preprocessing = model, preprocessing

    def kinds(self) -> list[str | None] | None:
        return output_activations(self.model)

    def outputs(self) -> Any:
        return symbolic_outputs(self.model)

    def tensors(self, inputs: Any) -> list[Tapped]:
        own = symbolic_inputs(self.model)
        if own is None:
            own = keras.src.backend.compute_output_spec(self._prepared, inputs)
        return tensors_of(self.model, own)

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        del student, batch
        # Whatever the teacher would write even in inference (seeds, counters, its own losses) ends with the scope.
        prepared = self._prepared(x)
        with keras.StatelessScope():
            return observed(lambda: self.model(prepared, training=False), wanted)

    def _prepared(self, x: Any) -> Any:
        return x if self.preprocessing is None else self.preprocessing(x)


def named(teacher: Teacher) -> Any:
    """What has the teacher's name and layers: its model, or what stands for it."""
    return teacher if teacher.model is None else teacher.model


def observed(run: Callable[[], Any], wanted: Sequence[Tapped]) -> Observation:
    """Runs a model and keeps the tensors that are wanted."""
    if not wanted:
        return Observation(run(), Recording())
    with recording(tapped.operation for tapped in wanted) as seen:
        outputs = run()
    return Observation(outputs, seen)


def symbolic_inputs(model: keras.Model) -> Any:
    """The structure of a Functional or Sequential model's inputs as KerasTensors; `None` if it is not known."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if model.built and model.inputs else None
    struct = getattr(model, "_inputs_struct", None)
    return struct if struct is not None else None


def confidence(logits: Sequence[Any], labels: Any) -> Any:
    """How far each teacher is to be trusted with each sample.

        w_k = (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1),     CE_k = cross entropy of teacher k and the label

    Args:
        logits: Class logits of each of K >= 2 teachers, shape (batch, ..., classes).
        labels: Class numbers, shape (batch, ...). What is no class, as -1, counts as unlabeled.

    Returns: shape (K, batch, ...), float32, sums to 1 over the teachers; 1 / K each where there is no label.

    Reference: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, eq. 2.
    """
    known = ops.logical_and(labels >= 0, labels < logits[0].shape[-1])
    classes = ops.where(known, labels, 0)
    entropies = [keras.losses.sparse_categorical_crossentropy(classes, each, from_logits=True) for each in logits]
    shares = ops.softmax(ops.stack(entropies), axis=0)
    return ops.stop_gradient(ops.where(known, (1.0 - shares) / (len(logits) - 1), 1.0 / len(logits)))
