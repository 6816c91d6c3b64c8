"""What the heads of a transformer attend to: attention scores and value relations."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.recording import Attention, Recorded
from kdopt.core.validation import check_integer, check_one_of
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import ChannelFreeLoss
from kdopt.distillation.taps import Tapped, Taps, unseen_attention

_RELATIONS = ("scores", "values")
_FAR = -1e9


@DISTILLATION_LOSSES.register("attention_maps_kl")
class AttentionMapsKL(ChannelFreeLoss):
    """The student's heads attend to what the teacher's attend to, and relate values as they do.

        "scores":  A = Q K^T / sqrt(d)         "values":  A = V V^T / sqrt(d)
        loss = mean over heads and positions of KL(softmax(A_t) || softmax(A_s))        ("kl")
        loss = mean over heads, positions and sources of (A_t - A_s)^2                  ("mse")

    Queries, keys and values are caught on their way through the layers, which are computed once and may use any kernel;
    positions that one of the models masks and, with a causal mask, later ones take no part. Widths need not be equal;
    numbers of heads must, or `relation_heads` regroups them.

    Args:
        student_tap, teacher_tap: `keras.layers.MultiHeadAttention` or `GroupQueryAttention` layers; or layers that give
            attention probabilities, shape (batch, heads, targets, sources), for `"scores"` alone; A is their
            logarithm then. Defaults to `"attention"`, the last attention layer (MiniLM); name several for layer by
            layer (TinyBERT).
        relations: `"scores"`, `"values"` or both in a list, whose losses are added. Defaults to both.
        distance: `"kl"` or `"mse"`. Defaults to `"kl"`.
        relation_heads: Integer; queries, keys and values of all heads, side by side, are split into this many groups,
            as in MiniLM v2. Defaults to `None`: the heads as they are.
        name: As in `FeatureLoss`.

    Raises: ValueError for taps of other layers, and where heads or lengths differ.

    Reference: Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020, equations 4 to 7; Jiao et al.,
    "TinyBERT", 2020, equation 7 ("mse" of scores); Wang et al., "MiniLMv2", 2021, section 3.
    """

    ranks = (3, 4)

    def __init__(
        self,
        student_tap: Taps = "attention",
        teacher_tap: Taps | None = None,
        *,
        relations: str | Sequence[str] = _RELATIONS,
        distance: str = "kl",
        relation_heads: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        given = [relations] if isinstance(relations, str) else list(relations)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"`relations` must be 'scores', 'values' or both; got {relations!r}.")
        self.relations = [check_one_of("relations", relation, _RELATIONS) for relation in given]
        self.distance = check_one_of("distance", distance, ("kl", "mse"))
        self.relation_heads = None if relation_heads is None else check_integer("relation_heads", relation_heads)

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        for tapped in teacher:
            self._check("teacher", tapped)
        for tapped in student:
            self._check("student", tapped)
        for theirs, ours in zip(teacher, student, strict=True):
            self._check_heads(theirs, ours)

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Shape (batch,)."""
        return [
            sum(self._distance(relation, theirs, ours) for relation in self.relations)
            for theirs, ours in zip(teacher, student, strict=True)
        ]

    def _check(self, role: str, tapped: Tapped) -> None:
        if not tapped.attends and heads_of(tapped) is not None:
            raise ValueError(unseen_attention(tapped, role))
        if not tapped.attends and (len(tapped.shape) != 4 or self.relations != ["scores"]):
            raise ValueError(
                f"AttentionMapsKL compares MultiHeadAttention or GroupQueryAttention layers; {tapped.name!r} of the "
                f"{role} is {type(tapped.operation).__name__}. A layer of your own that gives attention probabilities, "
                "shape (batch, heads, targets, sources), goes with `relations='scores'`."
            )

    def _check_heads(self, teacher: Tapped, student: Tapped) -> None:
        for relation in self.relations:
            theirs, ours = heads_of(teacher, relation), heads_of(student, relation)
            if theirs is None or ours is None:
                continue
            common = math.gcd(math.prod(theirs), math.prod(ours))
            if self.relation_heads is None and theirs[0] != ours[0]:
                raise ValueError(
                    f"AttentionMapsKL compares {relation} head by head: {teacher.name!r} of the teacher has "
                    f"{theirs[0]} heads of {theirs[1]}, {student.name!r} of the student {ours[0]} of {ours[1]}. Pass "
                    f"`relation_heads={math.gcd(common, ours[0])}`, or another integer that divides {common}."
                )
            if self.relation_heads is not None and common % self.relation_heads:
                raise ValueError(
                    f"`relation_heads` must divide {math.prod(theirs)} and {math.prod(ours)}, heads times size of the "
                    f"{relation} of teacher and student; got {self.relation_heads}."
                )

    def _distance(self, relation: str, theirs: Recorded, ours: Recorded) -> Any:
        (t, seen), (s, also) = (self._related(relation, one) for one in (theirs, ours))
        t = ops.stop_gradient(t)
        if tuple(t.shape[1:]) != tuple(s.shape[1:]):
            raise ValueError(
                f"AttentionMapsKL: the teacher has {t.shape[1]} heads over {t.shape[2]}x{t.shape[3]} positions, the "
                f"student {s.shape[1]} over {s.shape[2]}x{s.shape[3]}. For other numbers of heads pass "
                "`relation_heads=`, an integer that divides the width of both; lengths must be equal."
            )
        seen = seen * also
        log_p, log_q = (ops.log_softmax(ops.where(seen > 0, values, _FAR), axis=-1) for values in (t, s))
        if self.distance == "kl":
            each = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        else:
            each = ops.sum(ops.square(t - s) * seen, axis=-1) / ops.maximum(ops.sum(seen, axis=-1), 1.0)
        counts = ops.cast(ops.any(seen > 0, axis=-1), "float32")  # positions that are no padding
        counts = ops.broadcast_to(counts, ops.shape(each))
        return ops.sum(each * counts, axis=(1, 2)) / ops.maximum(ops.sum(counts, axis=(1, 2)), 1.0)

    def _related(self, relation: str, record: Recorded) -> tuple[Any, Any]:
        """Scores, or logarithms of probabilities, and 1 where a source is seen: (batch, heads, targets, sources)."""
        if record.attention is None:
            p = ops.cast(record.output, "float32")
            return ops.log(ops.maximum(p, 1e-9)), ops.ones_like(p)
        found = record.attention
        one, other = (found.value, found.value) if relation == "values" else (found.query, found.key)
        scores = relate(self._grouped(one), self._grouped(other))
        return scores, visible(found, scores, itself=relation == "values")

    def _grouped(self, values: Any) -> Any:
        if self.relation_heads is None:
            return values
        width = values.shape[-1] * values.shape[-2]
        if width % self.relation_heads:
            raise ValueError(f"`relation_heads` must divide {width}, heads times size; got {self.relation_heads}.")
        shape = (ops.shape(values)[0], ops.shape(values)[1], self.relation_heads, width // self.relation_heads)
        return ops.reshape(values, shape)

    def get_config(self) -> dict[str, Any]:
        own = {"relations": list(self.relations), "distance": self.distance, "relation_heads": self.relation_heads}
        return {**own, **super().get_config()}


def heads_of(tapped: Tapped, relation: str = "scores") -> tuple[int, int] | None:
    """(heads, size of one) of what an attention layer of Keras relates; None for another layer."""
    layer = tapped.operation
    if isinstance(layer, keras.layers.MultiHeadAttention):
        return layer.num_heads, layer.key_dim if relation == "scores" else layer.value_dim
    if isinstance(layer, keras.layers.GroupQueryAttention):
        return layer.num_query_heads if relation == "scores" else layer.num_key_value_heads, layer.head_dim
    return None


def relate(one: Any, other: Any) -> Any:
    """Scaled products of two sets of vectors: shape (batch, heads, targets, sources).

    Args:
        one: Shape (batch, targets, heads, size).
        other: Shape (batch, sources, heads, size); or fewer heads, each for a group of those of `one`.
    """
    one, other = ops.cast(one, "float32"), ops.cast(other, "float32")
    if one.shape[2] != other.shape[2]:
        other = ops.repeat(other, one.shape[2] // other.shape[2], axis=2)
    return ops.einsum("btnd,bsnd->bnts", one, other) / one.shape[-1] ** 0.5


def visible(found: Attention, scores: Any, itself: bool) -> Any:
    """1 where a source takes part, float32, broadcastable to the scores.

    Args:
        found: Of the layer.
        scores: Shape (batch, heads, targets, sources).
        itself: Whether sources relate to sources, as values do; then what no target sees takes no part.
    """
    seen = ops.ones_like(scores[:, :1])
    if found.mask is not None:
        mask = ops.cast(found.mask, "float32")
        mask = {2: mask[None, None], 3: mask[:, None]}.get(len(mask.shape), mask)
        seen = seen * ops.max(mask, axis=-2, keepdims=True) if itself else seen * mask
        if itself:
            seen = seen * ops.transpose(ops.max(mask, axis=-2, keepdims=True), (0, 1, 3, 2))
    if found.causal and not itself:
        targets = ops.arange(ops.shape(scores)[2])
        seen = seen * ops.cast(targets[:, None] >= ops.arange(ops.shape(scores)[3])[None], "float32")
    return seen
