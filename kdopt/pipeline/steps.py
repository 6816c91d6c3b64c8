"""The steps from data to a quantization-aware student; each returns the new model and what its epochs logged."""

import math
import time
from collections.abc import Callable
from typing import Any

import keras

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.pipeline.datasets import Dataset, augmented_batches
from kdopt.pipeline.recipes import Recipe
from kdopt.pruning.callbacks import GradualPruning
from kdopt.quantization.quantize import quantize_aware
from kdopt.schedules.base import Schedule
from kdopt.schedules.jumps import Constant
from kdopt.schedules.ramps import Polynomial

Say = Callable[[str], None]
Epochs = list[dict[str, float]]

_CALIBRATION_IMAGES = 256


def train_teacher(data: Dataset, recipe: Recipe, seed: int, say: Say) -> tuple[keras.Model, Epochs]:
    """Trains the large network on the labels."""
    model = recipe.teacher(data.image_shape, data.classes)
    _compile(model, data, recipe, recipe.learning_rate, recipe.teacher_epochs)
    return model, _fit(model, data, recipe, recipe.teacher_epochs, seed, say)


def distill_and_prune(
    data: Dataset, recipe: Recipe, teacher: keras.Model, seed: int, say: Say
) -> tuple[keras.Model, Epochs]:
    """Trains the small network on labels and teacher in one `fit`, while its kernels become sparse."""
    student = recipe.student(data.image_shape, data.classes)
    distiller = _distiller(student, teacher, recipe)
    _compile(distiller, data, recipe, recipe.learning_rate, recipe.student_epochs)
    pruning = GradualPruning(pruning_schedule(data, recipe))
    return student, _fit(distiller, data, recipe, recipe.student_epochs, seed + 1, say, pruning)


def train_quantized(
    data: Dataset, recipe: Recipe, teacher: keras.Model, student: keras.Model, seed: int, say: Say
) -> tuple[Any, Epochs]:
    """Fine-tunes the sparse student with the rounding of int8; teacher and zeros stay."""
    quantized = quantize_aware(student, calibration=data.train[0][:_CALIBRATION_IMAGES])
    distiller = _distiller(quantized, teacher, recipe)
    _compile(distiller, data, recipe, recipe.quantized_learning_rate, recipe.quantized_epochs)
    pruning = GradualPruning(Constant(recipe.sparsity))
    return quantized, _fit(distiller, data, recipe, recipe.quantized_epochs, seed + 2, say, pruning)


def steps_an_epoch(data: Dataset, recipe: Recipe) -> int:
    """Optimizer updates of one pass over the training images."""
    return len(data.train[0]) // recipe.batch_size


def pruning_schedule(data: Dataset, recipe: Recipe) -> Schedule:
    """The student's: sparsity grows between `prune_from` and `prune_until`, then the net recovers."""
    total = recipe.student_epochs * steps_an_epoch(data, recipe)
    begin, end = int(recipe.prune_from * total), math.ceil(recipe.prune_until * total)
    return Polynomial(recipe.sparsity, begin_step=begin, end_step=end, frequency=max(1, (end - begin) // 40))


def _distiller(student: keras.Model, teacher: keras.Model, recipe: Recipe) -> Distiller:
    return Distiller(
        student=student,
        teacher=teacher,
        distillation_losses=[SoftTargets(temperature=recipe.temperature)],
        student_loss_weight=recipe.student_loss_weight,
    )


def _compile(model: keras.Model, data: Dataset, recipe: Recipe, peak: float, epochs: int) -> None:
    total = epochs * steps_an_epoch(data, recipe)
    warmup = total // 10
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 20, warmup_target=peak, warmup_steps=warmup, decay_steps=total - warmup
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA halves the speed of convolutions on a CPU and costs seconds to compile.
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)


def _fit(
    model: keras.Model, data: Dataset, recipe: Recipe, epochs: int, seed: int, say: Say, *callbacks: Any
) -> Epochs:
    lines = EpochLines(epochs, say)
    batches = augmented_batches(data, recipe.batch_size, seed)
    callbacks = (*callbacks, lines)
    model.fit(
        batches, epochs=epochs, validation_data=data.validation, callbacks=list(callbacks), shuffle=False, verbose=0
    )
    return lines.epochs


class EpochLines(keras.callbacks.Callback):
    """One line an epoch, and its numbers kept.

    Args:
        total: Number of epochs.
        say: Called with each line.
    """

    def __init__(self, total: int, say: Say) -> None:
        super().__init__()
        self.total = total
        self.say = say
        self.epochs: Epochs = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = time.perf_counter() - self._began
        record = {"epoch": epoch + 1, "seconds": seconds}
        record |= {name: float(value) for name, value in (logs or {}).items() if "/" not in name}
        self.epochs.append(record)
        sparsity = f"  sparsity {record['sparsity']:.3f}" if "sparsity" in record else ""
        self.say(
            f"  epoch {epoch + 1:>{len(str(self.total))}}/{self.total}  loss {record['loss']:.4f}  "
            f"validation accuracy {record['val_accuracy']:.4f}{sparsity}  {seconds:.1f} s"
        )
