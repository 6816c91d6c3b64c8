"""Criteria from what layers read and make on data."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kdopt.core.kernels import KernelView
from kdopt.core.notices import warn_user
from kdopt.criteria.axes import Meeting, one_hot_counts
from kdopt.criteria.base import CRITERIA
from kdopt.criteria.batches import Batch
from kdopt.criteria.data import TapCriterion
from kdopt.criteria.passes import loss_of, loss_scale
from kdopt.criteria.taps import Call, Taps, hosts, is_linear, tapped

Tensor = Any


class _Activated(TapCriterion):
    """Looks at each layer's output after its activation."""

    def _output(self, view: KernelView, call: Call, taps: Taps) -> Tensor:
        return taps.activated(call) if is_linear(view.layer) else call.makes


@CRITERIA.register("activation_mean")
class ActivationMean(_Activated):
    """Mean activation of each channel.

        score(channel c) = mean over samples and places of |y_c|,    an equal share to each of its weights

    y is the layer's output after its activation, also where that is a layer behind a BatchNormalization. The paper has
    no absolute value: after a ReLU it is the same. Data: samples without labels. Cost: one forward pass a batch.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
        section 2.2, criterion "Activation".
    """

    def statistic(self, view: KernelView, meeting: Meeting, tensors: list[Tensor]) -> Tensor:
        return sum(meeting.reduce(ops.abs(tensor)) for tensor in tensors)

    def finish(self, view: KernelView, meeting: Meeting, total: np.ndarray, positions: float, count: int) -> np.ndarray:
        return meeting.share(total / positions, view.variable.shape)


@CRITERIA.register("apoz")
class APoZ(_Activated):
    """How often each channel is not zero: one minus the average percentage of zeros.

        score(channel c) = 1 - APoZ_c = share of samples and places with y_c != 0;
        an equal share to each of its weights

    y as in `activation_mean`. For channels with a ReLU; where an output is never zero (no activation, tanh, softmax, or
    an activation inside a subclassed `call`) all channels score 1, and a warning names the kernel. Data: samples
    without labels. Cost: one forward pass a batch.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
        Architectures", 2016, equation 1.
    """

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        scores = super().scores(model, views, data)
        blind = [view.name for view, score in zip(views, scores, strict=True) if score.min() == score.max() > 0]
        if blind:
            warn_user(
                f"Criterion 'apoz' cannot tell the channels of {', '.join(blind)} apart: their outputs are zero "
                "equally often, or never. It is for layers with a ReLU; choose them with `layers=`."
            )
        return scores

    def statistic(self, view: KernelView, meeting: Meeting, tensors: list[Tensor]) -> Tensor:
        return sum(meeting.reduce(ops.not_equal(tensor, 0)) for tensor in tensors)

    def finish(self, view: KernelView, meeting: Meeting, total: np.ndarray, positions: float, count: int) -> np.ndarray:
        return meeting.share(total / positions, view.variable.shape)


@CRITERIA.register("wanda")
class Wanda(TapCriterion):
    """Weight times the size of the input it reads.

        score = |w_ij| * ||x_i||_2,    the norm over all samples and places of input feature i

    Compare inside an output channel, as the paper does, or inside a kernel. A convolution's offsets all read channel i;
    a grouped one its group's; an embedding's row i reads a one-hot vector (norm: square root of how often token i
    occurs); a recurrent cell's `kernel` the sequence. A `recurrent_kernel` reads a state inside the loop: refused.
    Data: samples without labels. Cost: one forward pass a batch.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (2023),
        equation 1.
    """

    side = "reads"

    def statistic(self, view: KernelView, meeting: Meeting, tensors: list[Tensor]) -> Tensor:
        if isinstance(view.layer, layers.Embedding):
            return sum(one_hot_counts(view.layer, tensor) for tensor in tensors)
        return sum(meeting.reduce(ops.square(ops.cast(tensor, "float32"))) for tensor in tensors)

    def finish(self, view: KernelView, meeting: Meeting, total: np.ndarray, positions: float, count: int) -> np.ndarray:
        return np.abs(view.numpy()) * meeting.spread(np.sqrt(total), view.variable.shape)


@CRITERIA.register("gradient_norm")
class GradientNorm(TapCriterion):
    """Norm of the gradient of the loss with respect to each channel of a layer's output.

        score(channel c) = E_batches ||d loss / d y_c||_2,    the norm over the batch and all places;
        an equal share to each of its weights

    y is what the layer itself makes, its own `activation=` included. The loss is the compiled one, an average over the
    batch, so values scale with 1 / sqrt(batch size). Data: samples with labels. Cost: one forward and one backward pass
    a batch, which keeps the outputs of all chosen layers in memory.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: the gradient factor of the feature-map criterion of Molchanov et al., "Pruning Convolutional Neural
        Networks for Resource Efficient Inference", ICLR 2017, section 2.2 ("Taylor expansion"), without the factor y,
        and with a norm over the batch instead of the mean over places of each sample.
    """

    labels = True

    def _observe(self, model: keras.Model, views: Sequence[KernelView], batch: Batch) -> list[list[Tensor]]:
        import tensorflow as tf

        sites, scale = hosts(model, views), loss_scale(model)
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            tapped(model, sites, lambda tensor: tape.watch(tensor)) as taps,
        ):
            loss = loss_of(model, *batch) * scale
        outputs = self._tensors(views, sites, taps)
        gradients = tape.gradient(loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [[ops.cast(gradient, "float32") / scale for gradient in of_one] for of_one in gradients]

    def statistic(self, view: KernelView, meeting: Meeting, tensors: list[Tensor]) -> Tensor:
        return ops.sqrt(sum(meeting.reduce(ops.square(tensor)) for tensor in tensors))

    def finish(self, view: KernelView, meeting: Meeting, total: np.ndarray, positions: float, count: int) -> np.ndarray:
        return meeting.share(total / count, view.variable.shape)
