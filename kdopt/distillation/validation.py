"""What is checked before the first step: the two models, and what each loss looks at."""

from typing import Any

import keras

from kdopt.distillation.apart import check_apart
from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.outputs import OutputPair
from kdopt.distillation.selftaught import SelfTeacher
from kdopt.distillation.teachers import symbolic_inputs


def check_models(student: Any, source: Any) -> None:
    """Refuses two models that cannot be student and teacher.

    Args:
        student: The student.
        source: A `ModelTeacher`; a `SelfTeacher`, which has no model yet; or a `TeacherCache`, which need not have one.

    Raises: TypeError for what is no `keras.Model`; ValueError for an unbuilt teacher, shared weights or unlike inputs.
    """
    teacher: Any = getattr(source, "model", None)
    if teacher is None and isinstance(source, SelfTeacher | TeacherCache):
        teacher = student
    for role, model in (("student", student), ("teacher", teacher)):
        kind = type(model)
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"`{role}` must be a keras.Model (Keras 3); got "
                + (f"the class {model.__name__}." if isinstance(model, type) else f"{kind.__module__}.{kind.__name__}.")
            )
        if isinstance(getattr(model, "student", None), keras.Model):
            raise TypeError(f"`{role}` is a Distiller, {model.name!r}: give its `student`, or its `teacher`.")
    if isinstance(source, SelfTeacher) or source.model is None:
        return
    if student is teacher:
        raise ValueError(
            "Student and teacher are the same model: it would imitate itself. Copy it first: "
            "`student = keras.models.clone_model(teacher)`."
        )
    if not teacher.built:
        raise ValueError(
            f"The teacher {teacher.name!r} is not built, so it holds no trained weights. Train or load it first (or "
            "call it on a batch, if it has none)."
        )
    check_apart(student, teacher)
    check_inputs(student, source)


def check_inputs(student: keras.Model, source: Any) -> None:
    """Refuses a teacher that cannot read what it would get, as far as shapes are known.

    Args:
        student: The student.
        source: `ModelTeacher`.

    Raises: ValueError.
    """
    ours, theirs = (getattr(model, "inputs", None) for model in (student, source.model))
    if not ours or not theirs:
        return  # not known: Keras checks it in the first step
    way = "Give `teacher_preprocessing=`, such as `keras.layers.Resizing(height, width)`."
    said = "Both models see the same batch, but the student takes"
    if source.preprocessing is not None:
        way = "Each of several teachers may have its own: a list."
        said = "`teacher_preprocessing` gives"
        inputs = symbolic_inputs(student)
        ours = keras.tree.flatten(keras.src.backend.compute_output_spec(source.preprocessing, inputs))
    if len(ours) != len(theirs):
        return  # a dict of which each picks its own
    for mine, other in zip(ours, theirs, strict=True):
        pairs = zip(mine.shape, other.shape, strict=False)
        if len(mine.shape) != len(other.shape) or any(a != b and None not in (a, b) for a, b in pairs):
            raise ValueError(
                f"{said} {tuple(mine.shape)} and the teacher {source.model.name!r} takes {tuple(other.shape)}. {way}"
            )


def check_from_logits(value: Any) -> dict[str, bool | None]:
    """`from_logits` as a dict with the keys student and teacher.

    Raises: TypeError.
    """
    given = value if isinstance(value, dict) else {"student": value, "teacher": value}
    if set(given) - {"student", "teacher"} or any(item not in (None, True, False) for item in given.values()):
        raise TypeError(
            f'`from_logits` must be True, False, None or {{"student": ..., "teacher": ...}}; got {value!r}.'
        )
    return {role: given.get(role) for role in ("student", "teacher")}


def select_outputs(loss: DistillationLoss, pairs: list[OutputPair]) -> list[OutputPair]:
    """The outputs that `loss` looks at: the one it names, or all.

    Raises: ValueError for an output that is not there.
    """
    if loss.output is None:
        return pairs
    found = [pair for pair in pairs if loss.output in (pair.index, pair.name)]
    if not found:
        raise ValueError(
            f"{type(loss).__name__}(output={loss.output!r}): the student has no such output; it has "
            f"{', '.join(f'{pair.index} = {pair.name!r}' for pair in pairs)}."
        )
    return found
