"""A second model compiled like a first one."""

from typing import Any

import keras
from keras.src.saving.serialization_lib import SafeModeScope


def compile_as(made: keras.Model, model: keras.Model) -> bool:
    """Compiles a model with the loss, metrics and options of another one, or of itself, and a new optimizer.

    Functions and losses stay the very objects, so that one's own need not be registered; metrics are new ones.

    Args:
        made: The model to compile.
        model: The model that may be compiled; one with a `compile` of its own needs `get_compile_config`.

    Returns: whether it was compiled.
    """
    if not model.compiled:
        return False
    if type(model).compile is not keras.Model.compile:
        config = model.get_compile_config()
        if config:
            made.compile_from_config(config)
        return bool(config)
    made.compile(**{name: keras.tree.map_structure(renewed, value) for name, value in _arguments(model).items()})
    if made.built:
        made.optimizer.build(made.trainable_variables)
    return True


def _arguments(model: keras.Model) -> dict[str, Any]:
    return dict(model._compile_config.config)


def renewed(value: Any) -> Any:
    """A new optimizer or metric from its config; anything else itself."""
    if not isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return value
    held = [*vars(value).values(), value]
    own = {type(one).__name__: type(one) for one in held if isinstance(one, _CONFIGURED)}
    own |= {one.__name__: one for one in held if callable(one) and hasattr(one, "__name__")}
    with SafeModeScope(False), keras.saving.custom_object_scope(own):
        return type(value).from_config(value.get_config())


_CONFIGURED = (
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.losses.Loss,
    keras.metrics.Metric,
)
