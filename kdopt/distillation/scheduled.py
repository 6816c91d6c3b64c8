"""Numbers that may change while training: a weight, a temperature."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.validation import check_positive

Schedule = Callable[[Any], Any]
Scheduled = float | Schedule

_time = threading.local()


@contextmanager
def at_step(step: Any) -> Iterator[None]:
    """Makes `now` give the values of this step: the optimizer updates made so far."""
    before = getattr(_time, "step", None)
    _time.step = step
    try:
        yield
    finally:
        _time.step = before


def now(value: Scheduled) -> Any:
    """The value at this step: a number as it is, a schedule as a float32 scalar; outside of training at step 0."""
    if not callable(value):
        return value
    step = getattr(_time, "step", None)
    return ops.cast(value(ops.cast(0 if step is None else step, "float32")), "float32")


def check_scheduled(name: str, value: Any, check: Callable[..., float] = check_positive, **options: Any) -> Scheduled:
    """A number checked by `check`, or a schedule whose first value is.

    Args:
        name: Of the argument, for messages.
        value: A number; a `keras.optimizers.schedules.LearningRateSchedule` or its config; or a function of the step
            (optimizer updates, a float32 tensor) that returns a scalar tensor.
        check: Function (name, value, **options) -> float.

    Raises: ValueError for a number that `check` refuses; for a schedule that has one at step 0, 1, 10, ... 100,000, or
        that cannot be compiled.
    """
    if isinstance(value, dict) and "class_name" in value:
        value = keras.saving.deserialize_keras_object(value)
    if not callable(value):
        return check(name, value, **options)
    shape = _compiled_shape(name, value)
    if shape:
        raise ValueError(f"`{name}`: a schedule returns a scalar for each step; {value!r} returns shape {shape}.")
    for step in (0, *(10**power for power in range(6))):
        with at_step(step):
            found = float(ops.convert_to_numpy(now(value)))
        try:
            check(f"{name} at step {step}", found, **options)
        except ValueError as error:
            raise ValueError(
                f"{error} Schedules are tried at steps up to 100,000, which a training may not reach: let it end, as "
                "by `keras.ops.maximum(..., ...)`."
            ) from None
    return value


def _compiled_shape(name: str, value: Schedule) -> tuple[int | None, ...]:
    try:
        traced = tf.function(lambda step: ops.cast(value(step), "float32"), autograph=False)
        return tuple(traced.get_concrete_function(tf.TensorSpec((), "float32")).structured_outputs.shape)
    except Exception as error:
        raise ValueError(
            f"`{name}`: {value!r} cannot be computed inside the compiled step ({type(error).__name__}). A schedule "
            "gets the updates made so far as a float32 tensor: compute with it, as in "
            "`lambda step: keras.ops.where(step < 1000, 1.0, 0.1)`, without `if`, `int` or `range` of Python, or take "
            "one of `keras.optimizers.schedules`."
        ) from error


def to_config(value: Scheduled) -> Any:
    """For `get_config`: a number as it is, a schedule serialized."""
    return keras.saving.serialize_keras_object(value) if callable(value) else value
