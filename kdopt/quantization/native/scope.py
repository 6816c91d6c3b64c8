"""What a rule has in its hands: weights, tensors inside a layer and biases, rounded as the file will have them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.quantization.native.folding import along, factor_and_offset, is_trained
from kdopt.quantization.native.steps import Step
from kdopt.quantization.quantizers import fake_quantize, round_to_step, weight_step


class Scope:
    """What a rule calls to round what is inside a layer."""

    def __init__(self, run: Any, step: Step, prefix: str = "") -> None:
        self._run, self._step, self._prefix = run, step, prefix

    def part(self, name: str) -> "Scope":
        """For a layer inside the layer, whose ranges are named `name.range`."""
        return Scope(self._run, self._step, f"{self._prefix}{name}.")

    def inner(self, name: str, x: Any) -> Any:
        """`x` rounded to the range `name` of the layer."""
        return self._run.rounded(self._run.placement.inner[self._step.name][self._prefix + name], x)

    def fixed(self, x: Any, low: float, high: float) -> Any:
        """`x` rounded to a scale that TFLite prescribes."""
        return x if self._run.mode != "rounded" else self._run.begun(fake_quantize(x, low, high), x)

    def weight(self, variable: Any, axes: tuple[int, ...] = ()) -> Any:
        """A variable rounded to its symmetric grid, with one step for each entry along `axes`."""
        if self._run.mode == "float":
            return ops.convert_to_tensor(variable)
        return self._run.constant(lambda: self._run.begun(_rounded(variable.value, axes), variable.value))

    def linear(
        self,
        layer: Any,
        x: Any,
        kernel: str = "kernel",
        axes: tuple[int, ...] = (-1,),
        call: Callable[[Any, Any], Any] | None = None,
    ) -> Any:
        """Calls a layer with one kernel and perhaps a bias, without its activation.

        A BatchNormalization that the file folds into the kernel is called behind it where it normalizes with the
        statistics of the batch, which gives the same integers: the step of each channel grows with its factor.
        Elsewhere kernel and bias are folded, and the bias is rounded to the product of the steps of input and kernel,
        as in the file.

        Args:
            layer: The layer.
            x: Its input.
            kernel: Attribute of the kernel.
            axes: Axes of the kernel that are output channels, in the order of the output's last axis.
            call: Function `(x, weights) -> output without bias`. Defaults to calling the layer.
        """
        run, norm = self._run, self._step.norm
        variable = getattr(layer, f"_{kernel}", None)
        variable = getattr(layer, kernel) if variable is None else variable
        bias = getattr(layer, "bias", None)
        trained = norm is not None and is_trained(norm, run.training)
        if run.mode == "float" or trained:
            y = self._with(layer, variable, self.weight(variable, axes), bias, bias, x, call)
            return y if norm is None else norm(y, training=run.training)
        step = run.step_of(x)
        weights, offset, steps = run.constant(lambda: _folded(run, variable, bias, norm, step, axes))
        single = {layer.compute_dtype, keras.backend.standardize_dtype(x.dtype)} == {"float32"}
        if not run.in_integers or step is None or not single:
            return self._with(layer, variable, weights, bias, offset, x, call)
        # The sums of the file's integers, exact in float32 below 2^24.
        products = ops.reshape(steps * step, (-1,))
        whole = None if offset is None else _integer(ops.reshape(offset, (-1,)) / products, offset.shape)
        sums = self._with(layer, variable, _integer(weights / steps), bias, whole, _integer(x / step), call)
        if sums.shape[-1] != products.shape[0]:  # several axes of channels
            return self._with(layer, variable, weights, bias, offset, x, call)
        return run.summed(_integer(sums), products)

    def product(
        self,
        x: Any,
        kernel: Any,
        bias: Callable[[], Any] | None,
        axes: tuple[int, ...],
        call: Callable[[Any, Any], Any],
        factor: float = 1.0,
    ) -> Any:
        """`call(x, kernel * factor) + bias * factor`, rounded as `linear` does.

        Args:
            x: Tensor.
            kernel: Variable.
            bias: Function that gives a tensor of the kernel's sizes along `axes`; `None` for none.
            axes: Axes of the kernel that are output channels.
            call: Function `(x, weights) -> output`.
            factor: Of kernel and bias, e.g. what attention divides queries by. Defaults to `1.0`.
        """
        run, step = self._run, self._run.step_of(x)

        def values() -> tuple[Any, Any, Any]:
            weights, offset = ops.cast(kernel, "float32") * factor, None if bias is None else bias()
            offset = None if offset is None else ops.cast(offset, "float32") * factor
            return (weights, offset, None) if run.mode == "float" else _on_grid(run, weights, offset, step, axes)

        weights, offset, _ = run.constant(values)
        y = call(x, ops.cast(weights, x.dtype))
        return y if offset is None else y + ops.cast(offset, y.dtype)

    def scaled(self, x: Any, values: Callable[[], tuple[Any, Any]]) -> Any:
        """`x * factor + offset` with one value for each entry of the last axis: a depthwise 1 x 1 convolution.

        TFLite has a multiplication and an addition for it, whose factor has one step for all channels, and a rounding
        in between; a depthwise convolution has exact factors, and the offset an integer of 32 bits.

        Args:
            x: Tensor, channels last.
            values: Function of variables alone, without arguments, that gives factor and offset.
        """
        run, step = self._run, self._run.step_of(x)

        def rounded() -> tuple[Any, Any]:
            factor, offset = values()
            return factor, offset if step is None else round_to_step(offset, weight_step(factor, (0,)) * step)

        factor, offset = run.constant(rounded)
        if run.mode != "export":
            return x * ops.cast(factor, x.dtype) + ops.cast(offset, x.dtype)
        batch = x.shape[0] or -1
        places = x.shape[1:-1] if len(x.shape) == 4 else (1, int(np.prod(x.shape[1:-1])))
        image = ops.reshape(x, [batch, *places, x.shape[-1]])
        y = ops.depthwise_conv(image, np.reshape(factor, (1, 1, -1, 1)), data_format="channels_last") + offset
        return ops.reshape(y, [batch, *x.shape[1:]])

    def constant(self, values: Callable[[], Any]) -> Any:
        """What a function of variables alone gives; numbers where a converter wants them."""
        return self._run.constant(values)

    @property
    def is_float(self) -> bool:
        """Whether nothing is rounded, because ranges are measured."""
        return self._run.mode == "float"

    @property
    def exporting(self) -> bool:
        """Whether a converter reads it."""
        return self._run.mode == "export"

    @property
    def training(self) -> bool:
        """Whether it is a step of training."""
        return self._run.training

    def _with(
        self, layer: Any, variable: Any, weights: Any, bias: Any, offset: Any, x: Any, call: Callable[..., Any] | None
    ) -> Any:
        """Calls a layer with these weights and this offset; `bias` is the Variable for it, None without one."""
        if call is None and bias is not None:
            return _bare(layer, [(variable, weights), (bias, offset)], x)
        y = _bare(layer, [(variable, weights)], x) if call is None else call(x, ops.cast(weights, x.dtype))
        return y if offset is None else y + ops.cast(offset, y.dtype)


def _folded(run: Any, variable: Any, bias: Any, norm: Any, step: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Kernel and bias on their grids, a BatchNormalization folded into them; the steps of the kernel."""
    weights, offset = ops.cast(variable, "float32"), None if bias is None else ops.cast(bias, "float32")
    if norm is not None:
        factor, added = factor_and_offset(norm)
        weights = weights * along(factor, weights, axes)
        offset = added if offset is None else offset * factor + added
    return _on_grid(run, weights, offset, step, axes)


def _on_grid(run: Any, weights: Any, offset: Any, step: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Kernel and bias rounded, the bias to the product of the steps of input and kernel; the steps of the kernel."""
    steps = weight_step(weights, axes)
    if offset is not None and step is not None:
        offset = run.begun(round_to_step(offset, ops.reshape(steps, offset.shape) * step), offset)
    return run.begun(round_to_step(weights, steps), weights), offset, steps


def _integer(values: Any, shape: Any = None) -> Any:
    """The integers next to values that are all but integers; the gradient is that of the values."""
    made = values + ops.stop_gradient(ops.round(values) - values)
    return made if shape is None else ops.reshape(made, shape)


def _rounded(weights: Any, axes: tuple[int, ...]) -> Any:
    return round_to_step(weights, weight_step(weights, axes))


def _bare(layer: Any, values: list[tuple[Any, Any]], x: Any) -> Any:
    """Calls a layer with other values of some Variables, without its activation."""
    scope = keras.StatelessScope(state_mapping=[(v, ops.cast(value, v.dtype)) for v, value in values])
    with _without_activation(layer), scope:
        return layer(x)


@contextmanager
def _without_activation(layer: Any) -> Iterator[None]:
    # In `vars`: Keras would track a new layer, and it is put back at once.
    held = {name: vars(layer)[name] for name in ("activation", "activity_regularizer") if name in vars(layer)}
    changed = {"activation": keras.activations.linear, "activity_regularizer": None}
    vars(layer).update({name: changed[name] for name in held})
    try:
        yield
    finally:
        vars(layer).update(held)
