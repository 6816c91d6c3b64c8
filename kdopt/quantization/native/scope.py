"""What a rule has in its hands: weights, tensors inside a layer and biases, rounded as the file will have them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.quantization.native.folding import along, factor_and_offset, is_trained, normalized, statistics
from kdopt.quantization.native.kernels import record
from kdopt.quantization.native.steps import Step
from kdopt.quantization.quantizers import SMALLEST, fake_quantize, round_to_step, weight_step


class Scope:
    """What a rule calls to round what is inside a layer."""

    def __init__(self, run: Any, step: Step, prefix: str = "") -> None:
        self._run, self._step, self._prefix = run, step, prefix
        self._kernels: dict[Any, tuple[Any, Any]] = {}

    def part(self, name: str) -> "Scope":
        """For a layer inside the layer, whose ranges are named `name.range`."""
        return Scope(self._run, self._step, f"{self._prefix}{name}.")

    def without_norm(self) -> "Scope":
        """For a part of the layer that the BatchNormalization behind it is not folded into."""
        return Scope(self._run, replace(self._step, norm=None), self._prefix)

    def inner(self, name: str, x: Any) -> Any:
        """`x` rounded to the range `name` of the layer."""
        if self._run.placement.bits is None:
            return x
        return self._run.rounded(self._row(name), x)

    def lowest(self, name: str) -> Any:
        """The smallest value of the range `name` of the layer; hardly any less where activations stay float."""
        if self._run.placement.bits is None:
            return -1e9
        return self._run.limits[self._row(name)][0]

    def _row(self, name: str) -> int:
        """That of this part, or one that the parts share."""
        rows = self._run.placement.inner[self._step.name]
        return rows[self._prefix + name if self._prefix + name in rows else name]

    def as_rounded(self, moved: Any, x: Any) -> Any:
        """`moved`, the entries of `x` in another order, known to have its step."""
        step = self._run.step_of(x)
        return moved if step is None else self._run.with_step(moved, step)

    def fixed(self, x: Any, low: float, high: float) -> Any:
        """`x` rounded to a scale that TFLite prescribes."""
        bits = self._run.placement.bits
        self._run.fixed.add(self._step.layer)
        if self._run.mode != "rounded" or bits is None:
            return x
        return self._run.begun(fake_quantize(x, low, high, bits), x)

    def weight(self, variable: Any, axes: tuple[int, ...] = ()) -> Any:
        """A variable rounded to the grid of its layer, with one step for each entry along `axes`."""
        self._note(variable, axes)
        if self._run.mode == "float":
            return ops.convert_to_tensor(variable)
        values, _ = self._exported(axes, lambda: (*self._on_grid(variable, axes), None))
        return values

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
        self._note(variable, axes)
        trained = norm is not None and is_trained(norm, run.training)
        if run.mode == "float" or (trained and not (run.training and run.how.folding)):
            y = self._with(layer, variable, self.weight(variable, axes), bias, bias, x, call)
            return y if norm is None else normalized(norm, y, run)
        step = run.step_of(x)
        plain = None
        if trained:
            plain = self._with(layer, variable, ops.convert_to_tensor(variable), bias, bias, x, call)

        def folded() -> tuple[Any, Any, Any, Any]:
            offset, factor = None if bias is None else ops.cast(bias, "float32"), None
            if norm is not None:
                factor, added = factor_and_offset(norm, None if plain is None else statistics(norm, plain, run))
                offset = added if offset is None else offset * factor + added
            return self._rounded(variable, axes, factor, offset, step)

        weights, offset, steps = self._exported(axes, folded)
        single = {layer.compute_dtype, keras.backend.standardize_dtype(x.dtype)} == {"float32"}
        if not run.in_integers or step is None or steps is None or not single:
            return self._with(layer, variable, weights, bias, offset, x, call)
        # The sums of the file's integers, exact in float32 below 2^24.
        products = ops.reshape(steps * step, (-1,))
        if products.shape[0] == 1:  # one step for all channels
            products = ops.repeat(products, int(np.prod([variable.shape[axis] for axis in axes])))
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
        self._note(kernel, axes)

        def values() -> tuple[Any, Any, Any, Any]:
            offset = None if bias is None else ops.cast(bias(), "float32") * factor
            if run.mode == "float":
                return ops.cast(kernel, "float32") * factor, offset, None, offset
            return self._rounded(kernel, axes, factor, offset, step)

        weights, offset, _ = self._exported(axes, values)
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

    def step_of(self, x: Any) -> Any:
        """Step of a tensor, None if it is not rounded yet."""
        return self._run.step_of(x)

    def normalized(self, norm: Any, x: Any) -> Any:
        """What a BatchNormalization with channels last makes of a tensor."""
        return normalized(norm, x, self._run)

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

    def _note(self, variable: Any, axes: tuple[int, ...]) -> None:
        noted = self._run.noted
        if noted is not None and all(variable is not seen for _, seen, _ in noted):
            noted.append((self._step.layer, variable, axes))

    def _on_grid(self, variable: Any, axes: tuple[int, ...], factor: Any = None) -> tuple[Any, Any]:
        """`variable * factor` on the grid of the layer, and the steps; as it is without steps in a float layer.

        Computed once in a call of the layer, whatever its number of steps of time.
        """
        if factor is not None and len(np.shape(factor)):
            return self._newly_on_grid(variable, axes, factor)
        key = id(variable), axes, factor
        if key not in self._kernels:
            self._kernels[key] = self._newly_on_grid(variable, axes, factor)
        return self._kernels[key]

    def _newly_on_grid(self, variable: Any, axes: tuple[int, ...], factor: Any) -> tuple[Any, Any]:
        run, scheme = self._run, self._run.placement.schemes.of(self._step.layer)
        exact = weights = ops.cast(variable, "float32")
        if factor is not None:
            factor = along(factor, weights, axes) if len(np.shape(factor)) else factor
            exact = weights * factor
        if scheme.weights is None:
            return exact, None
        axes = axes if scheme.per_channel else ()
        if scheme.weights.folds or factor is None:
            values, steps = scheme.weights.rounded(exact, axes, run.placement.learned.get(id(variable)))
        else:
            values, steps = scheme.weights.rounded(weights, axes, run.placement.learned.get(id(variable)))
            values, steps = values * factor, ops.maximum(steps * ops.abs(factor), SMALLEST)
        return run.begun(values, exact), steps

    def _rounded(
        self, variable: Any, axes: tuple[int, ...], factor: Any, offset: Any, step: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Kernel and offset rounded, the offset to the product of the steps of input and kernel; the steps of the
        kernel; the offset as it was."""
        run = self._run
        weights, steps = self._on_grid(variable, axes, factor)
        shifted = self._step.name in run.placement.shifted
        if run.mode == "export" and step is not None and (offset is not None or shifted):
            own = weight_step(weights, axes) if steps is None else steps
            offset = _uneven(offset, own * step, [variable.shape[axis] for axis in axes])
        if offset is None or step is None or steps is None:
            return weights, offset, steps, offset
        products = steps * step
        size = int(np.prod(products.shape))
        products = ops.reshape(products, offset.shape) if size > 1 else ops.reshape(products, (1,) * len(offset.shape))
        if run.mode == "export" and shifted:
            return weights, offset, steps, offset
        return weights, run.begun(round_to_step(offset, products), offset), steps, offset

    def _exported(self, axes: tuple[int, ...], made: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """All but the last of `made()`: numbers for a converter, which is told what it cannot derive from them."""
        run, scheme = self._run, self._run.placement.schemes.of(self._step.layer)
        *values, bias = run.constant(made)
        if run.mode == "export" and run.placement.has_special:
            bits, plain = 0 if scheme.weights is None else scheme.weights.bits, run.placement.bits and scheme.is_plain
            run.kernels.append(record(self._step.layer, bits, values[0], values[-1], axes, bias, bool(plain)))
        return tuple(values)

    def _with(
        self, layer: Any, variable: Any, weights: Any, bias: Any, offset: Any, x: Any, call: Callable[..., Any] | None
    ) -> Any:
        """Calls a layer with these weights and this offset; `bias` is the Variable for it, None without one."""
        if call is None and bias is not None:
            return _bare(layer, [(variable, weights), (bias, offset)], x)
        y = _bare(layer, [(variable, weights)], x) if call is None else call(x, ops.cast(weights, x.dtype))
        return y if offset is None else y + ops.cast(offset, y.dtype)


def _uneven(offset: Any, products: Any, sizes: list[int]) -> Any:
    """An offset for each channel that is not the same for all, by a quarter of a step of the first: to one that is, the
    converter gives the step of one channel.

    Args:
        offset: Tensor, or None for zeros.
        products: Steps of input and kernel multiplied.
        sizes: Of the channels' axes.
    """
    values = np.zeros(sizes, "float32") if offset is None else np.array(offset)
    if values.size > 1 and np.all(values == values.flat[0]):
        values.flat[0] += 0.25 * np.ravel(products)[0]
    return values


def _integer(values: Any, shape: Any = None) -> Any:
    """The integers next to values that are all but integers; the gradient is that of the values."""
    made = values + ops.stop_gradient(ops.round(values) - values)
    return made if shape is None else ops.reshape(made, shape)


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
