"""The teachers of one student, and what it learns from them."""

from collections.abc import Sequence
from typing import Any

import keras

from kdopt.core.recording import Recording
from kdopt.distillation.activations import SOFTMAX
from kdopt.distillation.health import Health
from kdopt.distillation.joined import split
from kdopt.distillation.knowledge import Batch, Knowledge, labels_of, taps_of
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.outputs import OutputPair, pair_outputs, symbolic_outputs
from kdopt.distillation.selftaught import SelfTeacher
from kdopt.distillation.stock import check_stock
from kdopt.distillation.taps import Tapped
from kdopt.distillation.teachers import Observation, Teacher, confidence, named
from kdopt.distillation.validation import select_outputs


class Lesson:
    """Asks the teachers and computes the losses.

    Args:
        student: The student.
        teachers: One or more.
        losses: `DistillationLoss`, or losses of `keras.distillation`.
        from_logits: For `"student"` and `"teacher"`: True, False, or None = read it from the last activation.
        weights: One number for each teacher, or `"confidence"`.

    Raises: ValueError where the outputs of both, or a loss and the outputs, do not fit; as far as they are known.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Sequence[Teacher],
        losses: Sequence[Any],
        from_logits: dict[str, bool | None],
        weights: list[float] | str,
    ) -> None:
        self.student, self.teachers = student, list(teachers)
        self.from_logits, self.weights = from_logits, weights
        for teacher in self.teachers:
            if isinstance(teacher, SelfTeacher):
                teacher.bind(student)
        self.knowledge = Knowledge(losses, self.teachers)
        self.health = [Health(named(teacher).name) for teacher in self.teachers]
        self._compared = isinstance(weights, str) or any(taps_of(loss) is None for loss in losses)
        self._check(losses)

    @property
    def models(self) -> list[keras.Model]:
        """Of the teachers that have one, without the student."""
        own = [teacher.model for teacher in self.teachers if teacher.model is not self.student]
        return [model for model in own if model is not None]

    def tapped(self) -> list[Tapped]:
        """Inner tensors of the student that are looked at; also by a teacher that is the student itself."""
        found = self.knowledge.student_taps()
        for number, teacher in enumerate(self.teachers):
            found += self.knowledge.teacher_taps(number) if teacher.model is self.student else []
        return found

    def ask(self, data: Any, training: bool) -> dict[int, Observation]:
        """What the teachers say that need not wait for the student, by number.

        Asked before the gradient tape begins, which would hold all their tensors.

        Args:
            data: As a training step gets it.
            training: Whether the step trains.
        """
        if not self.knowledge.built:
            return {}
        x, said = split(keras.utils.unpack_x_y_sample_weight(data)[0])
        batch = Batch(x, said, Observation(None, Recording()), None, None, training)
        return {number: self._heard(number, batch) for number, one in enumerate(self.teachers) if not one.waits}

    def values(self, batch: Batch, asked: dict[int, Observation]) -> list[Any]:
        """The value of each loss, a float32 scalar.

        Args:
            batch: The step.
            asked: What `ask` gave.
        """
        numbers = range(len(self.teachers))
        taught = [asked[number] if number in asked else self._heard(number, batch) for number in numbers]
        pairs = [self._pairs(number, batch.student.outputs, taught[number].outputs) for number in numbers]
        for health, said, own in zip(self.health, taught, pairs, strict=True):
            health.count(batch.x, said.outputs, own, self.from_logits)
        weights = self._confidence(pairs, batch) if isinstance(self.weights, str) else self.weights
        return self.knowledge.values(pairs, taught, batch, weights)

    def after_step(self) -> None:
        """Called after the student was updated."""
        for teacher in self.teachers:
            if isinstance(teacher, SelfTeacher):
                teacher.after_step()

    def _heard(self, number: int, batch: Batch) -> Observation:
        return self.teachers[number].observe(batch.x, self.knowledge.teacher_taps(number), batch.student, batch)

    def _pairs(self, number: int, student_outputs: Any, teacher_outputs: Any) -> list[OutputPair]:
        """None where only inner layers are compared: then the two may have outputs as different as they like."""
        if not self._compared:
            return []
        kinds = self.teachers[number].kinds()
        return pair_outputs(self.student, student_outputs, teacher_outputs, kinds, self.from_logits)

    def _confidence(self, pairs: list[list[OutputPair]], batch: Batch) -> Any:
        labels = labels_of(batch.labels, pairs[0][0], len(pairs[0]))
        if labels is None or len(pairs[0]) > 1:
            raise ValueError(
                '`teacher_weights="confidence"` compares what the teachers say with the labels of one output; '
                f"{'the data holds no labels' if labels is None else 'the model has several outputs'}. Give numbers."
            )
        _check_confidence(pairs)
        return confidence([own[0].logits(own[0].activation())[0] for own in pairs], labels)

    def _check(self, losses: Sequence[Any]) -> None:
        """Says at construction what would fail in the first step, where both models' outputs are known."""
        for loss in losses:
            if not isinstance(loss, DistillationLoss):
                for teacher in self.teachers:
                    check_stock(loss, self.student, teacher.model)
        ours = symbolic_outputs(self.student)
        for number, teacher in enumerate(self.teachers):
            theirs = teacher.outputs()
            if ours is None or theirs is None:
                continue
            pairs = self._pairs(number, ours, theirs)
            if isinstance(self.weights, str):
                _check_confidence([pairs])
            for loss in losses:
                if isinstance(loss, DistillationLoss) and loss.on_outputs:
                    for pair in select_outputs(loss, pairs) if loss.reads_logits else ():
                        pair.activation(loss.activation)


def _check_confidence(pairs: list[list[OutputPair]]) -> None:
    for own in pairs:
        if len(own) == 1 and own[0].activation() != SOFTMAX:
            raise ValueError(
                '`teacher_weights="confidence"` asks how sure each teacher is of the one class of a sample; output '
                f"{own[0].name!r} ends in sigmoid units, which are no classes of one. Give numbers."
            )
