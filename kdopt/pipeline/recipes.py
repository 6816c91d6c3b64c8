"""What the demo trains on each data set: two networks and the numbers of their training."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import keras
from keras import layers

Build = Callable[[tuple[int, int, int], int], keras.Model]


@dataclass(frozen=True)
class Recipe:
    """Networks and hyperparameters, chosen on the validation images.

    Attributes:
        teacher: Function (image shape, classes) -> model with logits.
        student: The same, smaller.
        batch_size: Images of one step.
        teacher_epochs: Passes over the training images.
        student_epochs: The same, distilled and pruned.
        quantized_epochs: The same, quantization-aware.
        learning_rate: Peak of the warm-up and cosine decay; of the student too.
        quantized_learning_rate: The same for quantization-aware training.
        sparsity: Fraction of zeros in the student's kernels at the end, in [0, 1).
        prune_from, prune_until: Fractions of the student's steps between which the sparsity grows.
        temperature: Of the softened classes.
        student_loss_weight: Share of the labels in the student's loss, in [0, 1]; the rest is the teacher's.
    """

    teacher: Build
    student: Build
    batch_size: int
    teacher_epochs: int
    student_epochs: int
    quantized_epochs: int
    learning_rate: float
    quantized_learning_rate: float
    sparsity: float
    prune_from: float = 0.15
    prune_until: float = 0.7
    temperature: float = 4.0
    student_loss_weight: float = 0.3

    def quick(self) -> "Recipe":
        """The same in a few epochs: shows that everything works, and nothing about accuracy."""
        return replace(self, teacher_epochs=2, student_epochs=3, quantized_epochs=1)


def network(name: str, filters: tuple[int, ...], units: int, dropout: float = 0.0) -> Build:
    """Convolution, BatchNormalization, ReLU, pooling, ..., one hidden Dense: the convolutional net of the tutorials.

    Args:
        name: Of the model.
        filters: Channels of each convolution; a 2x2 pooling follows each.
        units: Width of the hidden Dense.
        dropout: Fraction in [0, 1) before and after the hidden Dense. Defaults to `0.0`.
    """

    def build(image_shape: tuple[int, int, int], classes: int) -> keras.Model:
        inputs = keras.Input(image_shape, name="image")
        x = inputs
        for width in filters:
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(x))
            x = layers.MaxPooling2D()(x)
        x = layers.Flatten()(x)
        x = layers.Dropout(dropout)(x) if dropout else x
        x = layers.Dense(units, activation="relu")(x)
        x = layers.Dropout(dropout)(x) if dropout else x
        return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)

    return build


RECIPES = {
    "digits": Recipe(
        teacher=network("teacher", (32, 64), units=128, dropout=0.3),
        student=network("student", (12, 24), units=32),
        batch_size=32,
        teacher_epochs=30,
        student_epochs=50,
        quantized_epochs=8,
        learning_rate=3e-3,
        quantized_learning_rate=3e-4,
        sparsity=0.6,
    ),
    "fashion_mnist": Recipe(
        teacher=network("teacher", (24, 48, 96), units=128, dropout=0.25),
        student=network("student", (16, 32, 64), units=48),
        batch_size=128,
        teacher_epochs=8,
        student_epochs=15,
        quantized_epochs=2,
        learning_rate=3e-3,
        quantized_learning_rate=3e-4,
        sparsity=0.5,
    ),
}
