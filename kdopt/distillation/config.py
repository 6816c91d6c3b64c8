"""A Distiller as a config, and back."""

from typing import Any

import keras

from kdopt.distillation.apart import shared_layers
from kdopt.distillation.scheduled import to_config


def distiller_config(distiller: Any) -> dict[str, Any]:
    """The constructor's arguments, as JSON holds them.

    Raises: ValueError for layers that student and teacher share: Keras would make each twice, and give weights to one.
    """
    teacher, preprocessing = distiller._given
    refuse_shared(distiller)
    weights = distiller.teacher_weights
    return {
        "student": _serialized(distiller.student),
        "teacher": _each(_serialized, teacher),
        **losses_config(distiller),
        "from_logits": dict(distiller.from_logits),
        "teacher_preprocessing": _each(_serialized, preprocessing),
        "teacher_weights": weights if isinstance(weights, str) else list(weights),
        "name": distiller.name,
    }


def refuse_shared(distiller: Any) -> None:
    """Refuses to save layers that student and teacher share.

    Raises: ValueError.
    """
    for model in distiller._lesson.models:
        if shared := shared_layers(distiller.student, model):
            raise ValueError(
                f"Student and teacher share layers ({', '.join(layer.name for layer in shared[:3])}), which a saved "
                "Distiller would not get back as one. Save `distiller.student` and the teacher by themselves, or only "
                "the weights (`save_weights`)."
            )


def losses_config(distiller: Any) -> dict[str, Any]:
    """What is learned, as JSON holds it."""
    return {
        "distillation_losses": [_serialized(loss) for loss in distiller.distillation_losses],
        "distillation_loss_weights": [to_config(weight) for weight in distiller.distillation_loss_weights],
        "student_loss_weight": to_config(distiller.student_loss_weight),
    }


def from_distiller_config(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> dict[str, Any]:
    """The constructor's arguments."""

    def made(value: Any) -> Any:
        return None if value is None else keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

    def scheduled(value: Any) -> Any:
        return made(value) if isinstance(value, dict) else value

    return {
        **config,
        "student": made(config["student"]),
        "teacher": _each(made, config["teacher"]),
        "distillation_losses": [made(loss) for loss in config["distillation_losses"]],
        "distillation_loss_weights": [scheduled(weight) for weight in config["distillation_loss_weights"]],
        "student_loss_weight": scheduled(config["student_loss_weight"]),
        "teacher_preprocessing": _each(made, config.get("teacher_preprocessing")),
        "teacher_weights": config.get("teacher_weights"),
    }


def shapes_of(inputs: Any) -> Any:
    """KerasTensors as JSON holds them."""
    if isinstance(inputs, dict):
        return {"dict": {name: shapes_of(value) for name, value in inputs.items()}}
    if isinstance(inputs, list | tuple):
        return {"list": [shapes_of(value) for value in inputs]}
    return {"shape": list(inputs.shape), "dtype": inputs.dtype}


def specs_from(config: Any) -> Any:
    """What `shapes_of` was given."""
    if "dict" in config:
        return {name: specs_from(value) for name, value in config["dict"].items()}
    if "list" in config:
        return [specs_from(value) for value in config["list"]]
    return keras.KerasTensor(tuple(config["shape"]), config["dtype"])


def _serialized(value: Any) -> Any:
    return None if value is None else keras.saving.serialize_keras_object(value)


def _each(function: Any, value: Any) -> Any:
    return [function(one) for one in value] if isinstance(value, list | tuple) else function(value)
