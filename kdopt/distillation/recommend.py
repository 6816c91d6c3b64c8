"""Which losses fit a teacher and a student, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras

from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.attention_maps import AttentionMapsKL, heads_of
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.losses.channel_wise import ChannelWise
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.losses.regression import Regression
from kdopt.distillation.losses.relational import RelationalDistance
from kdopt.distillation.outputs import OutputPair, pair_outputs, symbolic_outputs
from kdopt.distillation.taps import Tapped, embedding, last_attention, stages, tensors_of
from kdopt.distillation.teachers import ModelTeacher, Preprocessing, symbolic_inputs
from kdopt.distillation.validation import check_from_logits, check_models


@dataclass(frozen=True)
class Proposal:
    """One loss.

    Attributes:
        loss: To be given to a `Distiller`.
        weight: Float, beside labels of the same weight.
        where: What it compares.
        why: Why it fits.
    """

    loss: DistillationLoss
    weight: float
    where: str
    why: str


@dataclass(frozen=True)
class Recommendation:
    """Losses for a student and its teacher; print it.

    Attributes:
        proposals: The first one on the outputs, then on inner layers.
        skipped: What does not fit, and why.
    """

    proposals: tuple[Proposal, ...]
    skipped: tuple[str, ...] = ()

    @property
    def losses(self) -> list[DistillationLoss]:
        """For `distillation_losses`."""
        return [proposal.loss for proposal in self.proposals]

    @property
    def weights(self) -> list[float]:
        """For `distillation_loss_weights`."""
        return [proposal.weight for proposal in self.proposals]

    def summary(self) -> str:
        """A table of the losses, what they compare and why, and what was left out."""
        rows = [("loss", "weight", "compares", "why")]
        rows += [(type(one.loss).__name__, f"{one.weight:g}", one.where, one.why) for one in self.proposals]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join([*lines, *(f"left out: {reason}" for reason in self.skipped)])

    def __str__(self) -> str:
        return self.summary()


def recommend(
    teacher: keras.Model,
    student: keras.Model,
    *,
    teacher_preprocessing: Preprocessing | None = None,
    from_logits: bool | dict[str, bool] | None = None,
) -> Recommendation:
    """Proposes losses, taps and projectors by what the two models have in common.

    Outputs decide the first loss: class probabilities, binary or multi-label units, numbers, maps of classes. Of inner
    layers it takes the last attention layer, if both have one; the deepest resolution that both have; and the
    embedding. Weights are for labels of the same weight (`student_loss_weight=0.5`, the default); they are where to
    begin, not the best for the data.

    Args:
        teacher, student: Built models with known inputs.
        teacher_preprocessing: What makes the teacher's input of the student's, as in `Distiller`. Defaults to `None`:
            the same input.
        from_logits: Whether the models return logits, as in `Distiller`, which needs it too then. Defaults to `None`:
            read from their last activation.

    Returns: a `Recommendation`; `Distiller(student=student, teacher=teacher, distillation_losses=r.losses,
        distillation_loss_weights=r.weights)` takes it.
    Raises: ValueError for models that cannot be teacher and student, or whose inputs are not known; TypeError for
        another `from_logits`.

    Example:
    ```
    r = recommend(teacher, student)
    print(r)
    distiller = Distiller(
        student=student, teacher=teacher, distillation_losses=r.losses, distillation_loss_weights=r.weights
    )
    ```
    """
    source = ModelTeacher(teacher, teacher_preprocessing)
    check_models(student, source)
    inputs = symbolic_inputs(student)
    if inputs is None or symbolic_outputs(student) is None or source.outputs() is None:
        raise ValueError(
            "`recommend` compares the layers of two models with known inputs and outputs: Functional, or Sequential "
            "with an Input."
        )
    told = check_from_logits(from_logits)
    pairs = pair_outputs(student, symbolic_outputs(student), source.outputs(), source.kinds(), told)
    proposals = [proposal for pair in pairs for proposal in _of_output(pair, len(pairs))]
    skipped: list[str] = []
    ours, theirs = tensors_of(student, inputs), source.tensors(inputs)
    proposals += _of_attention(ours, theirs, skipped)
    proposals += _of_stages(_inner(ours, student), _inner(theirs, teacher), skipped)
    proposals += _of_embedding(ours, theirs, skipped)
    return Recommendation(tuple(proposals), tuple(skipped))


def _of_output(pair: OutputPair, outputs: int) -> list[Proposal]:
    output = pair.name if outputs > 1 else None
    where = f"output {pair.name!r}"
    pair.check_units()
    units = pair.student.shape[-1]
    if units == 1 and pair.student_kind == pair.teacher_kind == "linear":
        return [Proposal(Regression("l2", output=output), 1.0, where, "one linear unit: a number")]
    kind = pair.activation()
    why = f"softmax over {units} classes" if kind == "softmax" else f"{units} sigmoid unit{'s' * (units != 1)}"
    found = [Proposal(SoftTargets(4.0, activation=kind, output=output), 1.0, where, why)]
    if len(pair.student.shape) > 3:
        found.append(Proposal(ChannelWise(4.0, output=output), 3.0, where, "a map: where each class is"))
    return found


def _of_attention(ours: Sequence[Tapped], theirs: Sequence[Tapped], skipped: list[str]) -> list[Proposal]:
    both = last_attention(ours), last_attention(theirs)
    if not all(both):
        return []
    (student,), (teacher,) = both
    if student.shape[1] != teacher.shape[1]:
        skipped.append(f"AttentionMapsKL: {student!r} and {teacher!r} have other lengths")
        return []
    both_heads = [(heads_of(student, relation), heads_of(teacher, relation)) for relation in ("scores", "values")]
    known = [(ours, theirs) for ours, theirs in both_heads if ours is not None and theirs is not None]
    if len(known) < len(both_heads):
        skipped.append(f"AttentionMapsKL: the heads of {student!r} and {teacher!r} are not known")
        return []
    (heads, _), (other, _) = known[0]
    same = all(ours[0] == theirs[0] for ours, theirs in known)
    split = None if same else math.gcd(heads, *(math.prod(side) for pair in known for side in pair))
    why = f"{heads} heads both" if split is None else f"{heads} and {other} heads, regrouped as {split}"
    loss = AttentionMapsKL(student.name, teacher.name, relation_heads=split)
    return [Proposal(loss, 1.0, f"{student.name} -> {teacher.name}", f"last attention; {why}")]


def _inner(tensors: Sequence[Tapped], model: keras.Model) -> list[Tapped]:
    """Those that are no output of the model."""
    ends = [getattr(tensor, "_keras_history", None) for tensor in keras.tree.flatten(symbolic_outputs(model))]
    makers = {id(end.operation) for end in ends if end is not None}
    return [tensor for tensor in tensors if id(tensor.operation) not in makers]


def _of_stages(ours: Sequence[Tapped], theirs: Sequence[Tapped], skipped: list[str]) -> list[Proposal]:
    sizes: dict[tuple[int | None, ...], Tapped] = {
        tap.shape[1:-1]: tap for tap in stages(theirs) if len(tap.shape) == 4
    }
    pairs = [(tap, sizes[tap.shape[1:-1]]) for tap in stages(ours) if tap.shape[1:-1] in sizes]
    if not pairs:
        if sizes:
            skipped.append(
                f"Hint, AttentionTransfer: no map of the student is as large as one of {list(sizes.values())}"
            )
        return []
    student, teacher = min(pairs, key=lambda pair: math.prod(size or 1 for size in pair[0].shape[1:-1]))
    widths = f"{student.shape[-1]} -> {teacher.shape[-1]} channels"
    how = "equal channels" if student.shape[-1] == teacher.shape[-1] else f"1x1 convolution {widths}"
    size = "x".join(str(size) for size in student.shape[1:-1])
    names = [[tap.name for tap in side] for side in zip(*pairs, strict=True)]
    return [
        Proposal(
            Hint(student.name, teacher.name),
            1.0,
            f"{student.name} -> {teacher.name}",
            f"deepest resolution of both, {size}; {how}",
        ),
        Proposal(
            AttentionTransfer(names[0], names[1]),
            3.0,
            f"{len(pairs)} stage{'s' * (len(pairs) > 1)}",
            f"where they look, from {pairs[0][0]!r} down; no projector",
        ),
    ]


def _of_embedding(ours: Sequence[Tapped], theirs: Sequence[Tapped], skipped: list[str]) -> list[Proposal]:
    both = embedding(ours), embedding(theirs)
    if not all(both) or any(len(tap.shape) != 2 for (tap,) in both):
        skipped.append("RelationalDistance: the last layer with weights reads no vector")
        return []
    (student,), (teacher,) = both
    loss = RelationalDistance(student.name, teacher.name)
    widths = f"{student.shape[-1]} and {teacher.shape[-1]} wide"
    return [
        Proposal(loss, 5.0, f"{student.name} -> {teacher.name}", f"how far samples are apart; {widths}, no projector")
    ]
