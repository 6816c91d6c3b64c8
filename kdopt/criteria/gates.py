"""Channel importance that is learned: gates on the channels, trained with the loss of the task."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer, check_positive
from kdopt.criteria.base import CRITERIA, per_weight
from kdopt.criteria.batches import Batch, batches
from kdopt.criteria.data import DataCriterion
from kdopt.criteria.passes import check_compiled, check_finite, compiled, loss_of, loss_scale, untouched

Tensor = Any


@CRITERIA.register("gates")
class Gates(DataCriterion):
    """Importance of each channel, learned: a gate on every channel, trained while all weights stand still.

        y_c = gate_c * (kernel_c * x + bias_c),    gate_c = exp(beta_c) / n,    beta_c = log n at first
        beta minimizes   loss + penalty * mean over all gates,    by Adam
        score(channel c) = gate_c,    an equal share to each of its weights

    n is the number of channels of the kernel, so every gate begins at 1 and the model as it is. In inference mode: no
    dropout, BatchNormalization with its moving statistics. The loss alone moves the gates little in a trained model;
    the penalty closes those that the loss does not hold open. Data: samples
    with labels, the same each epoch. Cost: `epochs` forward and backward passes over them.

    Args:
        epochs: Integer >= 1, how often the data is seen. Defaults to `5`.
        learning_rate: Float > 0, Adam's: about how far a beta moves in a step. Defaults to `0.02`.
        penalty: Float >= 0, weight of the mean gate beside the loss. Defaults to `0.1`.
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: gates with a budget, trained with the task's loss: Liu et al., "Learning Efficient Convolutional Networks
        through Network Slimming", ICCV 2017 (equation 1, on the scales of normalizations); He et al., "Channel Pruning
        for Accelerating Very Deep Neural Networks", ICCV 2017, section 3 (a scalar beta for each channel).
    """

    def __init__(
        self, epochs: int = 5, learning_rate: float = 0.02, penalty: float = 0.1, batch_size: int = 32
    ) -> None:
        super().__init__(batch_size)
        self.epochs = check_integer("epochs", epochs)
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self.penalty = check_positive("penalty", penalty, zero=True)

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        owner = type(self).__name__
        source = list(batches(data, model, owner=owner, size=self.batch_size, labels=True))
        check_compiled(model, owner)
        betas = [keras.Variable(np.full(n, np.log(n), "float32")) for n in (_channels(view) for view in views)]
        optimizer = keras.optimizers.Adam(self.learning_rate)
        optimizer.build(betas)
        step = compiled(model, lambda *batch: self._gradients(model, views, betas, batch))
        with untouched(model):
            for _ in range(self.epochs):
                for batch in source:
                    optimizer.apply(step(*batch), betas)
        gates = [np.exp(ops.convert_to_numpy(beta)) / np.float32(beta.shape[0]) for beta in betas]
        return [
            check_finite(
                per_weight(gate, (view.channel_axis,), view.variable.shape).astype("float32"), view.name, owner
            )
            for gate, view in zip(gates, views, strict=True)
        ]

    def _gradients(
        self, model: keras.Model, views: Sequence[KernelView], betas: list[keras.Variable], batch: Batch
    ) -> list[Tensor]:
        import tensorflow as tf

        values, scale = [beta.value for beta in betas], loss_scale(model)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            gates = [ops.exp(value) / value.shape[0] for value in values]
            closed = [pair for view, gate in zip(views, gates, strict=True) for pair in _gated(view, gate)]
            with keras.StatelessScope(closed):
                loss = loss_of(model, *batch) * scale
            mean = sum(ops.sum(gate) for gate in gates) / sum(gate.shape[0] for gate in gates)
            total = ops.cast(loss, "float32") + self.penalty * scale * mean
        return [gradient / scale for gradient in tape.gradient(total, values)]

    def get_config(self) -> dict[str, Any]:
        own = {"epochs": self.epochs, "learning_rate": self.learning_rate, "penalty": self.penalty}
        return {**own, **super().get_config()}


def _channels(view: KernelView) -> int:
    return int(view.variable.shape[view.channel_axis])


def _gated(view: KernelView, gate: Tensor) -> list[tuple[keras.Variable, Tensor]]:
    """Kernel and bias times the gate of their channel."""
    shape = [1] * len(view.variable.shape)
    shape[view.channel_axis] = gate.shape[0]
    found = [(view.variable, ops.cast(ops.reshape(gate, shape), view.variable.dtype) * view.variable.value)]
    if view.bias is not None:
        found.append((view.bias, ops.cast(gate, view.bias.dtype) * view.bias.value))
    return found
