"""How a student is trained in each round of a recipe: on labels and teacher."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from kdopt.core.copying import copy_model
from kdopt.core.kernels import find_kernels
from kdopt.core.norms import reestimate_batch_norm
from kdopt.distillation.distiller import Distiller
from kdopt.pruning.metrics import Measure, metric_of
from kdopt.pruning.run import sparsity
from kdopt.pruning.zeros import keep_zeros

Distill = Callable[[keras.Model, keras.Model], keras.Model]


class Training:
    """How the student is trained in each round; see `prune_and_distill` for the arguments."""

    def __init__(
        self,
        teacher: keras.Model,
        data: Any,
        epochs: int,
        optimizer: Any,
        loss: Any,
        metric: str | Measure,
        distill: Distill | None,
        batch_size: int | None,
        callbacks: Callable[[int], Sequence[keras.callbacks.Callback]] | None,
    ) -> None:
        if hasattr(data, "__next__"):
            raise ValueError(f"`train_data` is read in every round; a {type(data).__name__} can be read only once.")
        self._teacher, self._data, self._epochs, self._loss = teacher, data, epochs, loss
        self.optimizer = keras.saving.serialize_keras_object(keras.optimizers.get(optimizer))
        self._metrics = [metric] if isinstance(metric, str) else None
        self._distill: Distill = distill or (lambda own, other: Distiller(student=own, teacher=other))
        self._batch_size, self._callbacks = batch_size, callbacks

    def optimizer_config(self) -> dict[str, Any]:
        """What the optimizer of every round is made from, but for its name, which Keras numbers on."""
        config = self.optimizer["config"]
        return {"class_name": self.optimizer["class_name"], **{k: v for k, v in config.items() if k != "name"}}

    def check(self, student: keras.Model) -> None:
        """Says now what would fail in the first round.

        Raises: ValueError, TypeError.
        """
        self._distiller(copy_model(student))

    def recalibration(self, given: Any, student: keras.Model) -> Any:
        """Data for the statistics of BatchNormalization after each round; `None` for none.

        Args:
            given: `True`: the inputs of the training data, where the student has such layers; `False` or `None`: none;
                or the data.
            student: It tells now whether they can be used.

        Raises: ValueError, TypeError.
        """
        if given is None or given is False:
            return None
        if given is not True:
            reestimate_batch_norm(copy_model(student), given, batches=1)
            return given
        normed = any(isinstance(layer, keras.layers.BatchNormalization) for layer in student._flatten_layers())
        return (self._data[0] if isinstance(self._data, tuple) else self._data) if normed else None

    def compiled(self, model: keras.Model) -> keras.Model:
        """The model itself, compiled with a new optimizer."""
        optimizer = keras.optimizers.get(self.optimizer)
        # XLA halves the speed of convolutions on a CPU and costs seconds to compile in every round.
        model.compile(optimizer, self._loss, metrics=self._metrics, jit_compile=False)
        return model

    def run(self, model: keras.Model, number: int) -> keras.Model:
        """Trains a smaller model on labels and teacher in place; what is zero stays zero."""
        distiller = self.compiled(self._distiller(model))
        more = list(self._callbacks(number)) if self._callbacks else []
        x, y, weight = (*self._data, None, None)[:3] if isinstance(self._data, tuple) else (self._data, None, None)
        shuffles_itself = hasattr(x, "cardinality")  # a tf.data.Dataset, of which Keras would warn
        arguments = {"sample_weight": weight, "batch_size": self._batch_size, "epochs": self._epochs, "callbacks": more}
        with keep_zeros(distiller) if sparsity(find_kernels(model)[0]) else nullcontext():
            distiller.fit(x, y, verbose=0, shuffle=not shuffles_itself, **arguments)
        return model

    def _distiller(self, student: keras.Model) -> keras.Model:
        made = self._distill(student, self._teacher)
        if not isinstance(made, keras.Model) or getattr(made, "student", None) is not student:
            raise TypeError(f"`distill` must return a Distiller of the student it gets; got {made!r}.")
        return made


def evaluate_of(metric: str | Measure, validation_data: Any) -> Measure | None:
    """The metric of a round; `None` where there is nothing to measure on."""
    if isinstance(metric, str) and validation_data is None:
        return None
    return metric_of(metric, validation_data)
