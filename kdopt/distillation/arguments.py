"""The arguments of a Distiller, from what users write to what it works with."""

from collections.abc import Callable
from typing import Any

import keras

from kdopt.core.validation import check_positive
from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.functions import FunctionLoss
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.scheduled import Scheduled, check_scheduled
from kdopt.distillation.selftaught import SelfTeacher
from kdopt.distillation.teachers import ModelTeacher


def as_losses(losses: Any) -> list[Any]:
    """A list of loss objects, from names, configs, objects and functions."""
    items = list(losses) if isinstance(losses, list | tuple) else [losses]
    if not items:
        raise ValueError("`distillation_losses` is empty; give at least one, e.g. [SoftTargets(temperature=4.0)].")
    return [_as_loss(item) for item in items]


def _as_loss(item: Any) -> Any:
    if isinstance(item, keras.distillation.DistillationLoss):
        return item
    if callable(item) and not isinstance(item, type | DISTILLATION_LOSSES.base | keras.losses.Loss):
        return FunctionLoss(item)
    if isinstance(item, keras.losses.Loss):
        raise TypeError(
            f"{type(item).__name__} is a loss of labels and predictions. Give a function of both outputs, "
            "`lambda teacher, student: ...`, or `keras.distillation.LogitsDistillation(loss=...)`."
        )
    return DISTILLATION_LOSSES.get(item)


def as_weights(weights: Any, count: int) -> list[Scheduled]:
    """One number or schedule for each loss."""
    if weights is None:
        return [1.0] * count
    if count == 1 and not isinstance(weights, list | tuple):
        weights = [weights]
    if not isinstance(weights, list | tuple) or len(weights) != count:
        raise ValueError(
            f"`distillation_loss_weights` must be a list of {count} numbers or schedules, one for each distillation "
            f"loss; got {weights!r}."
        )
    return [check_scheduled("distillation_loss_weights", weight, zero=True) for weight in weights]


def as_teachers(teacher: Any, preprocessing: Callable[[Any], Any] | Any) -> list[Any]:
    """Where the knowledge comes from, one for each teacher."""
    several = isinstance(teacher, list | tuple)
    items = list(teacher) if several else [teacher]
    if not items:
        raise ValueError("`teacher` is an empty list; give at least one model.")
    given = list(preprocessing) if isinstance(preprocessing, list | tuple) else [preprocessing] * len(items)
    if len(given) != len(items):
        raise ValueError(
            f"`teacher_preprocessing` holds {len(given)} entries for {len(items)} teachers; give one for each."
        )
    for one in given:
        if one is not None and (not callable(one) or isinstance(one, type)):
            raise TypeError(f"`teacher_preprocessing` must be a function or a layer; got {one!r}.")
    return [_as_teacher(item, function) for item, function in zip(items, given, strict=True)]


def _as_teacher(item: Any, preprocessing: Any) -> Any:
    if isinstance(item, SelfTeacher):
        if preprocessing is not None:
            raise ValueError(f"{type(item).__name__} reads what the student reads; leave `teacher_preprocessing` out.")
        return item
    if isinstance(item, TeacherCache):
        if preprocessing is not None:
            raise ValueError(
                "A TeacherCache holds what the teacher said after its own preprocessing; leave `teacher_preprocessing` "
                "out (or None in its place), and give it to `cache_teacher(..., preprocessing=)`."
            )
        return item
    return item if isinstance(item, ModelTeacher) else ModelTeacher(item, preprocessing)


def check_teacher_weights(weights: Any, count: int) -> list[float] | str:
    """One number for each teacher, or `"confidence"`.

    Raises: ValueError.
    """
    if weights is None:
        return [1.0 / count] * count
    if isinstance(weights, str) and weights == "confidence":
        if count < 2:
            raise ValueError('`teacher_weights="confidence"` weighs teachers against each other; there is one.')
        return weights
    if not isinstance(weights, list | tuple) or len(weights) != count:
        raise ValueError(
            f"`teacher_weights` must be a list of {count} numbers, one for each teacher, or 'confidence'; got "
            f"{weights!r}."
        )
    return [check_positive("teacher_weights", weight, zero=True) for weight in weights]
