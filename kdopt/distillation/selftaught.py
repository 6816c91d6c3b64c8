"""Teachers that are made of the student itself."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.copying import copy_model
from kdopt.core.validation import check_fraction
from kdopt.distillation.activations import output_activations
from kdopt.distillation.outputs import symbolic_outputs
from kdopt.distillation.taps import Tapped, tensors_of
from kdopt.distillation.teachers import Observation, observed

_COARSE = ("float16", "bfloat16")


class SelfTeacher:
    """A teacher that the Distiller makes of its student; `bind` is called with it once."""

    model: keras.Model
    waits = False

    def bind(self, student: keras.Model) -> None:
        """Takes the built student."""
        raise NotImplementedError

    def kinds(self) -> list[str | None] | None:
        return output_activations(self.model)

    def outputs(self) -> Any:
        return symbolic_outputs(self.model)

    def tensors(self, inputs: Any) -> list[Tapped]:
        return tensors_of(self.model, inputs)

    def after_step(self) -> None:
        """Called in each training step after the student was updated."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The teacher that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable("kdopt")
class MeanTeacher(SelfTeacher):
    """The student's own weights, averaged over training, teach it.

        t <- decay * t + (1 - decay) * s       after every step, for every Variable that is a weight

    Args:
        decay: Float in [0, 1). The teacher is about as old as 1 / (1 - decay) steps. Defaults to `0.999`.

    Raises: ValueError for a decay out of range.

    Example:
    ```
    Distiller(student=net, teacher=MeanTeacher(0.99), distillation_losses=[SoftTargets(1.0)])
    ```

    Reference: Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = check_fraction("decay", decay)

    def bind(self, student: keras.Model) -> None:
        if not student.built:
            raise ValueError(
                f"MeanTeacher copies the student, but {student.name!r} is not built. Give it an `Input`, or call it "
                "on a batch first."
            )
        coarse = [one for one in student.weights if keras.backend.standardize_dtype(one.dtype) in _COARSE]
        if coarse:
            raise ValueError(
                f"MeanTeacher averages weights in small steps, which {coarse[0].dtype} cannot hold ({coarse[0].path}): "
                "the teacher would not move. Keep float32 weights: `mixed_bfloat16` or `mixed_float16`."
            )
        self.student, self.model = student, copy_model(student)

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        del student, batch
        with keras.StatelessScope():
            return observed(lambda: self.model(x, training=False), wanted)

    def after_step(self) -> None:
        pairs = list(zip(self.model.weights, self.student.weights, strict=True))
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            for own, new in pairs:
                own.assign(self._mean(own, new))
            return
        context.merge_call(self._update_all, args=([(own.value, new.value) for own, new in pairs],))

    def _update_all(self, strategy: Any, pairs: list[tuple[Any, Any]]) -> None:
        for own, new in pairs:
            strategy.extended.update(own, lambda a, b: a.assign(self._mean(a, b)), args=(new,))

    def _mean(self, own: Any, new: Any) -> Any:
        own, new = ops.convert_to_tensor(own), ops.convert_to_tensor(new)
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(own.dtype)):
            return new
        return self.decay * own + (1 - self.decay) * new

    def get_config(self) -> dict[str, Any]:
        return {"decay": self.decay}


@keras.saving.register_keras_serializable("kdopt")
class DeepestExit(SelfTeacher):
    """One output of the student teaches its others: an early exit learns from the last one.

    The student is a model with several outputs of the same classes; what one of them says, without its gradient, is the
    teacher's answer for all.

    Args:
        output: Index or name of the output that teaches; of a dict of outputs, its key, or an index in the order in
            which the model was given them. Defaults to `-1`, the last.

    Raises: ValueError for a student with a single output or without this one.

    Reference: Zhang et al., "Be Your Own Teacher", ICCV 2019, equations 4 and 5.
    """

    waits = True

    def __init__(self, output: int | str = -1) -> None:
        if isinstance(output, bool) or not isinstance(output, int | str):
            raise TypeError(f"`output` must be the index or the name of a model output; got {output!r}.")
        self.output = output

    def bind(self, student: keras.Model) -> None:
        self.model = student
        own = symbolic_outputs(student)
        if own is None:
            raise ValueError(
                f"DeepestExit needs to know the outputs of {student.name!r} beforehand: give it a Functional student."
            )
        names = list(own) if isinstance(own, dict) else list(student.output_names)
        if len(names) < 2:
            raise ValueError(
                f"DeepestExit needs a student with several outputs; {student.name!r} has {len(names)}. Give it early "
                "exits: `keras.Model(inputs, [exit_1, exit_2, last])`."
            )
        if isinstance(self.output, str) and self.output not in names:
            raise ValueError(f"DeepestExit: {student.name!r} has no output {self.output!r}; it has {', '.join(names)}.")
        if isinstance(self.output, int) and not -len(names) <= self.output < len(names):
            raise ValueError(f"DeepestExit: {student.name!r} has {len(names)} outputs, none of index {self.output}.")
        name = self.output if isinstance(self.output, str) else names[self.output]
        self._index = (sorted(names) if isinstance(own, dict) else names).index(name)  # Keras flattens dicts sorted

    def kinds(self) -> list[str | None] | None:
        found = output_activations(self.model)
        return found and [found[self._index]] * len(found)

    def outputs(self) -> Any:
        own = symbolic_outputs(self.model)
        return None if own is None else self._taught(own)

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        del x, wanted, batch
        return Observation(self._taught(student.outputs), student.seen)

    def _taught(self, outputs: Any) -> Any:
        teaching = keras.tree.flatten(outputs)[self._index]
        return keras.tree.map_structure(lambda _: teaching, outputs)

    def get_config(self) -> dict[str, Any]:
        return {"output": self.output}
