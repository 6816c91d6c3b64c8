"""Criteria from gradients of the loss: gathered in a running `fit`, or from data."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer
from kdopt.criteria.base import CRITERIA, Criterion, Needs
from kdopt.criteria.batches import Batch, batches, singles
from kdopt.criteria.passes import check_compiled, check_finite, compiled, gradients_of, loss_of, untouched

Tensor = Any


class GradientCriterion(Criterion):
    """A criterion made of the gradients of the loss with respect to the weights.

        score = finish(w, mean over batches of transform(w, g)),    g = d loss(batch) / dw

    Two sources of the same numbers. In a running `fit`: `Live.accumulate(variables, criterion.transform)` sums inside
    the compiled step; `finish(weights, sum / batches)` at the end. There g has dropout and the batch statistics of
    BatchNormalization in it, and the weights move from batch to batch. From data: `scores(model, views, data)`
    runs the model in inference mode on frozen weights, one forward and one backward pass a batch. In both, g is the
    gradient of the whole compiled loss, penalties included, averaged over a batch by the loss.

    Subclass it with `transform` and, where more is to do at the end, `finish`.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Averages over batches depend on it.
            Defaults to `32`.
    """

    needs: Needs = "gradients"

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = check_integer("batch_size", batch_size)

    @abstractmethod
    def transform(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one batch adds.

        Args:
            weight: Float tensor, the kernel as it is in this batch.
            gradient: Tensor of the same shape, d loss / dw of this batch.

        Returns: tensor of the same shape.
        """

    def finish(self, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The scores.

        Args:
            weights: Float array, the kernel now.
            mean: Array of the same shape, mean of `transform` over the batches.

        Returns: finite array of the same shape, >= 0.
        """
        del weights
        return mean

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        raise ValueError(
            f"Criterion {type(self).__name__} needs gradients: call `scores(model, views, data=(x, y))`, or use it in "
            "a running `fit`, which has them."
        )

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        """Importance of each weight, from data.

        Args:
            model: Compiled model, left as it is.
            views: Its kernels.
            data: `(x, y)` or `(x, y, sample_weight)` arrays, or an iterable of such batches; see `batches`.

        Raises: ValueError for missing or empty data or labels, a model without a loss, a loss no kernel acts on, scores
            that are not finite.
        """
        owner = type(self).__name__
        source = batches(data, model, owner=owner, size=self.batch_size, labels=True)
        with untouched(model):
            means = self._means(model, views, source)
        return [
            check_finite(self.finish(view.numpy(), mean), view.name, owner)
            for view, mean in zip(views, means, strict=True)
        ]

    def _means(self, model: keras.Model, views: Sequence[KernelView], source: Any) -> list[np.ndarray]:
        variables, count = [view.variable for view in views], 0
        sums: list[Tensor] = []
        for batch in source:
            if not count:
                check_compiled(model, type(self).__name__)
                step = compiled(model, lambda *parts: self._contributions(model, variables, parts))
            parts = step(*batch)
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if count else parts
            count += 1
        return [ops.convert_to_numpy(total) / np.float32(count) for total in sums]

    def _contributions(self, model: keras.Model, variables: list[keras.Variable], batch: Batch) -> list[Tensor]:
        gradients = gradients_of(model, variables, lambda: loss_of(model, *batch))
        if all(gradient is None for gradient in gradients):
            raise ValueError(f"Criterion {type(self).__name__}: the loss depends on none of the kernels.")
        return [
            ops.zeros(variable.shape, "float32")
            if gradient is None
            else ops.cast(self.transform(float32(variable), gradient), "float32")
            for variable, gradient in zip(variables, gradients, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


def float32(tensor: Tensor) -> Tensor:
    """The tensor in float32: squares of half-precision gradients vanish."""
    return ops.cast(ops.convert_to_tensor(tensor), "float32")


class _Squared(GradientCriterion):
    """Mean squared gradients, of batches or of samples.

    Args:
        batch_size: As in `GradientCriterion`.
        per_sample: Bool. `False` (default): squares of batch gradients, as a running `fit` has them. `True`: squares of
            the gradients of single samples (the empirical Fisher diagonal), which needs `data` and a pass a sample.
    """

    def __init__(self, batch_size: int = 32, per_sample: bool = False) -> None:
        super().__init__(batch_size)
        self.per_sample = bool(per_sample)
        self.needs = "data" if self.per_sample else "gradients"

    def transform(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return ops.square(float32(gradient))

    def _means(self, model: keras.Model, views: Sequence[KernelView], source: Any) -> list[np.ndarray]:
        return super()._means(model, views, singles(source) if self.per_sample else source)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "per_sample": self.per_sample}


@CRITERIA.register("taylor")
class Taylor(GradientCriterion):
    """First-order change of the squared loss error when a weight becomes zero.

        score = E_batches[(g * w)^2]

    Data: a running `fit`, or `data=`. Cost in a fit: one product and one sum a weight and step, and an accumulator of
    the kernel's size. A channel has the sum of its weights' scores (the paper's second form of a joint score, not the
    square of the summed g * w). On frozen weights the order is that of `obd`; in a fit the weights of each step count.

    Args:
        batch_size: As in `GradientCriterion`.

    Reference: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3,
        first-order importance I_m = (g_m w_m)^2.
    """

    def transform(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return ops.square(float32(gradient) * float32(weight))


@CRITERIA.register("fisher")
class Fisher(_Squared):
    """Diagonal of the empirical Fisher information: how strongly the loss reacts to a weight, whatever its size.

        score = E[g^2];    0 where w = 0, because pruning such a weight changes nothing

    Data: a running `fit`, or `data=`. E averages over batch gradients; with `per_sample=True` over the gradients of
    single samples, as the papers have it (a batch gradient is their mean, so cancels what they disagree on).
    Cost in a fit as `taylor`; `per_sample` a forward and a backward pass for each sample.

    Args:
        batch_size: As in `GradientCriterion`.
        per_sample: Bool. Defaults to `False`; with `True` it needs `data`.

    Reference: Sung et al., "Training Neural Networks with Fixed Sparse Masks", NeurIPS 2021 (FISH Mask,
        there to choose the weights that are trained).
    """

    def finish(self, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.where(weights == 0, np.zeros_like(mean), mean)


@CRITERIA.register("obd")
class OBD(_Squared):
    """Optimal brain damage: second-order change of the loss when a weight becomes zero.

        score = 1/2 * h * w^2,    h = E[g^2] in place of the Hessian's diagonal (empirical Fisher)

    Data and cost as `fisher`, whose averages it uses: over batch gradients, or with `per_sample=True` over those of
    single samples. In a fit h is an average over its steps, w the weight now. OBD assumes a trained network (g = 0 on
    average).

    Args:
        batch_size: As in `GradientCriterion`.
        per_sample: Bool. Defaults to `False`; with `True` it needs `data`.

    Reference: LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989, section 2 (saliency s_k = h_kk u_k^2 / 2);
        Fisher as Hessian: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018
        (of single samples).
    """

    def finish(self, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return mean * np.square(weights) / 2


@CRITERIA.register("movement")
class Movement(GradientCriterion):
    """Movement of each weight: pruned are those that training drives toward zero.

        S = -E_batches[w * g]      (the paper's score up to learning rate and number of steps)
        score = S - min of S in the kernel;    0 where w = 0

    S is negative for a weight that shrinks; the shift makes scores >= 0 and keeps their order in a kernel, so compare
    inside a kernel (`scope="layer"`; the paper tries both). A weight that is zero has come all the way. Made for
    fine-tuning a trained model in a running `fit`; from `data=` it is one snapshot on frozen weights. Cost as `taylor`.

    Args:
        batch_size: As in `GradientCriterion`.

    Reference: Sanh, Wolf, Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, section 4.
    """

    def transform(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return -float32(weight) * float32(gradient)

    def finish(self, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.where(weights == 0, np.zeros_like(mean), mean - mean.min())
