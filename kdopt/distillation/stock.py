"""The loss objects of `keras.distillation` in our Distiller."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.notices import warn_user
from kdopt.core.recording import Recorded
from kdopt.distillation.outputs import OutputPair


def check_stock(loss: Any, student: keras.Model, teacher: keras.Model | None) -> None:
    """Refuses at construction what cannot be computed, and warns of a loss that is not what it says.

    Args:
        loss: Of `keras.distillation`.
        student: The student.
        teacher: The teacher; None if only a cache of it is there.

    Raises: ValueError for a loss on an inner layer of one model alone, and what the loss's own validation raises.
    """
    names = {role: getattr(loss, f"{role}_layer_name", None) for role in ("teacher", "student")}
    if None in names.values() and any(names.values()):
        raise ValueError(
            f"{type(loss).__name__} compares a layer of one model with the outputs of the other: {names}. Name a layer "
            "of each, or none (compares the outputs)."
        )
    if _is_logits(loss) and any(part is keras.losses.kl_divergence for part in keras.tree.flatten(loss.loss)):
        warn_user(
            "LogitsDistillation(loss='kl_divergence') resolves to a function that Keras applies to the logits without "
            "a softmax, clipped to [0, 1]; the result is no divergence of probabilities. Pass "
            "`loss=keras.losses.KLDivergence()`, or use kdopt's `SoftTargets`."
        )
    # Its check of names knows no nested or subclassed models; taps do.
    if teacher is not None and not any(names.values()):
        loss.validate_model_compatibility(teacher, student)


def stock_taps(loss: Any) -> tuple[str, str] | None:
    """(layer of the student, layer of the teacher) that a loss compares; None for one on outputs."""
    student, teacher = (getattr(loss, f"{role}_layer_name", None) for role in ("student", "teacher"))
    return (student, teacher) if student and teacher else None


def stock_loss(
    loss: Any,
    pairs: list[OutputPair],
    structure: Any,
    sample_weight: Any,
    teacher_seen: Sequence[Recorded] = (),
    student_seen: Sequence[Recorded] = (),
) -> Any:
    """The scalar of a `keras.distillation` loss for one batch.

    `LogitsDistillation` gets logits even where the models end in probabilities; any other loss gets the outputs as
    they are.

    Args:
        loss: `keras.distillation.DistillationLoss`.
        pairs: Outputs of both nets.
        structure: The student's outputs, whose nesting is kept.
        sample_weight: What `fit` gave; must be None.
        teacher_seen, student_seen: The tapped tensor of each model, for a loss on inner layers.

    Raises: ValueError where the loss's own mean over the batch cannot honor weights, masks or replicas.
    """
    _refuse_weights(loss, pairs, sample_weight)
    if student_seen:
        structure = student_seen[0].output
        _check_shapes(loss, teacher_seen[0].output.shape, structure.shape)
        tensors = [(ops.stop_gradient(_float32(teacher_seen[0].output)), _float32(structure))]
    elif _is_logits(loss):
        tensors = [pair.logits(_softmax(loss, pair)) for pair in pairs]
    else:
        tensors = [(ops.stop_gradient(_float32(pair.teacher)), _float32(pair.student)) for pair in pairs]
    teacher, student = (keras.tree.pack_sequence_as(structure, list(side)) for side in zip(*tensors, strict=True))
    loss.validate_outputs(teacher, student)
    value = ops.convert_to_tensor(loss.compute_loss(teacher, student))
    if len(value.shape):
        raise ValueError(f"{type(loss).__name__}.compute_loss must return a scalar; got shape {tuple(value.shape)}.")
    return ops.cast(value, "float32")


def _check_shapes(loss: Any, teacher: Any, student: Any) -> None:
    same = len(teacher) == len(student) and all(a == b or None in (a, b) for a, b in zip(teacher, student, strict=True))
    if type(loss) is keras.distillation.FeatureDistillation and not same:
        raise ValueError(
            f"FeatureDistillation of Keras compares tensors of equal shapes; the teacher's is {tuple(teacher)}, the "
            f"student's {tuple(student)}. `kdopt.distillation.losses.Hint` projects one to the other."
        )


def _is_logits(loss: Any) -> bool:
    return isinstance(loss, keras.distillation.LogitsDistillation)


def _float32(values: Any) -> Any:
    return ops.cast(values, "float32")


def _softmax(loss: Any, pair: OutputPair) -> str:
    if pair.activation() != "softmax":
        raise ValueError(
            f"LogitsDistillation applies a softmax, but output {pair.name!r} is made of sigmoid units. Use kdopt's "
            "`SoftTargets`, which knows both."
        )
    return "softmax"


def _refuse_weights(loss: Any, pairs: list[OutputPair], sample_weight: Any) -> None:
    name = type(loss).__name__
    masked = any(getattr(pair.student, "_keras_mask", None) is not None for pair in pairs)
    if sample_weight is not None or masked:
        raise ValueError(
            f"{name} averages over the batch itself and cannot use sample_weight, class_weight or masks. Use kdopt's "
            "`SoftTargets`, or a `DistillationLoss` of your own."
        )
    parts = [part for part in keras.tree.flatten(getattr(loss, "loss", None)) if part is not None]
    # Keras scales the mean of a Loss object by 1 / replicas, a plain function's not.
    scaled = parts and all(isinstance(part, keras.losses.Loss) for part in parts)
    if tf.distribute.get_strategy().num_replicas_in_sync > 1 and not scaled:
        raise ValueError(
            f"{name} under tf.distribute needs loss objects such as `keras.losses.KLDivergence()`, not names or "
            "functions, which Keras does not scale to the number of replicas."
        )
