"""What a distillation loss on inner layers is."""

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.projectors import align, channels_of, projector
from kdopt.distillation.reduction import common_mask
from kdopt.distillation.taps import Tapped, Taps, check_taps, taps_from_config, taps_to_config


class FeatureLoss(DistillationLoss):
    """How far inner tensors of the student are from those of the teacher.

    Subclass it and write `compute_loss(teacher, student)`; `Distiller` finds the tapped tensors in the one forward pass
    of each model. `matches_positions` and `matches_channels` say what has to be equal before; the base sees to it: maps
    are averaged or resized, sequences interpolated (`kdopt.distillation.projectors.align`), and the student's channels
    are mapped to the teacher's by a trained 1x1 convolution.

    Args:
        student_tap: Name of a layer, index, compiled regular expression, `"stages"` (the last layer of each
            resolution), `"embedding"` (the vector that the last layer with weights reads), or a list of these. See
            `kdopt.distillation.taps.resolve`.
        teacher_tap: The same for the teacher; as many tensors. Defaults to `None`: what `student_tap` says. For
            `"stages"` in both, where the models have different numbers of them, those of equal resolution are paired.
        projector: What maps the student's features to the teacher's channels: `"auto"`, where they differ; `None`,
            never (they must be equal); a `keras.layers.Layer`, or a list with one for each pair of taps. Defaults to
            `"auto"`. Losses that compare no channels take none (`ChannelFreeLoss`).
        name: The loss is logged as `{name}_loss`. Defaults to the snake-case class name.

    Raises: TypeError for a tap or projector of another kind.

    Example:
    ```
    @DISTILLATION_LOSSES.register("feature_l1")
    class FeatureL1(FeatureLoss):
        def compute_loss(self, teacher, student):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)
    ```
    """

    on_outputs: ClassVar[bool] = False
    matches_positions: ClassVar[bool] = True
    matches_channels: ClassVar[bool] = True
    ranks: ClassVar[tuple[int, ...]] = (2, 3, 4)

    def __init__(
        self,
        student_tap: Taps = "stages",
        teacher_tap: Taps | None = None,
        *,
        projector: str | keras.layers.Layer | Sequence[keras.layers.Layer] | None = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.student_tap = check_taps("student_tap", taps_from_config(student_tap))
        self.teacher_tap = None if teacher_tap is None else check_taps("teacher_tap", taps_from_config(teacher_tap))
        self.projector = _checked_projector(projector)
        self._projectors: list[keras.layers.Layer | None] = []

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """The loss of each sample.

        Args:
            teacher: Feature of the teacher, float32, shape (batch, [positions ...,] channels). No gradient reaches it.
            student: Feature of the student, at the same positions and with the same channels if the class asks for it.

        Returns: float32, shape (batch,), or (batch, positions ...).
        """
        raise NotImplementedError(f"{type(self).__name__} must define `compute_loss(teacher, student)`.")

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        """Makes the parts. A subclass extends it and calls `add_part`.

        Args:
            teacher, student: The tapped tensors, one beside the other; they tell names and shapes.

        Raises: ValueError where shapes cannot be joined.
        """
        self.built = True
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            self._check_ranks(theirs, ours)
            self._projectors.append(self._projector_of(place, theirs, ours, len(student)))

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Values for each pair of tapped tensors; a subclass overrides it that looks at several layers at once.

        Args:
            teacher, student: `Recorded` calls, paired.
        """
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            values.append(self.compute_loss(*self.prepared(place, theirs.output, ours.output)))
        return values

    def prepared(self, place: int, teacher: Any, student: Any) -> tuple[Any, Any]:
        """Two features in float32, at the same positions and with the same channels where the class asks for it.

        Both are zero at the positions that one of the models masks; where positions need not be equal, each at those of
        its own mask. What is averaged over positions leaves masked ones out.
        """
        masks = [getattr(values, "_keras_mask", None) for values in (teacher, student)]
        if self.matches_positions and len(teacher.shape) == len(student.shape):
            masks = [common_mask(teacher, student)] * 2
        teacher, student = ops.stop_gradient(ops.cast(teacher, "float32")), ops.cast(student, "float32")
        layer = self._projectors[place]
        own = not isinstance(self.projector, str | None)
        if own and layer is not None:
            student = ops.cast(layer(student, **self._mode_of(layer)), "float32")
        if self.matches_positions:
            teacher, student = align(teacher, student, *masks)
        if not own and layer is not None:
            student = layer(student, **self._mode_of(layer))
        teacher, student = (_seen(values, mask) for values, mask in zip((teacher, student), masks, strict=True))
        if self.matches_channels and own and teacher.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"{type(self).__name__}: the projector gives {student.shape[-1]} channels, the teacher has "
                f"{teacher.shape[-1]}."
            )
        return teacher, student

    def _mode_of(self, layer: keras.layers.Layer) -> dict[str, bool]:
        return {"training": self.training} if layer._call_has_training_arg else {}

    def needs_projector(self, teacher: int, student: int) -> bool:
        """Whether `"auto"` makes a projector for these numbers of channels."""
        return teacher != student

    def make_projector(self, channels: int, name: str) -> keras.layers.Layer:
        """The projector of `"auto"`, to this many channels."""
        return projector(channels, name)

    def _check_ranks(self, teacher: Tapped, student: Tapped) -> None:
        for role, tapped in (("teacher", teacher), ("student", student)):
            if len(tapped.shape) not in self.ranks:
                raise ValueError(
                    f"{type(self).__name__} compares tensors of rank {' or '.join(map(str, self.ranks))}, batch axis "
                    f"included; {tapped.name!r} of the {role} has shape {tapped.shape}."
                )
            first = getattr(tapped.operation, "data_format", None) == "channels_first"
            normed = isinstance(tapped.operation, keras.layers.BatchNormalization) and tapped.operation.axis == 1
            if len(tapped.shape) > 2 and (first or normed):
                raise ValueError(f"{tapped.name!r} of the {role} has its channels first; taps need them last.")

    def _projector_of(self, place: int, teacher: Tapped, student: Tapped, pairs: int) -> keras.layers.Layer | None:
        if isinstance(self.projector, keras.layers.Layer | list):
            given = self.projector if isinstance(self.projector, list) else [self.projector]
            if len(given) != pairs:
                raise ValueError(f"{type(self).__name__} has {len(given)} projectors for {pairs} pairs of taps.")
            return self.add_part(given[place], student.shape)
        if not self.matches_channels:
            return None
        theirs, ours = (channels_of(t.shape, role, t.name) for t, role in ((teacher, "teacher"), (student, "student")))
        if not self.needs_projector(theirs, ours):
            return None
        if self.projector is None:
            raise ValueError(
                f"{type(self).__name__}: {student.name!r} of the student has {ours} channels, {teacher.name!r} of the "
                f"teacher {theirs}, and `projector=None`. Leave it at 'auto', or give a layer."
            )
        rank = min(len(teacher.shape), len(student.shape)) if self.matches_positions else len(student.shape)
        made = self.make_projector(theirs, f"{self.name}_projector_{place}")
        return self.add_part(made, (*[None] * (rank - 1), ours))

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "student_tap": taps_to_config(self.student_tap),
            "teacher_tap": None if self.teacher_tap is None else taps_to_config(self.teacher_tap),
            "projector": self.projector,
            "name": self.name,
        }
        if isinstance(self.projector, keras.layers.Layer):
            config["projector"] = keras.saving.serialize_keras_object(self.projector)
        elif isinstance(self.projector, list):
            config["projector"] = [keras.saving.serialize_keras_object(layer) for layer in self.projector]
        return config


class ChannelFreeLoss(FeatureLoss):
    """A loss on inner tensors that compares no channels, so that it takes no projector.

    Args:
        student_tap, teacher_tap, name: As in `FeatureLoss`.
    """

    matches_channels = False

    def __init__(
        self, student_tap: Taps = "stages", teacher_tap: Taps | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(student_tap, teacher_tap, projector=None, name=name)

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "projector"}


def _seen(values: Any, mask: Any) -> Any:
    """A sequence with zeros where it is masked."""
    if mask is None or len(values.shape) != 3 or mask.shape[1] != values.shape[1]:
        return values
    return values * ops.cast(mask, "float32")[..., None]


def _checked_projector(given: Any) -> Any:
    if given is None or (isinstance(given, str) and given == "auto"):
        return given
    items = list(given) if isinstance(given, list | tuple) else [given]
    layers = [keras.saving.deserialize_keras_object(item) if isinstance(item, dict) else item for item in items]
    if not layers or not all(isinstance(layer, keras.layers.Layer) for layer in layers):
        raise TypeError(f"`projector` must be 'auto', None, a keras layer or a list of them; got {given!r}.")
    return layers if isinstance(given, list | tuple) else layers[0]
