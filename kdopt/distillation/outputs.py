"""The outputs of student and teacher, one beside the other, and as class logits."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kdopt.distillation.activations import LINEAR, SIGMOID, SOFTMAX, output_activations

PROBABILITIES = "probabilities"  # the user said so, without saying which kind
# Smallest p and smallest 1 - p that are told from 0 in each dtype; below, a probability counts as this.
_FLOORS = {"float16": (2.0**-25, 2.0**-12), "bfloat16": (1e-30, 2.0**-9), "float64": (1e-30, 2.0**-54)}
_FLOORS_FLOAT32 = (1e-30, 2.0**-25)


@dataclass(frozen=True)
class OutputPair:
    """One output of both nets.

    Attributes:
        index: Position in `keras.tree.flatten` of the model's outputs.
        name: As the user names it: dict key or output name, else `"output_{index}"`.
        student, teacher: Tensors of shape (batch, ..., units), as the models return them.
        student_kind, teacher_kind: `"linear"`, `"softmax"`, `"sigmoid"`, `"probabilities"`; `None` = not known.
        told: True if `from_logits=` was given for one of the two.
    """

    index: int
    name: str
    student: Any
    teacher: Any
    student_kind: str | None
    teacher_kind: str | None
    told: bool

    def check_units(self) -> None:
        """Refuses outputs without an axis for the units.

        Raises: ValueError.
        """
        if len(self.student.shape) < 2:
            raise ValueError(
                f"Output {self.name!r} has shape {tuple(self.student.shape)}: one number a sample without an axis for "
                "units. Let both models end in shape (batch, units), e.g. in `Reshape((1,))`."
            )

    def activation(self, wanted: str | None = None) -> str:
        """`"softmax"` or `"sigmoid"`: how the logits of this output become probabilities.

        Args:
            wanted: What the loss asks for; `None` = as the models say.

        Raises: ValueError if it cannot be known, or if models and loss disagree.
        """
        self.check_units()
        for role, kind in (("student", self.student_kind), ("teacher", self.teacher_kind)):
            if kind is None:
                raise ValueError(
                    f"Cannot tell whether output {self.name!r} of the {role} holds logits or probabilities: its last "
                    f"operation is not known. Pass `from_logits=True` (or False, or a dict such as "
                    f'{{"{role}": True}}), or give the model an attribute `output_activation`: "linear", "softmax" or '
                    f'"sigmoid".'
                )
        said = {kind for kind in (self.student_kind, self.teacher_kind, wanted) if kind in (SOFTMAX, SIGMOID)}
        if len(said) > 1:
            raise ValueError(
                f"Output {self.name!r}: the student ends in {self.student_kind!r}, the teacher in "
                f"{self.teacher_kind!r}, the loss asks for {wanted or 'whatever they have'!r}. Softmax and sigmoid "
                "probabilities cannot be compared; let both models end in the same, or in logits."
            )
        units = self.student.shape[-1] if len(self.student.shape) else None
        found = said.pop() if said else self._of_units(units)
        if found == SOFTMAX and units == 1:
            raise ValueError(
                f"Output {self.name!r} has one unit, and a softmax over one unit is always 1: nothing to learn. End "
                'binary models in sigmoid or in a logit, with `SoftTargets(activation="sigmoid")`.'
            )
        return found

    def _of_units(self, units: int | None) -> str:
        if units != 1:
            return SOFTMAX
        if self.told:
            return SIGMOID
        raise ValueError(
            f"Output {self.name!r} has one linear unit: a binary logit or a regression? For a binary logit pass "
            '`SoftTargets(activation="sigmoid")` or `from_logits=True`; for a regression choose the '
            "outputs to distill with `SoftTargets(output=...)`."
        )

    def raw(self) -> tuple[Any, Any]:
        """(teacher, student) in float32 as the models give them; the teacher's carry no gradient."""
        self.check_units()
        return ops.stop_gradient(ops.cast(self.teacher, "float32")), ops.cast(self.student, "float32")

    def logits(self, activation: str) -> tuple[Any, Any]:
        """(teacher, student) as float32 logits; the teacher's carry no gradient."""
        teacher = as_logits(self.teacher, self.teacher_kind, activation)
        return ops.stop_gradient(teacher), as_logits(self.student, self.student_kind, activation)


def as_logits(values: Any, kind: str | None, activation: str) -> Any:
    """Model outputs as float32 logits.

    Keras keeps the logits beside a softmax or sigmoid output; they are exact, and their gradient survives float16.
    Otherwise log p (softmax) or log p - log(1 - p) (sigmoid), with p and 1 - p kept above what the dtype resolves.

    Args:
        values: Tensor of shape (batch, ..., units).
        kind: `"linear"` if they are logits already, anything else for probabilities.
        activation: `"softmax"` or `"sigmoid"`.

    Returns: float32, the shape of `values`.
    """
    if kind == LINEAR:
        return ops.cast(values, "float32")
    kept = getattr(values, "_keras_logits", None)
    if kept is not None and kept.shape == values.shape:
        return ops.cast(kept, "float32")
    low, high = _FLOORS.get(keras.backend.standardize_dtype(values.dtype), _FLOORS_FLOAT32)
    p = ops.cast(values, "float32")
    log_p = ops.log(ops.maximum(p, low))
    return log_p if activation == SOFTMAX else log_p - ops.log(ops.maximum(1.0 - p, high))


def symbolic_outputs(model: keras.Model) -> Any:
    """The structure of a Functional or Sequential model's outputs as KerasTensors; `None` if not known yet."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    return outputs[0] if isinstance(model, keras.Sequential) else model.output


def pair_outputs(
    student: keras.Model,
    student_outputs: Any,
    teacher_outputs: Any,
    teacher_kinds: list[str | None] | None,
    from_logits: dict[str, bool | None],
) -> list[OutputPair]:
    """Lines up the outputs of both nets.

    Args:
        student: The model.
        student_outputs, teacher_outputs: What the models return: a tensor, or a list or dict of them, symbolic or real.
        teacher_kinds: What `output_activations` says of the teacher.
        from_logits: For `"student"` and `"teacher"`: True, False, or None = read it from the last activation.

    Raises: ValueError if structures or shapes differ, with both.
    """
    ours, theirs = keras.tree.flatten(student_outputs), keras.tree.flatten(teacher_outputs)
    if len(ours) != len(theirs) or _keys(student_outputs) != _keys(teacher_outputs):
        raise ValueError(
            "Student and teacher must return the same outputs. The student returns "
            f"{_describe(student_outputs)}, the teacher {_describe(teacher_outputs)}. Cut or rename the teacher's: "
            "`keras.Model(teacher.inputs, ...)`."
        )
    names = _names(student, student_outputs, len(ours))
    for name, s, t in zip(names, ours, theirs, strict=True):
        if not _compatible(s.shape, t.shape):
            raise ValueError(
                f"Output {name!r} differs in shape: student {tuple(s.shape)}, teacher {tuple(t.shape)}. Both must "
                "give the same classes (and positions) for the same input."
            )
    told = any(value is not None for value in from_logits.values())
    student_kinds = kinds_of(output_activations(student), "student", len(ours), from_logits["student"])
    kinds = kinds_of(teacher_kinds, "teacher", len(ours), from_logits["teacher"])
    rows = enumerate(zip(names, ours, theirs, student_kinds, kinds, strict=True))
    return [OutputPair(index, name, s, t, s_kind, t_kind, told) for index, (name, s, t, s_kind, t_kind) in rows]


def kinds_of(found: list[str | None] | None, role: str, count: int, from_logits: bool | None) -> list[str | None]:
    """The kind of each output, as `OutputPair` has it.

    Args:
        found: What `output_activations` says of the model.
        role: `"student"` or `"teacher"`, for messages.
        count: Number of outputs.
        from_logits: What the user says: True, False, or None = as found.

    Raises: ValueError if the model describes another number of outputs.
    """
    if from_logits:
        return [LINEAR] * count
    found = found or [None] * count
    if len(found) != count:
        raise ValueError(
            f"The {role} returns {count} outputs, but its `output_activation` describes {len(found)}; give one each."
        )
    if from_logits is None:
        return found
    return [kind if kind in (SOFTMAX, SIGMOID) else PROBABILITIES for kind in found]


def _keys(outputs: Any) -> list[str] | None:
    return sorted(outputs) if isinstance(outputs, dict) else None


def _names(model: keras.Model, outputs: Any, count: int) -> list[str]:
    keys = _keys(outputs) or getattr(model, "output_names", None) or []
    return list(keys) if len(keys) == count else [f"output_{index}" for index in range(count)]


def _compatible(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def _describe(outputs: Any) -> str:
    return str(keras.tree.map_structure(lambda tensor: "x".join(map(str, tensor.shape)), outputs))
