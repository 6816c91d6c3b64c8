"""What a teacher says, as the rows of a cache hold it, and back."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kdopt.core.recording import Recording
from kdopt.distillation.activations import LINEAR, SIGMOID, SOFTMAX
from kdopt.distillation.config import shapes_of
from kdopt.distillation.outputs import as_logits, kinds_of
from kdopt.distillation.taps import Tapped
from kdopt.distillation.teachers import ModelTeacher, Observation

LOGITS, LOGARITHMS, VALUES = "logits", "logarithms", "values"
DTYPES = ("float32", "float16")


def form_of(values: Any, kind: str | None) -> str:
    """How an output is stored: so that small probabilities survive float16, and the same logits come back.

    Args:
        values: As the model returns them, shape (batch, ..., units).
        kind: Its last activation, as `output_activations`.

    Returns: `"logits"`, which Keras keeps beside probabilities; `"logarithms"` of softmax probabilities without
        them; `"values"`, as they are: everything else.
    """
    if kind == SIGMOID:
        return LOGITS
    if kind != SOFTMAX:
        return VALUES
    kept = getattr(values, "_keras_logits", None)
    return LOGITS if kept is not None and kept.shape == values.shape else LOGARITHMS


def stored(values: Any, kind: str | None) -> Any:
    """An output in the form that `form_of` tells."""
    return as_logits(values, kind, str(kind)) if kind in (SOFTMAX, SIGMOID) else values


def restored(values: Any, kind: str | None, form: str, dtype: str) -> Any:
    """An output as the model returned it; the logits of probabilities are beside them, as Keras keeps them.

    Args:
        values: What was stored, shape (batch, ..., units).
        kind: The output's last activation.
        form: As `form_of` told.
        dtype: That of the model's output.
    """
    if form == LOGARITHMS:
        return ops.cast(ops.exp(ops.cast(values, "float32")), dtype)
    values = ops.cast(values, dtype)
    return getattr(keras.activations, str(kind))(values) if form == LOGITS else values


class Answers:
    """Asks a teacher batch by batch.

    Args:
        source: The teacher.
        taps: Its inner tensors to keep.
        from_logits: Whether it returns logits; None: read from its last activation.
        dtype: In which floating-point numbers are stored.

    Attributes:
        outputs: Structure of shapes and dtypes; known after the first batch.
        forms: How each output is stored.
        kinds: What each output is, as `kinds_of`.
    """

    def __init__(self, source: ModelTeacher, taps: Sequence[Tapped], from_logits: bool | None, dtype: str) -> None:
        self.outputs: Any = None
        self.kinds: list[str | None] = []
        self.forms: list[str] = []
        self._source, self._taps, self._from_logits, self._dtype = source, list(taps), from_logits, dtype
        self._run = tf.function(self._answered, autograph=False, reduce_retracing=True)

    def ask(self, x: Any) -> dict[str, np.ndarray]:
        """The columns of a batch.

        Raises: ValueError for NaN, and for numbers that float16 cannot hold.
        """
        found = {name: values.numpy() for name, values in self._run(x).items()}
        for name, values in found.items():
            self._check(name, values)
        return found

    def _answered(self, x: Any) -> dict[str, Any]:
        said = self._source.observe(x, self._taps, Observation(None, Recording()), None)
        flat = keras.tree.flatten(said.outputs)
        self.kinds = kinds = kinds_of(self._source.kinds(), "teacher", len(flat), self._from_logits)
        self.outputs = shapes_of(keras.tree.map_structure(_any_batch, said.outputs))
        self.forms = [form_of(values, kind) for values, kind in zip(flat, kinds, strict=True)]
        columns = {}
        for place, (values, kind, form) in enumerate(zip(flat, kinds, self.forms, strict=True)):
            # Float16 loses probabilities below 6e-8; of an unknown kind they may be some.
            small = form != VALUES or kind == LINEAR
            columns[f"output_{place}"] = _in(stored(values, kind), self._dtype if small else "float32")
        for place, tap in enumerate(self._taps):
            values = tap.of(said.seen).output
            columns[f"tap_{place}"] = _in(values, self._dtype)
            if (mask := getattr(values, "_keras_mask", None)) is not None:
                columns[f"mask_{place}"] = ops.cast(mask, "bool")
        return columns

    def _check(self, name: str, values: np.ndarray) -> None:
        if not np.issubdtype(values.dtype, np.floating):
            return
        kind, place = name.split("_")
        what = f"tap {self._taps[int(place)].name!r}" if kind == "tap" else f"output {place}"
        if np.isnan(values).any():
            raise ValueError(
                f"The teacher {self._source.model.name!r} gives NaN in {what}: its weights or its input are broken. "
                "Look at `teacher(x)`, and let `preprocessing` give what it was trained on."
            )
        if values.dtype == "float16" and np.isinf(values).any():
            raise ValueError(
                f'The teacher gives numbers beyond 65504 in {what}, which float16 cannot hold. Pass `dtype="float32"`.'
            )


def _in(values: Any, dtype: str) -> Any:
    return ops.cast(values, dtype) if keras.backend.is_float_dtype(values.dtype.name) else values


def _any_batch(tensor: Any) -> keras.KerasTensor:
    return keras.KerasTensor((None, *tensor.shape[1:]), tensor.dtype.name)
