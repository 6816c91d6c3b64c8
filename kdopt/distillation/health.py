"""What is wrong with the values of a first batch, where only a look at them can tell."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.notices import warn_user
from kdopt.distillation.outputs import LINEAR, OutputPair

_ROLES = ("teacher", "student")


class Health:
    """Counts, inside the compiled step, values of the outputs that cannot be what they are taken for.

    Args:
        name: Of the teacher, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nans, self._nan_inputs = keras.metrics.Sum(name="nans"), keras.metrics.Sum(name="nan_inputs")
        self._odd = {role: keras.metrics.Sum(name=f"{role}_odd") for role in _ROLES}
        self._logits: dict[str, bool] = {}

    def count(self, x: Any, outputs: Any, pairs: Sequence[OutputPair], told: dict[str, bool | None]) -> None:
        """Looks at the outputs of a batch.

        Args:
            x: What the models read.
            outputs: What the teacher returned.
            pairs: Outputs of both nets that are compared.
            told: `from_logits`: what the user said of the student and the teacher.
        """
        wrong = _counted(lambda values: ops.logical_not(ops.isfinite(values)), outputs)
        self._nans.update_state(wrong)
        self._nan_inputs.update_state(_counted(lambda values: ops.isnan(ops.sum(values)), x))  # the cheapest look
        for pair in pairs:
            for role in _ROLES:
                if told[role] is not None:
                    self._logits[role] = getattr(pair, f"{role}_kind") == LINEAR
                    self._odd[role].update_state(_is_odd(getattr(pair, role), self._logits[role]))

    def warn(self) -> None:
        """Warns where `from_logits` contradicts the values."""
        for role, logits in self._logits.items():
            if float(self._odd[role].result()):
                said, seen = ("logits", "rows of numbers in [0, 1] whose sum is 1: are they probabilities?")
                if not logits:
                    said, seen = ("probabilities", "values outside [0, 1]: are they logits?")
                warn_user(f"`from_logits` says that the {role} gives {said}, but its outputs are {seen}")

    def check(self, kept: str = "") -> None:
        """Refuses a teacher that gave NaN or infinity.

        Args:
            kept: What became of the student, for the message.

        Raises: ValueError.
        """
        nans, inputs = int(self._nans.result()), int(self._nan_inputs.result())
        if nans and inputs:
            self.reset()
            raise ValueError(
                f"The inputs hold NaN, and so does what the teacher {self._name!r} makes of them: look at "
                f"`numpy.isnan(x)`.{kept}"
            )
        if nans:
            self.reset()
            raise ValueError(
                f"The teacher {self._name!r} gives NaN or infinity: {nans} of the values it returned so far. Its "
                "weights or its input are broken: look at `teacher(x)`, and let `teacher_preprocessing` give what it "
                f"was trained on. For classes that cannot be, let it return -1e9, not -inf.{kept}"
            )

    def reset(self) -> None:
        """Counts from zero."""
        for metric in (self._nans, self._nan_inputs, *self._odd.values()):
            metric.reset_state()


class FirstBatch(keras.callbacks.Callback):
    """Reports after the first batch, with all variables put back if the teacher gave NaN, and after each epoch.

    Args:
        parts: One for each teacher.
        variables: Function that gives what training changes.
    """

    def __init__(self, parts: Sequence[Health], variables: Callable[[], list[keras.Variable]]) -> None:
        super().__init__()
        self._parts, self._variables = list(parts), variables
        self._before: list[tuple[keras.Variable, Any]] | None = None
        self._known = True

    @contextmanager
    def among(self, callbacks: Any, model: keras.Model) -> Iterator[Any]:
        """Gives the callbacks of a `fit`, in whatever form they came, with itself as the first."""
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = callbacks if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
            yield [self, *given]
            return
        self.set_model(model)
        callbacks.callbacks.insert(0, self)
        try:
            yield callbacks
        finally:
            callbacks.callbacks.remove(self)

    def on_train_begin(self, logs: Any = None) -> None:
        for part in self._parts:
            part.reset()
        optimizer = self.model.optimizer
        self._known = self.model.built  # else it is built by the first batch, and there is nothing to go back to
        if self._known and optimizer is not None and not optimizer.built:
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        self._before = [(variable, ops.convert_to_numpy(variable)) for variable in self._variables()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._before is None:
            return
        try:
            for part in self._parts:
                part.check(" The student is as it was before." if self._known else "")
                part.warn()
        except ValueError:
            for variable, value in self._before:
                variable.assign(value)
            raise
        finally:
            self._before = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.on_test_end()

    def on_test_end(self, logs: Any = None) -> None:
        for part in self._parts:
            part.check()


def _counted(which: Callable[[Any], Any], values: Any) -> Any:
    """Of how many of a structure's floating-point numbers a function is true, a float32 scalar."""
    known = [getattr(leaf, "flat_values", getattr(leaf, "values", leaf)) for leaf in tf.nest.flatten(values)]
    dense = [leaf for leaf in known if hasattr(leaf, "dtype")]
    floats = [leaf for leaf in dense if keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype))]
    return sum((ops.sum(ops.cast(which(leaf), "float32")) for leaf in floats), ops.zeros(()))


def _is_odd(values: Any, logits: bool) -> Any:
    """1.0 if a batch of logits looks like probabilities, or one of probabilities does not."""
    values = ops.cast(values, "float32")
    within = ops.logical_and(ops.min(values) >= -1e-3, ops.max(values) <= 1.001)
    if not logits:
        return ops.cast(ops.logical_not(within), "float32")
    sums = ops.all(ops.abs(ops.sum(values, axis=-1) - 1.0) < 1e-2)
    return ops.cast(ops.logical_and(within, sums), "float32")
