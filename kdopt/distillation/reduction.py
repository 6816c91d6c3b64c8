"""From one value per sample to the scalar that is trained: weights, masks and replicas as Keras does them."""

from typing import Any

import keras
from keras import ops

from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.outputs import OutputPair


class KerasMean(keras.losses.Loss):
    """Hands values through, so that `Loss.__call__` reduces them exactly as it does the hard loss."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def response_loss(loss: DistillationLoss, pairs: list[OutputPair], sample_weight: Any, outputs: int) -> Any:
    """Sum over outputs of the weighted mean over samples.

        mean = sum_n w_n * m_n * loss_n / sum_n m_n     (w: sample weight, m: mask; 1 where there is none)

    Args:
        loss: The loss.
        pairs: The outputs it looks at.
        sample_weight: Tensor of shape (batch,), or one for each output (list or dict), or None.
        outputs: Number of outputs of the model.

    Returns: float32 scalar, divided by the number of replicas under `tf.distribute`.
    """
    total = 0.0
    for pair in pairs:
        activation = pair.activation(loss.activation)
        values = ops.convert_to_tensor(loss.compute_loss(*pair.logits(activation), activation))
        if len(values.shape) == 0:
            raise ValueError(
                f"{type(loss).__name__}.compute_loss returned a scalar. Return one value per sample, shape "
                "(batch, ...): the Distiller weights and averages them."
            )
        mask = getattr(pair.student, "_keras_mask", None)
        total = total + _mean(values, _weight_of(sample_weight, pair.index, outputs), mask)
    return total


def _weight_of(sample_weight: Any, index: int, outputs: int) -> Any:
    if not keras.tree.is_nested(sample_weight):
        return sample_weight
    weights = keras.tree.flatten(sample_weight)
    if len(weights) != outputs:
        raise ValueError(f"`sample_weight` holds {len(weights)} entries for {outputs} outputs; give one for each.")
    return weights[index]


def _mean(values: Any, sample_weight: Any, mask: Any) -> Any:
    values = ops.cast(values, "float32")
    if sample_weight is not None and len(sample_weight.shape) < len(values.shape):
        missing = len(values.shape) - len(sample_weight.shape)
        sample_weight = ops.reshape(sample_weight, (*ops.shape(sample_weight), *[1] * missing))
    if mask is not None:
        values._keras_mask = mask
    return KerasMean(dtype="float32")(values, values, sample_weight)
