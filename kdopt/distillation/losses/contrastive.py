"""Contrastive representation distillation: the student's view of a sample belongs to the teacher's view of it."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.validation import check_integer, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.losses.relation import RelationLoss, not_itself
from kdopt.distillation.taps import Tapped, Taps


class Bank(keras.layers.Layer):
    """The last embeddings of both models, first in, first out.

    Args:
        size: Integer, how many.
        dimensions: Integer, length of an embedding.
    """

    def __init__(self, size: int, dimensions: int, **options: Any) -> None:
        super().__init__(**options)
        self.size, self.dimensions = size, dimensions
        start = keras.initializers.RandomNormal(stddev=1 / math.sqrt(dimensions), seed=0)
        self.teacher, self.student = (
            self.add_weight(
                shape=(size, dimensions),
                initializer=start,
                trainable=False,
                name=name,
                dtype="float32",
                aggregation="only_first_replica",
            )
            for name in ("teacher", "student")
        )

    def push(self, teacher: Any, student: Any) -> None:
        """Puts the embeddings of a batch in and the oldest out."""
        for kept, new in ((self.teacher, teacher), (self.student, student)):
            kept.assign(ops.concatenate([ops.stop_gradient(new), ops.convert_to_tensor(kept)])[: self.size])


@DISTILLATION_LOSSES.register("crd")
class CRD(RelationLoss):
    """Embeddings of the same sample come together, those of different samples come apart.

        h(t, s) = r / (r + N),     r = exp(g_t(t) . g_s(s) / T) / z
        loss_i  = - log h(t_i, s_i) - sum over N negatives s_j of log(1 - h(t_i, s_j)),   and the same with t, s changed

    g_t, g_s are trained linear maps to vectors of length 1; z is the mean of exp over the negatives of the batch (the
    authors fix it after their first batch). Negatives are the other samples of the batch, and the last `bank`
    embeddings.

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`. The tap defaults to `"embedding"`.
        dimensions: Integer >= 1, length of the embeddings. Defaults to `128`.
        temperature: Float > 0. Defaults to `0.07`.
        bank: Integer >= 1, embeddings kept as negatives beside those of the batch; under `tf.distribute` those of the
            first replica. They come from earlier batches, so that small batches have many negatives. Defaults to
            `None`: the batch alone.

    Reference: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, equations 17 to 19 (there
    the bank holds one embedding for each sample of the data).
    """

    def __init__(
        self,
        student_tap: Taps = "embedding",
        teacher_tap: Taps | None = None,
        *,
        dimensions: int = 128,
        temperature: float = 0.07,
        bank: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        self.dimensions = check_integer("dimensions", dimensions)
        self.temperature = check_positive("temperature", temperature)
        self.bank = None if bank is None else check_integer("bank", bank)
        self._heads: list[tuple[Any, Any]] = []
        self._banks: list[Bank] = []

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        for place, pair in enumerate(zip(teacher, student, strict=True)):
            heads = []
            for role, tapped in zip(("teacher", "student"), pair, strict=True):
                if None in tapped.shape[1:]:
                    raise ValueError(
                        f"CRD embeds {tapped.name!r} of the {role}; its shape {tapped.shape} must be fixed."
                    )
                head = keras.layers.Dense(self.dimensions, name=f"{self.name}_{role}_{place}", dtype="float32")
                heads.append(self.add_part(head, (None, math.prod(size or 1 for size in tapped.shape[1:]))))
            self._heads.append((heads[0], heads[1]))
            if self.bank is not None:
                self._banks.append(Bank(self.bank, self.dimensions, name=f"{self.name}_bank_{place}"))

    @property
    def extras(self) -> list[Any]:
        return list(self._banks)

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Shape (batch,)."""
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            t, s = (
                unit(head(rows))
                for head, rows in zip(self._heads[place], self.prepared(place, theirs.output, ours.output), strict=True)
            )
            bank = self._banks[place] if self._banks else None
            kept = (
                (None, None)
                if bank is None
                else (ops.convert_to_tensor(bank.teacher), ops.convert_to_tensor(bank.student))
            )
            values.append(contrast(s, t, self.temperature, kept[0]) + contrast(t, s, self.temperature, kept[1]))
            if bank is not None and self.training:
                bank.push(t, s)
        return values

    def get_config(self) -> dict[str, Any]:
        own = {"dimensions": self.dimensions, "temperature": self.temperature, "bank": self.bank}
        return {**own, **super().get_config()}


def contrast(anchors: Any, others: Any, temperature: float, bank: Any = None) -> Any:
    """-log h of each anchor with its own, minus the sum of log(1 - h) with its negatives.

    Args:
        anchors, others: Vectors of length 1, shape (batch, dimensions).
        temperature: Float > 0.
        bank: More negatives, shape (size, dimensions), or None.

    Returns: shape (batch,).
    """
    logits = ops.matmul(anchors, ops.transpose(others)) / temperature
    apart = not_itself(anchors)
    own = ops.sum(logits * (1.0 - apart), axis=-1)
    if bank is not None:
        from_bank = ops.matmul(anchors, ops.transpose(unit(bank))) / temperature
        logits = ops.concatenate([logits, from_bank], axis=-1)
        apart = ops.concatenate([apart, ops.ones_like(from_bank)], axis=-1)
    negatives = ops.maximum(ops.sum(apart, axis=-1), 1.0)
    weighted = ops.where(apart > 0, logits, -1e9)
    scale = ops.stop_gradient(ops.logsumexp(weighted) - ops.log(ops.maximum(ops.sum(apart), 1.0)))
    log_n = ops.log(negatives)
    positive = ops.softplus(log_n - (own - scale))  # -log(r / (r + N))
    negative = ops.sum(ops.softplus(logits - scale - log_n[:, None]) * apart, axis=-1)  # -log(N / (r + N))
    return positive + negative
