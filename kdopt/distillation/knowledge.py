"""What is to be learned: the losses, bound to the tensors of both models that they look at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kdopt.distillation.functions import FunctionLoss
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.outputs import OutputPair, pair_outputs
from kdopt.distillation.reduction import common_mask, reduced, single_weight, weight_of
from kdopt.distillation.stock import stock_loss, stock_taps
from kdopt.distillation.taps import STAGES, Tapped, resolve, tensors_of
from kdopt.distillation.teachers import Observation, Teacher, named
from kdopt.distillation.validation import select_outputs


@dataclass(frozen=True)
class Batch:
    """What a step knows.

    Attributes:
        x: What the student read.
        said: What the data carry of cached teachers, by key.
        student: What the student made.
        labels: As `fit` gives them, or None.
        sample_weight: As `fit` gives them, or None.
        training: Whether the step trains.
    """

    x: Any
    said: dict[str, Any]
    student: Observation
    labels: Any
    sample_weight: Any
    training: bool


@dataclass(frozen=True)
class Term:
    """One loss against one teacher.

    Attributes:
        loss: A `DistillationLoss` or a loss of `keras.distillation`.
        teacher: Number of the teacher.
        student_taps, teacher_taps: The inner tensors it compares; empty for a loss on outputs.
    """

    loss: Any
    teacher: int
    student_taps: tuple[Tapped, ...] = ()
    teacher_taps: tuple[Tapped, ...] = ()

    def value(self, pairs: list[OutputPair], taught: Observation, batch: Batch, sample_weight: Any) -> Any:
        """The weighted mean over samples, a float32 scalar."""
        seen = batch.student.seen
        ours, theirs = [tap.of(seen) for tap in self.student_taps], [tap.of(taught.seen) for tap in self.teacher_taps]
        if isinstance(self.loss, DistillationLoss):
            self.loss.training = batch.training
        if isinstance(self.loss, FeatureLoss):
            return self._of_features(theirs, ours, batch, sample_weight)
        if isinstance(self.loss, FunctionLoss):
            return self.loss.value(taught.outputs, batch.student.outputs, single_weight(sample_weight, self.loss.name))
        if isinstance(self.loss, DistillationLoss):
            return self._of_outputs(pairs, batch, sample_weight)
        return stock_loss(self.loss, pairs, batch.student.outputs, sample_weight, theirs, ours)

    def _of_outputs(self, pairs: list[OutputPair], batch: Batch, sample_weight: Any) -> Any:
        total: Any = 0.0
        for pair in select_outputs(self.loss, pairs):
            if self.loss.reads_logits:
                activation = pair.activation(self.loss.activation)
                arguments: tuple[Any, ...] = (*pair.logits(activation), activation)
            else:
                arguments = pair.raw()
            extra, mask = {}, common_mask(pair.teacher, pair.student)
            if self.loss.uses_labels:
                extra["labels"] = labels_of(batch.labels, pair, len(pairs), classes=self.loss.reads_logits)
            if self.loss.uses_mask:
                extra["mask"] = mask
            values = self.loss.compute_loss(*arguments, **extra)
            if mask is not None and len(mask.shape) > len(values.shape):
                raise ValueError(
                    f"{type(self.loss).__name__} gives one value a sample and cannot leave masked positions out; "
                    f"output {pair.name!r} of the student has a mask."
                )
            weight = weight_of(sample_weight, pair.index, len(pairs), pair.name)
            total = total + reduced(values, weight, mask, type(self.loss).__name__)
        return total

    def _of_features(self, theirs: list[Any], ours: list[Any], batch: Batch, sample_weight: Any) -> Any:
        sample_weight = single_weight(sample_weight, self.loss.name)
        total: Any = 0.0
        computed = self.loss.compute(theirs, ours)
        for place, values in enumerate(computed):
            mask = None
            if self.loss.matches_positions and place < len(ours) and len(values.shape) > 1:
                mask = common_mask(theirs[place].output, ours[place].output)
            # Features have zeros at masked positions; where there is a value for each, these do not count.
            fits = mask is not None and mask.shape[1] == values.shape[1]
            total = total + reduced(values, sample_weight, mask if fits else None, type(self.loss).__name__)
        return total


class Knowledge:
    """All terms, and what the losses train of their own.

    Args:
        losses: `DistillationLoss`, or losses of `keras.distillation`.
        teachers: Where the knowledge comes from.
    """

    def __init__(self, losses: Sequence[Any], teachers: Sequence[Teacher]) -> None:
        self.losses, self.teachers = list(losses), list(teachers)
        self.terms: list[list[Term]] = []

    @property
    def built(self) -> bool:
        return bool(self.terms)

    @property
    def parts(self) -> list[keras.layers.Layer]:
        """Layers that are trained with the student."""
        losses = [term.loss for terms in self.terms for term in terms]
        return [part for loss in losses if isinstance(loss, DistillationLoss) for part in loss.parts]

    @property
    def extras(self) -> list[Any]:
        """What is saved beside them: discriminators and their optimizers, memory banks."""
        losses = [term.loss for terms in self.terms for term in terms]
        return [extra for loss in losses if isinstance(loss, DistillationLoss) for extra in loss.extras]

    def student_taps(self) -> list[Tapped]:
        return [tap for terms in self.terms for term in terms for tap in term.student_taps]

    def teacher_taps(self, teacher: int) -> list[Tapped]:
        found = [term for terms in self.terms for term in terms if term.teacher == teacher]
        return [tap for term in found for tap in term.teacher_taps]

    def needs_shapes(self) -> bool:
        """Whether a loss taps layers or trains something of its own, so that it is bound to known shapes."""
        own = [loss for loss in self.losses if isinstance(loss, DistillationLoss)]
        makes = any(type(loss).build_for is not DistillationLoss.build_for for loss in own)
        return makes or any(taps_of(loss) is not None for loss in self.losses)

    def build(self, student: keras.Model, inputs: Any, outputs: Any) -> None:
        """Binds taps to tensors and makes projectors.

        Args:
            student: Built model.
            inputs, outputs: KerasTensors as the student takes and gives them; may be None where no loss needs shapes.
        """
        nothing: dict[str, bool | None] = {"student": None, "teacher": None}
        pairs = [] if outputs is None else pair_outputs(student, outputs, outputs, None, nothing)
        from_student: list[Tapped] | None = None
        terms = []
        for loss in self.losses:
            of_loss = []
            for number, teacher in enumerate(self.teachers):
                own = loss if not isinstance(loss, DistillationLoss) else loss.fresh()
                if own is not loss and number:
                    own.name = f"{loss.name}_teacher_{number}"
                wanted = taps_of(own)
                if wanted is None:
                    if isinstance(own, DistillationLoss) and pairs:
                        own.build_for([int(pair.student.shape[-1] or 0) for pair in select_outputs(own, pairs)])
                    of_loss.append(Term(own, number))
                    continue
                from_student = tensors_of(student, inputs) if from_student is None else from_student
                ours, theirs = _paired(own, wanted, (from_student, student), (teacher.tensors(inputs), named(teacher)))
                if isinstance(own, FeatureLoss):
                    own.build(theirs, ours)
                of_loss.append(Term(own, number, tuple(ours), tuple(theirs)))
            terms.append(of_loss)
        self.terms = terms

    def values(self, pairs: list[list[OutputPair]], taught: list[Observation], batch: Batch, weights: Any) -> list[Any]:
        """The value of each loss, a float32 scalar: over the teachers, weighted.

        Args:
            pairs: For each teacher the outputs of both.
            taught: What each teacher says.
            batch: The step.
            weights: One number for each teacher, or a tensor of shape (teachers, batch, ...).
        """
        found = []
        for terms in self.terms:
            total: Any = 0.0
            for term in terms:
                weight, sample_weight = weights[term.teacher], batch.sample_weight
                if not isinstance(weight, float):  # for each sample
                    sample_weight = weight if sample_weight is None else weight * _beside(sample_weight, weight)
                    weight = 1.0
                total = total + weight * term.value(pairs[term.teacher], taught[term.teacher], batch, sample_weight)
            found.append(total)
        return found


def _beside(sample_weight: Any, weight: Any) -> Any:
    own = ops.cast(weight_of(sample_weight, 0, 1), "float32")
    return ops.reshape(own, (*ops.shape(own), *[1] * (len(weight.shape) - len(own.shape))))


def labels_of(labels: Any, pair: OutputPair, outputs: int, classes: bool = True) -> Any:
    """The labels of one output; None without.

    Args:
        labels: As `fit` gives them.
        pair: The output.
        outputs: How many the model has.
        classes: Whether they are class numbers or one-hot rows, to be returned as class numbers, int32 of shape
            (batch, ...); else they come back in float32, in the shape of the output.
    """
    if labels is None:
        return None
    flat = keras.tree.flatten(labels)
    if isinstance(labels, dict):  # by name, as Keras takes them for a list of outputs too
        own = labels.get(pair.name)
        if own is None:
            return None
        flat = [own] * outputs
    if len(flat) != outputs:
        raise ValueError(f"The data holds {len(flat)} label tensors for {outputs} outputs; give one for each.")
    own = ops.convert_to_tensor(flat[pair.index])
    if not classes:
        wanted = pair.student.shape
        if None not in (*own.shape[1:], *wanted[1:]) and math.prod(own.shape[1:]) != math.prod(wanted[1:]):
            raise ValueError(
                f"Output {pair.name!r} has shape {tuple(wanted)}, but its labels have shape {tuple(own.shape)}; this "
                "loss compares them number by number."
            )
        return ops.reshape(ops.cast(own, "float32"), ops.shape(pair.student))
    if len(own.shape) == len(pair.student.shape):
        return ops.cast(ops.squeeze(own, -1) if own.shape[-1] == 1 else ops.argmax(own, axis=-1), "int32")
    return ops.cast(own, "int32")


def taps_of(loss: Any) -> tuple[Any, Any] | None:
    """(student taps, teacher taps); None for a loss on outputs."""
    if isinstance(loss, FeatureLoss):
        return loss.student_tap, loss.student_tap if loss.teacher_tap is None else loss.teacher_tap
    return None if isinstance(loss, DistillationLoss) else stock_taps(loss)


def _paired(
    loss: Any,
    wanted: tuple[Any, Any],
    student: tuple[list[Tapped], keras.Model],
    teacher: tuple[list[Tapped], keras.Model],
) -> tuple[list[Tapped], list[Tapped]]:
    ours = resolve(wanted[0], *student, "student")
    theirs = resolve(wanted[1], *teacher, "teacher")
    if len(ours) == len(theirs):
        return ours, theirs
    if wanted == (STAGES, STAGES):
        sizes = {tap.shape[1:-1]: tap for tap in theirs}
        both = [(tap, sizes[tap.shape[1:-1]]) for tap in ours if tap.shape[1:-1] in sizes]
        if both:
            return [one for one, _ in both], [other for _, other in both]
    raise ValueError(
        f"{type(loss).__name__} pairs the taps of student and teacher in order, but there are {len(ours)} in the "
        f"student ({', '.join(map(repr, ours))}) and {len(theirs)} in the teacher ({', '.join(map(repr, theirs))}). "
        "Name as many on each side."
    )
