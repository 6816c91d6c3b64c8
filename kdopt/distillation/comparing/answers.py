"""What two nets answer to the same inputs, as logits in NumPy."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdopt.distillation.activations import SIGMOID, SOFTMAX, output_activations
from kdopt.distillation.comparing.calibration import log_probabilities
from kdopt.distillation.comparing.labels import labels_of
from kdopt.distillation.outputs import OutputPair, as_logits, pair_outputs
from kdopt.distillation.teachers import Preprocessing

ROLES = ("teacher", "student")


class Answers:
    """Runs teacher and student on data; both in inference, their variables stay.

    Args:
        teacher, student: `keras.Model`.
        x: Inputs, array or structure of arrays.
        output: Name or index of the output, `None` if there is one.
        activation: `"softmax"`, `"sigmoid"` or `None`: as the models say.
        from_logits: For `"teacher"` and `"student"`: True, False, or `None`.
        teacher_preprocessing: Function of the student's batch that gives the teacher's, or `None`.
        batch_size: Integer >= 1.

    Attributes:
        pair: The output that is compared.
        activation: `"softmax"` or `"sigmoid"`.

    Raises: ValueError if the outputs cannot be compared.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        x: Any,
        *,
        output: str | int | None,
        activation: str | None,
        from_logits: dict[str, bool | None],
        teacher_preprocessing: Preprocessing | None,
        batch_size: int,
    ) -> None:
        first = keras.tree.map_structure(lambda leaf: leaf[: min(2, batch_size)], x)
        self._preparing = {"teacher": teacher_preprocessing, "student": None}
        theirs, ours = self._called(teacher, first, "teacher"), self._called(student, first, "student")
        pairs = pair_outputs(student, ours, theirs, output_activations(teacher), from_logits)
        self.pair = _chosen(pairs, output)
        self.activation = _activation(self.pair, activation)
        self._batch_size = batch_size
        self._steps = {role: self._step(model, role) for role, model in zip(ROLES, (teacher, student), strict=True)}

    def log_probabilities(self, x: Any, what: str) -> list[np.ndarray]:
        """Of the teacher and of the student; float64 (answers, classes), without positions that one of them masks.

        Args:
            x: Inputs.
            what: What they are, for the error.

        Raises: ValueError for outputs that are NaN or infinite.
        """
        (theirs, masked), (ours, also) = (self._logits(role, x, what) for role in ROLES)
        self._shape = theirs.shape
        units = theirs.shape[-1] if self.activation == SIGMOID else 1
        self._rows = np.repeat((masked & also).reshape(-1), units)
        if not self._rows.any():
            raise ValueError(f"Every position of output {self.pair.name!r} is masked: there is nothing to compare.")
        return [log_probabilities(one, self.activation)[self._rows] for one in (theirs, ours)]

    def labels(self, y: Any) -> np.ndarray:
        """The right class of each answer to the last inputs."""
        return labels_of(y, self._shape, self.pair.name, self.pair.index, self.activation, self._rows)

    def _logits(self, role: str, x: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(logits, whether each position counts)."""
        count = keras.tree.flatten(x)[0].shape[0]
        found = []
        for start in range(0, count, self._batch_size):
            here = slice(start, start + self._batch_size)
            batch = keras.tree.map_structure(lambda leaf, here=here: tf.convert_to_tensor(leaf[here]), x)
            found.append([part.numpy() for part in self._steps[role](batch)])
        made, seen = (np.concatenate(parts) for parts in zip(*found, strict=True))
        wrong = ~np.isfinite(made).reshape(count, -1).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"The {role} answers {int(wrong.sum())} of {count} samples ({what}) with NaN or infinite values, the "
                f"first of them number {int(np.argmax(wrong))}."
            )
        return made, seen

    def _step(self, model: keras.Model, role: str) -> Callable[[Any], Any]:
        kind = getattr(self.pair, f"{role}_kind")

        def step(batch: Any) -> tuple[Any, Any]:
            output = keras.tree.flatten(self._called(model, batch, role))[self.pair.index]
            mask = getattr(output, "_keras_mask", None)
            fits = mask is not None and len(mask.shape) == len(output.shape) - 1
            seen = tf.cast(mask, tf.bool) if fits else tf.ones(tf.shape(output)[:-1], tf.bool)
            return as_logits(output, kind, self.activation), seen

        return tf.function(step, autograph=False, reduce_retracing=True)

    def _called(self, model: keras.Model, x: Any, role: str) -> Any:
        prepare = self._preparing[role]
        return _called(model, x if prepare is None else prepare(x))


def _called(model: keras.Model, x: Any) -> Any:
    structure = getattr(model, "_inputs_struct", None)
    if isinstance(structure, list) and not isinstance(x, (list, tuple, dict)):  # Keras warns of a missing list
        x = [x]
    if not model.built:
        return model(x, training=False)
    with keras.StatelessScope():  # whatever a layer would write even in inference ends with it
        return model(x, training=False)


def _chosen(pairs: list[OutputPair], output: str | int | None) -> OutputPair:
    found = pairs if output is None else [pair for pair in pairs if output in (pair.index, pair.name)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{pair.index} = {pair.name!r}" for pair in pairs)
    raise ValueError(f"`output` must be one of the outputs {there}; got {output!r}.")


def _activation(pair: OutputPair, wanted: str | None) -> str:
    pair.check_units()
    kinds = {"teacher": pair.teacher_kind, "student": pair.student_kind}
    for role, kind in kinds.items():
        if kind is None:
            raise ValueError(
                f"Cannot tell whether output {pair.name!r} of the {role} holds logits or probabilities: its last "
                f'operation is not known. Pass `from_logits={{"{role}": True}}` (or False).'
            )
    said = {kind for kind in (*kinds.values(), wanted) if kind in (SOFTMAX, SIGMOID)}
    if len(said) > 1:
        raise ValueError(
            f"Output {pair.name!r}: the teacher ends in {kinds['teacher']!r}, the student in {kinds['student']!r}"
            + (f", `activation` is {wanted!r}" if wanted else "")
            + ". Softmax and sigmoid probabilities cannot be compared."
        )
    units = pair.student.shape[-1]
    if not said and units == 1 and not pair.told:
        raise ValueError(
            f"Output {pair.name!r} has one linear unit: a binary logit or a regression? For a binary logit pass "
            '`activation="sigmoid"`; a regression has no classes to agree on.'
        )
    found = said.pop() if said else SOFTMAX if units > 1 else SIGMOID
    if found == SOFTMAX and units == 1:
        raise ValueError(f"Output {pair.name!r} has one unit, and a softmax over one unit is always 1.")
    return found
