"""What a distillation loss is, and the registry of them."""

import re
from typing import Any, ClassVar, Self

import keras

from kdopt.core.registry import Registry
from kdopt.core.validation import check_one_of

ACTIVATIONS = ("softmax", "sigmoid")


class DistillationLoss:
    """How far the student is from the teacher, one value per sample, seen from the outputs of both.

    Subclass it, write `compute_loss`, and register it: `Distiller` then brings `sample_weight`, masks, several
    outputs and teachers, logging, replicas and saving. A subclass with arguments of its own extends `get_config`. A
    loss on inner layers extends `FeatureLoss` instead.

    Args:
        activation: How the logits become class probabilities: `"softmax"` (one class of many) or `"sigmoid"`
            (binary, multi-label). Defaults to `None`: read from the last activation of student and teacher,
            softmax if both end in plain logits of two or more units.
        output: Name or index of the model output the loss looks at. Defaults to `None`: every output, summed.
        name: The loss is logged as `{name}_loss`. Defaults to the snake-case class name.

    Attributes:
        training: Set by the Distiller: whether the step trains.
        on_outputs: Whether it looks at the outputs of both models; if False, at inner layers.
        activations: Which of `"softmax"` and `"sigmoid"` it is defined for.
        reads_logits: Whether `compute_loss` gets class logits; if False, the outputs as the models give them.
        uses_labels: Whether `compute_loss` takes `labels=`: class numbers of shape (batch, ...) as int32, or None where
            the data holds none; if it does not read logits, the labels as `fit` gives them. An instance may need none.
        uses_mask: Whether `compute_loss` takes `mask=`: shape (batch, ...), False at padded positions, or None. The
            Distiller leaves their values out in any case; it is for losses that relate positions to each other.
        within_batch: Whether a sample's value depends on the others of its batch (of its replica, under
            `tf.distribute`).

    Raises: ValueError for an unknown activation, TypeError for an `output` that is neither name nor index.

    Example:
    ```
    @DISTILLATION_LOSSES.register("logits_l1")
    class LogitsL1(DistillationLoss):
        def compute_loss(self, teacher, student, activation="softmax"):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)
    ```
    """

    on_outputs: ClassVar[bool] = True
    activations: ClassVar[tuple[str, ...]] = ACTIVATIONS
    reads_logits: ClassVar[bool] = True
    uses_labels: bool = False
    uses_mask: ClassVar[bool] = False
    within_batch: ClassVar[bool] = False

    def __init__(
        self, *, activation: str | None = None, output: str | int | None = None, name: str | None = None
    ) -> None:
        if activation is not None:
            check_one_of("activation", activation, self.activations)
        elif len(self.activations) == 1:
            activation = self.activations[0]
        if isinstance(output, bool) or not isinstance(output, str | int | None):
            raise TypeError(f"`output` must be the name or the index of a model output, or None; got {output!r}.")
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"`name` must be a non-empty string or None; got {name!r}.")
        self.activation = activation
        self.output = output
        self.name = name or snake_case(type(self).__name__)
        self.built = False
        self.training = False
        self._parts: list[keras.layers.Layer] = []

    def compute_loss(self, teacher: Any, student: Any, *arguments: Any, **options: Any) -> Any:
        """The loss of each sample. A subclass defines `compute_loss(self, teacher, student, activation="softmax")`.

        Args:
            teacher: Class logits of the teacher, float32, shape (batch, ..., classes). No gradient flows into it.
            student: Class logits of the student, the same shape.
            arguments: `activation`, `"softmax"` or `"sigmoid"`: how these logits become probabilities; nothing if
                the class does not read logits.
            options: `labels` and `mask`, if the class uses them.

        Returns: float32, shape (batch, ...): one value per sample (per position for sequences and images), never
            reduced over the batch: the Distiller weights and averages it as Keras does the hard loss.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `compute_loss(teacher, student, activation)`.")

    @property
    def parts(self) -> list[keras.layers.Layer]:
        """The layers of the loss itself that are trained with the student, such as projectors; dropped at the end."""
        return list(self._parts)

    def add_part(self, layer: keras.layers.Layer, shape: tuple[int | None, ...]) -> keras.layers.Layer:
        """Has a layer of the loss's own trained with the student and saved with the Distiller. Call it in `build`.

        Args:
            layer: One that computes in float32.
            shape: Of what it will read, with the batch axis; it is built for that.
        """
        if not layer.built:
            layer(keras.KerasTensor(shape, "float32"))
        self._parts.append(layer)
        return layer

    @property
    def extras(self) -> list[Any]:
        """What else is saved with the Distiller and not trained by its optimizer: a discriminator, a memory bank."""
        return []

    def build_for(self, classes: list[int]) -> None:
        """Makes what a loss on outputs trains of its own.

        Args:
            classes: Number of units of each output the loss looks at.
        """

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What the loss shows in the logs beside its value."""
        return []

    def scheduled(self) -> dict[str, Any]:
        """Arguments that may be schedules, by name; those that are show in the logs."""
        return {}

    def fresh(self) -> Self:
        """Itself, or a new one of the same config if its parts belong to another Distiller or teacher already."""
        return self.from_config(self.get_config()) if self.built else self

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"activation": self.activation, "output": self.output, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The loss that `get_config` described."""
        return cls(**config)


def snake_case(name: str) -> str:
    """`"SoftTargets"` -> `"soft_targets"`, as Keras names layers."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


DISTILLATION_LOSSES = Registry("distillation loss", DistillationLoss)
