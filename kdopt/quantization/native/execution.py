"""One pass over the steps of a model: in float, with rounding as training wants it, or as a converter reads it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from keras.src import backend
from keras.src.ops.operation import Operation

from kdopt.core.recording import is_recording, note
from kdopt.graph.inline import Ref
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.native.rules import LEFT
from kdopt.quantization.native.scope import Scope
from kdopt.quantization.native.steps import Step, end_of_relu
from kdopt.quantization.quantizers import fake_quantize, round_between

# "float": no rounding, ranges are measured. "rounded": as the file computes. "export": for the converter, weights as
# constants on their grid, and only those ranges that it cannot conclude.
Mode = Literal["float", "rounded", "export"]
Limits = tuple[Any, Any]
LEVELS = 255  # of 8 bits


@dataclass
class Training:
    """What a step of training does besides computing.

    Attributes:
        quantize: Function `(x, low, high, bits)` that rounds a tensor.
        starts: Scalar, whether tensors and weights are rounded already; `None`: from the first step on.
        folding: Whether BatchNormalization is folded into kernels before these are rounded.
        frozen: Scalar, whether BatchNormalization uses its moving statistics; `None`: never.
        errors: Filled with the mean squared error of each rounded tensor where it is a list.
    """

    quantize: Callable[[Any, Any, Any, int], Any] = fake_quantize
    starts: Any = None
    folding: bool = False
    frozen: Any = None
    errors: list[Any] | None = None


class Pass:
    """One pass.

    Args:
        placement: The steps.
        limits: Smallest and largest value of each range.
        mode: See `Mode`.
        training: What a step of training does; `None` in inference.
        observe: Called with the number of a range and a tensor in it; returns the limits to round it with.
        only: Names of the steps and inputs that round; the others compute in float. Defaults to `None`: all.
        seen: Filled with the tensors of the model, by number.
        after: Called with a step and what it gave, before that is rounded; returns what to go on with.
        exact: Whether inference computes with the file's very integers where it can; else with fake quantization,
            which a converter understands.
        noted: Filled with the kernels, each once: (name of the layer, Variable, axes of its channels).

    Attributes:
        kernels: Of mode "export": what a file cannot derive from the constants by itself, see `Scope`.
        fixed: Names of the layers with a tensor inside whose scale TFLite prescribes.
    """

    def __init__(
        self,
        placement: Placement,
        limits: list[Limits],
        mode: Mode = "rounded",
        training: Training | None = None,
        observe: Callable[[int, Any], Limits] | None = None,
        only: Collection[str] | None = None,
        seen: dict[int, Any] | None = None,
        after: Callable[[Step, Any], Any] | None = None,
        noted: list[tuple[str, Any, tuple[int, ...]]] | None = None,
        exact: bool = True,
    ) -> None:
        self.placement, self.limits, self.mode = placement, limits, mode
        self.how, self.training, self.noted = training or Training(), training is not None, noted
        self.kernels: list[dict[str, Any]] = []
        self.fixed: set[str] = set()
        self._exact = exact and after is None
        self._observe, self._only, self._whole, self._after = observe, only, mode, after
        self._seen = {} if seen is None else seen
        self._cloned: dict[int, Any] = {}
        self._noted: Any = None
        self._steps: dict[int, tuple[Any, Any]] = {}
        self._sums: dict[int, tuple[Any, Any, Any, float | None]] = {}

    def __call__(self, tensors: list[Any]) -> list[Any]:
        """Outputs of the model, flat."""
        traced = self.placement.traced
        values = self._seen
        for entry, x in zip(traced.inputs, tensors, strict=True):
            self._turn_to(entry.name)
            values[entry.index] = self._placed(entry.index, x)
        for step in self.placement.steps:
            self._turn_to(step.name)
            # The converter fuses a ReLU with a dense layer even where others read that, too.
            read = {**values, **self._cloned} if step.rule.relu and self._cloned else values
            args, kwargs = keras.tree.map_structure(
                lambda leaf, read=read: read[leaf.index] if isinstance(leaf, Ref) else leaf, (step.args, step.kwargs)
            )
            outputs = self._called(step, args, kwargs)
            if step.rule.relu and id(args[0]) in self._sums:
                _, sums, products, _ = self._sums[id(args[0])]
                self._sums[id(outputs)] = (outputs, sums, products, end_of_relu(step.operation))
            if self._after is not None:
                outputs = self._after(step, outputs)
            self._regularize(step.regularized, outputs)
            for number, output in zip(step.outputs, keras.tree.flatten(outputs), strict=True):
                values[number] = self._placed(number, output)
                if number in self.placement.cloned and self.mode == "rounded":
                    self._cloned[number] = output
            if is_recording() and len(step.outputs) == 1:
                self._note(step, values[step.outputs[0]])
        return [values[number] for number in traced.outputs]

    def _note(self, step: Step, value: Any) -> None:
        """Says what a layer made to who records it; with the activation inside it, as the layer's call would."""
        if isinstance(step.operation, Operation):
            self._noted = step.norm or step.operation
            note(self._noted, value)
        elif self._noted is not None and self._noted.name == step.layer:
            note(self._noted, value, again=True)

    def _regularize(self, layer: Any, outputs: Any) -> None:
        """Adds what the activity regularizer of a layer says, by sample, as Keras does."""
        if self._whole != "float" and layer is not None and layer.activity_regularizer is not None:
            loss = layer.activity_regularizer(outputs)
            layer.add_loss(ops.divide_no_nan(loss, ops.cast(ops.shape(outputs)[0], loss.dtype)))

    def _turn_to(self, name: str) -> None:
        """Rounds, or not, what comes now."""
        if self._only is not None:
            self.mode = self._whole if name in self._only else "float"

    def rounded(self, row: int, x: Any) -> Any:
        """A tensor rounded to a range."""
        if self._observe is not None:
            self.limits[row] = self._observe(row, x)
        low, high = self.limits[row]
        if self.mode == "float":
            return x
        rounded = self.how.quantize(x, low, high, self.bits)
        if self.how.errors is not None:
            self.how.errors.append(ops.mean(ops.square(ops.cast(rounded, "float32") - ops.cast(x, "float32"))))
        made = _masked_like(self.begun(rounded, x), x)
        if id(x) in self._sums:
            made = made + ops.stop_gradient(self._scaled_sums(x, low, high) - made)
        self._steps[id(made)] = (made, step_of(low, high, self.bits))
        return made

    @property
    def bits(self) -> int:
        """Of activations."""
        return self.placement.bits or 8

    @property
    def in_integers(self) -> bool:
        """Whether kernels are applied to the file's very integers."""
        return self.mode == "rounded" and not self.training and self._exact and self.bits == 8

    def summed(self, sums: Any, products: Any) -> Any:
        """The tensor of sums of integers, each worth the product of the steps of input and kernel."""
        made = sums * products
        self._sums[id(made)] = (made, sums, products, float("-inf"))
        return made

    def _scaled_sums(self, x: Any, low: Any, high: Any) -> Any:
        """Sums of integers on the grid of a range, by the arithmetic of XNNPACK: one product, halves to even.

        q = clip(round(sum * (s_input * s_kernel / s)) + z),   also to the limits of a fused ReLU
        """
        _, sums, products, cap = self._sums[id(x)]
        step = step_of(low, high)
        zero = ops.round(-low / step)
        fused = cap is None or cap > 0
        least = zero if fused else 0.0
        most = float(LEVELS) if cap is None or cap < 0 else ops.minimum(float(LEVELS), ops.round(cap / step) + zero)
        integer = ops.clip(ops.round(sums * (products / step)) + zero, least, most)
        return (integer - zero) * step

    def begun(self, rounded: Any, exact: Any) -> Any:
        """What is rounded, once rounding has started."""
        starts = self.how.starts
        return rounded if starts is None else ops.where(starts, rounded, ops.cast(exact, rounded.dtype))

    def step_of(self, x: Any) -> Any:
        """Step of a tensor, None if it is not rounded."""
        return self._steps.get(id(x), (x, None))[1]

    def constant(self, made: Callable[[], Any]) -> Any:
        """What a function of variables alone gives; numbers for a converter."""
        if self.mode != "export":
            return made()
        import tensorflow as tf

        with tf.init_scope():
            return keras.tree.map_structure(lambda x: None if x is None else np.asarray(x), made())

    def _placed(self, number: int, x: Any) -> Any:
        grid = self.placement.grids.get(number)
        if grid is None:
            return x
        if grid.own:
            assert grid.row is not None
            return self.rounded(grid.row, x)
        if self.mode == "float":
            return x
        low, high = grid.limits or self.limits[grid.row or 0]
        is_loss = grid.limits and self.training and number in self.placement.traced.outputs
        step = step_of(low, high, self.bits) * grid.factor
        if self.mode == "rounded" and grid.rounds and not is_loss:
            made = (round_between if grid.limits is None else fake_quantize)(x, low, high, self.bits)
            x = _masked_like(self.begun(made, x), x)
        return self.with_step(x, step)

    def with_step(self, x: Any, step: Any) -> Any:
        self._steps[id(x)] = (x, step)
        return x

    def _called(self, step: Step, args: tuple, kwargs: dict[str, Any]) -> Any:
        if step.rule.call is None:
            if "training" in getattr(step.operation, "_call_context_args", {}):
                kwargs["training"] = self.training
            if step.rule is LEFT and self.mode == "export":
                return _left_float(step, args, kwargs)
            return step.operation(*args, **kwargs)
        return step.rule.call(Scope(self, step), step.operation, *args, **kwargs)


def _left_float(step: Step, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Calls a layer that a file is to leave in floating point, under its name.

    Two factors that cancel out, before and behind it: the converter would compute a mean or an exponential on integers
    all the same, and moves the rounding of the output behind a reshaping, which it then refuses.
    """

    def apart(x: Any) -> Any:
        return x * 2.0 * 0.5 if "float" in str(getattr(x, "dtype", "")) else x

    with keras.name_scope(step.layer):
        args, kwargs = keras.tree.map_structure(apart, (args, kwargs))
        return keras.tree.map_structure(apart, step.operation(*args, **kwargs))


def step_of(low: Any, high: Any, bits: int = 8) -> Any:
    """(high - low) / (2^bits - 1), rounded once: as the file stores it."""
    levels = 2**bits - 1
    if isinstance(low, (float, np.floating)):
        return np.float32((np.float64(high) - np.float64(low)) / levels)
    wide = (ops.cast(high, "float64") - ops.cast(low, "float64")) / levels
    return ops.cast(wide, "float32")


def _masked_like(made: Any, x: Any) -> Any:
    mask = backend.get_keras_mask(x)
    if mask is not None:
        backend.set_keras_mask(made, mask)
    return made
