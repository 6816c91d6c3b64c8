"""How strongly the model's outputs depend on each weight."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer
from kdopt.criteria.base import CRITERIA
from kdopt.criteria.batches import batches
from kdopt.criteria.data import DataCriterion
from kdopt.criteria.gradient import float32
from kdopt.criteria.passes import check_finite, compiled, gradients_of, predict, untouched

Tensor = Any


@CRITERIA.register("output_sensitivity")
class OutputSensitivity(DataCriterion):
    """First-order change of the model's outputs when a weight becomes zero; needs no labels and no loss.

        score = |w| * E_batches [ 1/K sum_k |d y_k / dw| ],    y_k = output feature k, averaged over batch and places

    The features are the last axis of every output, as the model makes them: give logits rather than saturated
    probabilities. Data: samples without labels. Cost: one forward and one backward pass for each batch and each of K
    features; with many classes draw some of them with `outputs`.

    Args:
        outputs: Integer >= 1, how many output features are drawn (without replacement). Defaults to `None`: all.
        seed: Integer >= 0, of the draw. Defaults to `0`.
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.

    Reference: Tartaglione et al., "Learning Sparse Neural Networks via Sensitivity-Driven Regularization", NeurIPS
        2018 (sensitivity, averaged over outputs), times |w|.
    """

    def __init__(self, outputs: int | None = None, seed: int = 0, batch_size: int = 32) -> None:
        super().__init__(batch_size)
        self.outputs = None if outputs is None else check_integer("outputs", outputs)
        self.seed = check_integer("seed", seed, minimum=0)

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        owner = type(self).__name__
        source = batches(data, model, owner=owner, size=self.batch_size, labels=False)
        variables = [view.variable for view in views]
        step, chosen, count = compiled(model, lambda x, which: _slopes(model, variables, x, which)), None, 0
        sums: list[Tensor] = []
        with untouched(model):
            for x, _, _ in source:
                if chosen is None:
                    chosen = self._chosen(int(features(predict(model, x)).shape[0]))
                for which in chosen:
                    parts = step(x, which)
                    sums = [total + part for total, part in zip(sums, parts, strict=True)] if count else parts
                    count += 1
        return [
            check_finite(np.abs(view.numpy()) * ops.convert_to_numpy(total) / np.float32(count), view.name, owner)
            for view, total in zip(views, sums, strict=True)
        ]

    def _chosen(self, size: int) -> list[Tensor]:
        """Indices of the output features, as tensors."""
        if self.outputs is not None and self.outputs > size:
            raise ValueError(f"`outputs` is {self.outputs}, but the model has {size} output features.")
        drawn = np.random.default_rng(self.seed).permutation(size)[: self.outputs]
        return [ops.convert_to_tensor(index, "int32") for index in drawn]

    def get_config(self) -> dict[str, Any]:
        return {"outputs": self.outputs, "seed": self.seed, **super().get_config()}


def features(outputs: Any) -> Tensor:
    """The features of all outputs, each averaged over batch and places: float32, shape (features,)."""
    parts = [float32(y) for y in keras.tree.flatten(outputs) if keras.backend.is_float_dtype(y.dtype)]
    widths = [y.shape[-1] if len(y.shape) > 1 else 1 for y in parts]  # an output (batch,) is one feature
    return ops.concatenate([ops.mean(ops.reshape(y, (-1, n)), axis=0) for y, n in zip(parts, widths, strict=True)])


def _slopes(model: keras.Model, variables: list[keras.Variable], x: Any, which: Tensor) -> list[Tensor]:
    """|d y_which / dw| of each kernel."""
    gradients = gradients_of(model, variables, lambda: ops.take(features(predict(model, x)), which))
    return [
        ops.zeros(variable.shape, "float32") if gradient is None else ops.abs(gradient)
        for variable, gradient in zip(variables, gradients, strict=True)
    ]
