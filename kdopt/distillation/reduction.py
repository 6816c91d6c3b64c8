"""From one value per sample to the scalar that is trained: weights, masks and replicas as Keras does them."""

from typing import Any

import keras
from keras import ops


class KerasMean(keras.losses.Loss):
    """Hands values through, so that `Loss.__call__` reduces them exactly as it does the hard loss."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def reduced(values: Any, sample_weight: Any = None, mask: Any = None, owner: str = "the loss") -> Any:
    """The weighted mean over samples.

        mean = sum_n w_n * m_n * loss_n / sum_n m_n     (w: sample weight, m: mask; 1 where there is none)

    Args:
        values: Shape (batch, ...).
        sample_weight: Shape (batch,) or that of `values`, or more axes, whose mean counts; or None.
        mask: Shape of `values`, or None.
        owner: Name of the loss, for the message.

    Returns: float32 scalar, divided by the number of replicas under `tf.distribute`.
    Raises: ValueError for a scalar.
    """
    values = ops.cast(ops.convert_to_tensor(values), "float32")
    if len(values.shape) == 0:
        raise ValueError(
            f"{owner}.compute_loss returned a scalar. Return one value per sample, shape (batch, ...): the Distiller "
            "weights and averages them."
        )
    if sample_weight is not None:
        sample_weight = _fitted(ops.cast(sample_weight, "float32"), len(values.shape))
    if mask is not None:
        values._keras_mask = mask
    return KerasMean(dtype="float32")(values, values, sample_weight)


def common_mask(teacher: Any, student: Any) -> Any:
    """Positions that neither of two tensors masks, as Keras keeps masks; None where there is no mask.

    Args:
        teacher, student: Shape (batch, positions ..., features) or (batch, positions ...), at the same positions.

    Raises: ValueError for a mask of another length than that of the other sequence.
    """
    masks = [getattr(values, "_keras_mask", None) for values in (teacher, student)]
    known = [mask for mask in masks if mask is not None]
    lengths = {values.shape[1] for values in (teacher, student) if len(values.shape) > 1} - {None}
    if known and len(lengths) > 1:
        raise ValueError(
            f"A sequence with a mask and one of another length, {teacher.shape[1]} positions of the teacher and "
            f"{student.shape[1]} of the student: once interpolated, nobody knows which are padding. Compare layers of "
            "equal length, or layers without a mask."
        )
    return ops.logical_and(*known) if len(known) == 2 else known[0] if known else None


def single_weight(sample_weight: Any, name: str) -> Any:
    """The one weight a sample of a loss that looks at no single output.

    Args:
        sample_weight: Tensor of shape (batch,), or one in a list or dict, or None.
        name: Of the loss.

    Raises: ValueError for several.
    """
    if not keras.tree.is_nested(sample_weight):
        return sample_weight
    weights = keras.tree.flatten(sample_weight)
    if len(weights) > 1:
        raise ValueError(
            f"The loss {name!r} looks at no single output, so that it takes one weight for each sample; "
            f"`sample_weight` holds {len(weights)}, one for each output. Give one array, or a loss on outputs "
            "(`SoftTargets(output=...)`)."
        )
    return weights[0]


def weight_of(sample_weight: Any, index: int, outputs: int, name: str = "") -> Any:
    """The sample weights of one output.

    Args:
        sample_weight: Tensor of shape (batch,), or one for each output (list or dict), or None.
        index: Number of the output.
        outputs: How many the model has.
        name: Of the output, for a dict.

    Raises: ValueError for another number of them.
    """
    if not keras.tree.is_nested(sample_weight):
        return sample_weight
    if isinstance(sample_weight, dict) and name in sample_weight:
        return sample_weight[name]
    weights = keras.tree.flatten(sample_weight)
    if len(weights) != outputs:
        raise ValueError(f"`sample_weight` holds {len(weights)} entries for {outputs} outputs; give one for each.")
    return weights[index]


def _fitted(weight: Any, rank: int) -> Any:
    missing = rank - len(weight.shape)
    if missing < 0:
        return ops.mean(weight, axis=tuple(range(rank, len(weight.shape))))
    return ops.reshape(weight, (*ops.shape(weight), *[1] * missing))
