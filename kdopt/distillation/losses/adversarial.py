"""A discriminator that tells student from teacher, trained in turn with the student."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.reduction import reduced
from kdopt.distillation.taps import Tapped, Taps


class Game:
    """A discriminator, its optimizer, and one step of its training.

    Args:
        discriminator: Layer or model, (batch, ...) -> one logit a sample: positive for the teacher.
        optimizer: A Keras optimizer of its own.
        name: Of the loss, for the log.
    """

    def __init__(self, discriminator: keras.layers.Layer, optimizer: keras.optimizers.Optimizer, name: str) -> None:
        self.discriminator, self.optimizer = discriminator, optimizer
        self.metric = keras.metrics.Mean(name=f"{name}_discriminator_loss")
        optimizer.build(discriminator.trainable_variables)

    def play(self, teacher: Any, student: Any, training: bool, mask: Any = None) -> Any:
        """Trains the discriminator on both, then says how well the student is told apart.

            discriminator: softplus(-D(t)) + softplus(D(s));        student: softplus(-D(s))

        Args:
            teacher, student: Shape (batch, ...).
            training: Whether it trains; else it is only measured.
            mask: Shape (batch,), rows that are False teach it nothing; or None.

        Returns: shape (batch,), the student's loss.
        """
        fixed = ops.stop_gradient(teacher), ops.stop_gradient(student)
        wrong = self._learn(*fixed, mask) if training else self._wrong(*fixed, False)
        self.metric.update_state(wrong, sample_weight=mask)
        return ops.softplus(-self._judge(student, False))

    def _learn(self, teacher: Any, student: Any, mask: Any) -> Any:
        variables = self.discriminator.trainable_variables
        with tf.GradientTape() as tape:
            wrong = self._wrong(teacher, student, True)
            loss = reduced(wrong, mask=mask)
        self.optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return wrong

    def _wrong(self, teacher: Any, student: Any, training: bool) -> Any:
        return ops.softplus(-self._judge(teacher, training)) + ops.softplus(self._judge(student, training))

    def _judge(self, values: Any, training: bool) -> Any:
        kwargs = {"training": training} if self.discriminator._call_has_training_arg else {}
        logits = ops.cast(self.discriminator(values, **kwargs), "float32")
        return ops.mean(ops.reshape(logits, (ops.shape(logits)[0], -1)), axis=-1)


def make_game(given: Any, optimizer: Any, shape: tuple[int | None, ...], name: str) -> Game:
    """A game on tensors of a shape, with a discriminator made for it or a given one."""
    if isinstance(given, keras.layers.Layer):
        discriminator = given
    else:
        discriminator = make_discriminator(shape, f"{name}_discriminator")
    if not discriminator.built:
        discriminator(keras.KerasTensor(shape, "float32"))
    return Game(discriminator, optimizer, name)


def make_discriminator(shape: tuple[int | None, ...], name: str) -> keras.Model:
    """Two convolutions over maps and sequences, two dense layers over vectors; then one logit."""
    stack: list[Any] = [keras.Input(shape[1:], dtype="float32")]
    rank = len(shape)
    for width in (64, 128) if rank > 2 else (128, 128):
        if rank == 2:
            stack.append(layers.Dense(width, dtype="float32"))
        else:
            kind = {3: layers.Conv1D, 4: layers.Conv2D}[rank]
            stack.append(kind(width, 3, strides=2, padding="same", dtype="float32"))
        stack.append(layers.LeakyReLU(negative_slope=0.2, dtype="float32"))
    if rank > 2:
        stack.append({3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}[rank](dtype="float32"))
    return keras.Sequential([*stack, layers.Dense(1, dtype="float32")], name=name)


def check_discriminator(given: Any) -> Any:
    """`"auto"`, or a layer (or its config).

    Raises: TypeError.
    """
    made = keras.saving.deserialize_keras_object(given) if isinstance(given, dict) else given
    if made != "auto" and not isinstance(made, keras.layers.Layer):
        raise TypeError(f"`discriminator` must be 'auto', or a keras layer or model with one logit; got {given!r}.")
    return made


def check_optimizer(given: Any) -> Any:
    """An optimizer for a discriminator alone, as it was given: one of a name is made later, in the Distiller's scope.

    Raises: ValueError without one, or for one that Keras does not know.
    """
    if given is None:
        raise ValueError(
            "A discriminator needs an optimizer of its own, beside the Distiller's: a name or an object, such as "
            "`optimizer=keras.optimizers.Adam(1e-3)`; got None."
        )
    make_optimizer(given)
    return given


def make_optimizer(given: Any, again: bool = False) -> keras.optimizers.Optimizer:
    """The optimizer; another one of the same config, if `again`."""
    made = keras.optimizers.get(dict(given) if isinstance(given, dict) else given)  # Keras writes into a config
    return type(made).from_config(made.get_config()) if again and made is given else made


def _config(loss: Any) -> dict[str, Any]:
    given = {"discriminator": loss.discriminator, "optimizer": loss.optimizer}
    return {
        name: value if isinstance(value, str | dict) else keras.saving.serialize_keras_object(value)
        for name, value in given.items()
    }


@DISTILLATION_LOSSES.register("adversarial_feature")
class AdversarialFeature(FeatureLoss):
    """The student's features, through a projector, cannot be told from the teacher's.

        discriminator: softplus(-D(t)) + softplus(D(r(s)));        student: softplus(-D(r(s)))

    In each training step the discriminator learns first, by its own optimizer, then the student; both in the one
    compiled step. What it learns shows in the logs as `{name}_discriminator_loss`: 2 log 2 = 1.39 where it knows
    nothing. Sample weights weigh the student's loss alone; the discriminator sees all samples.

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`. The tap defaults to `"embedding"`.
        discriminator: Layer or model that gives one logit a sample (or several, whose mean counts); `"auto"` makes two
            convolutions or dense layers. One pair of taps, if it is given. Defaults to `"auto"`.
        optimizer: Of the discriminator: name, config or object. Defaults to `"adam"`.

    Raises: ValueError without optimizer; TypeError.

    Reference: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, algorithm 1; Wang et al., "Adversarial
    Learning of Portable Student Networks", AAAI 2018, equation 4.
    """

    def __init__(
        self,
        student_tap: Taps = "embedding",
        teacher_tap: Taps | None = None,
        *,
        discriminator: Any = "auto",
        optimizer: Any = "adam",
        **options: Any,
    ) -> None:
        super().__init__(student_tap, teacher_tap, **options)
        self.discriminator, self.optimizer = check_discriminator(discriminator), check_optimizer(optimizer)
        self._games: list[Game] = []

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        if len(student) > 1 and not isinstance(self.discriminator, str):
            raise ValueError(f"One discriminator cannot judge {len(student)} pairs of taps; make a loss for each.")
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            rank = min(len(theirs.shape), len(ours.shape))
            shape = (*[None] * (rank - 1), theirs.shape[-1])
            optimizer = make_optimizer(self.optimizer, again=place > 0)
            suffix = f"_{place}" if len(student) > 1 else ""
            self._games.append(make_game(self.discriminator, optimizer, shape, f"{self.name}{suffix}"))

    @property
    def extras(self) -> list[Any]:
        return [part for game in self._games for part in (game.discriminator, game.optimizer)]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [game.metric for game in self._games]

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Shape (batch,)."""
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            t, s = self.prepared(place, theirs.output, ours.output)
            values.append(self._games[place].play(t, s, self.training))
        return values

    def get_config(self) -> dict[str, Any]:
        return {**_config(self), **super().get_config()}


@DISTILLATION_LOSSES.register("adversarial_logits")
class AdversarialLogits(DistillationLoss):
    """The student's logits cannot be told from the teacher's.

    As `AdversarialFeature`, with a discriminator of class logits; sequences and maps are judged position by position.

    Args:
        discriminator: Layer or model, (batch, classes) -> one logit; `"auto"` makes two dense layers. Defaults to
            `"auto"`.
        optimizer: Of the discriminator: name, config or object. Defaults to `"adam"`.
        activation, output, name: As in `DistillationLoss`; `output` where the model has several.

    Raises: ValueError without optimizer; TypeError.

    Reference: Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with
    Conditional Adversarial Networks", 2017, equation 3.
    """

    uses_mask = True

    def __init__(self, *, discriminator: Any = "auto", optimizer: Any = "adam", **options: Any) -> None:
        super().__init__(**options)
        self.discriminator, self.optimizer = check_discriminator(discriminator), check_optimizer(optimizer)
        self._game: Game | None = None

    def build_for(self, classes: list[int]) -> None:
        if len(classes) > 1:
            raise ValueError(
                f"One discriminator cannot judge {len(classes)} outputs; choose one: `AdversarialLogits(output=...)`."
            )
        self.built = True
        self._game = make_game(self.discriminator, make_optimizer(self.optimizer), (None, classes[0]), self.name)

    @property
    def extras(self) -> list[Any]:
        return [] if self._game is None else [self._game.discriminator, self._game.optimizer]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [] if self._game is None else [self._game.metric]

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax", mask: Any = None) -> Any:
        """Shape (batch, ...)."""
        if self._game is None:
            self.build_for([student.shape[-1]])
        assert self._game is not None
        t, s = (ops.reshape(values, (-1, values.shape[-1])) for values in (teacher, student))
        rows = None if mask is None else ops.reshape(mask, (-1,))
        return ops.reshape(self._game.play(t, s, self.training, rows), ops.shape(student)[:-1])

    def get_config(self) -> dict[str, Any]:
        return {**_config(self), **super().get_config()}
