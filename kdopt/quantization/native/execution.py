"""One pass over the steps of a model: in float, with rounding as training wants it, or as a converter reads it."""

from collections.abc import Callable, Collection
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from keras.src import backend
from keras.src.ops.nn import Relu6

from kdopt.graph.inline import Ref
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.native.scope import Scope
from kdopt.quantization.native.steps import Step
from kdopt.quantization.quantizers import fake_quantize, round_between

# "float": no rounding, ranges are measured. "rounded": as the file computes. "export": for the converter, weights as
# constants on their grid, and only those ranges that it cannot conclude.
Mode = Literal["float", "rounded", "export"]
Limits = tuple[Any, Any]
LEVELS = 255


class Pass:
    """One pass.

    Args:
        placement: The steps.
        limits: Smallest and largest value of each range.
        mode: See `Mode`.
        training: Whether it is a step of training.
        observe: Called with the number of a range and a tensor in it; returns the limits to round it with.
        starts: Scalar, whether tensors and weights are rounded already; `None` where they are from the first step on.
        only: Names of the steps and inputs that round; the others compute in float. Defaults to `None`: all.
        seen: Filled with the tensors of the model, by number.
        after: Called with a step and what it gave, before that is rounded; returns what to go on with.
    """

    def __init__(
        self,
        placement: Placement,
        limits: list[Limits],
        mode: Mode = "rounded",
        training: bool = False,
        observe: Callable[[int, Any], Limits] | None = None,
        starts: Any = None,
        only: Collection[str] | None = None,
        seen: dict[int, Any] | None = None,
        after: Callable[[Step, Any], Any] | None = None,
    ) -> None:
        self.placement, self.limits, self.mode, self.training = placement, limits, mode, training
        self._observe, self._only, self._whole, self._after = observe, only, mode, after
        self._seen = {} if seen is None else seen
        self._starts = starts
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
            args, kwargs = keras.tree.map_structure(
                lambda leaf: values[leaf.index] if isinstance(leaf, Ref) else leaf, (step.args, step.kwargs)
            )
            outputs = self._called(step, args, kwargs)
            if step.rule.relu and id(args[0]) in self._sums:
                _, sums, products, _ = self._sums[id(args[0])]
                self._sums[id(outputs)] = (outputs, sums, products, _cap(step.operation))
            if self._after is not None:
                outputs = self._after(step, outputs)
            if step.regularized is not None and step.regularized.activity_regularizer is not None:
                loss = step.regularized.activity_regularizer(outputs)  # by sample, as Keras does
                step.regularized.add_loss(ops.divide_no_nan(loss, ops.cast(ops.shape(outputs)[0], loss.dtype)))
            for number, output in zip(step.outputs, keras.tree.flatten(outputs), strict=True):
                values[number] = self._placed(number, output)
        return [values[number] for number in traced.outputs]

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
        made = _masked_like(self.begun(fake_quantize(x, low, high), x), x)
        if id(x) in self._sums:
            made = made + ops.stop_gradient(self._scaled_sums(x, low, high) - made)
        self._steps[id(made)] = (made, _step(low, high))
        return made

    @property
    def in_integers(self) -> bool:
        """Whether kernels are applied to the file's very integers."""
        return self.mode == "rounded" and not self.training and self._after is None

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
        step = _step(low, high)
        zero = ops.round(-low / step)
        fused = cap is None or cap > 0
        least = zero if fused else 0.0
        most = float(LEVELS) if cap is None or cap < 0 else ops.minimum(float(LEVELS), ops.round(cap / step) + zero)
        integer = ops.clip(ops.round(sums * (products / step)) + zero, least, most)
        return (integer - zero) * step

    def begun(self, rounded: Any, exact: Any) -> Any:
        """What is rounded, once rounding has started."""
        return rounded if self._starts is None else ops.where(self._starts, rounded, ops.cast(exact, rounded.dtype))

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
        step = _step(low, high)
        if self.mode == "rounded" and grid.rounds and not is_loss:
            made = round_between(x, low, high) if grid.limits is None else fake_quantize(x, low, high)
            x = _masked_like(self.begun(made, x), x)
        return self._with_step(x, step)

    def _with_step(self, x: Any, step: Any) -> Any:
        self._steps[id(x)] = (x, step)
        return x

    def _called(self, step: Step, args: tuple, kwargs: dict[str, Any]) -> Any:
        if step.rule.call is None:
            if "training" in getattr(step.operation, "_call_context_args", {}):
                kwargs["training"] = self.training
            return step.operation(*args, **kwargs)
        return step.rule.call(Scope(self, step), step.operation, *args, **kwargs)


def _step(low: Any, high: Any) -> Any:
    """(high - low) / 255, rounded once: as the file stores it."""
    if isinstance(low, (float, np.floating)):
        return np.float32((np.float64(high) - np.float64(low)) / LEVELS)
    wide = (ops.cast(high, "float64") - ops.cast(low, "float64")) / LEVELS
    return ops.cast(wide, "float32")


def _cap(operation: Any) -> float | None:
    """Where a ReLU ends: 6, or nowhere."""
    function = operation.activation if isinstance(operation, keras.layers.Activation) else operation
    six = function is keras.activations.relu6 or isinstance(function, Relu6) or getattr(function, "max_value", None)
    return 6.0 if six else None


def _masked_like(made: Any, x: Any) -> Any:
    mask = backend.get_keras_mask(x)
    if mask is not None:
        backend.set_keras_mask(made, mask)
    return made
