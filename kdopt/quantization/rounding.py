"""Adaptive rounding of a model: layer by layer, so that outputs stay near those of the float net."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kdopt.core.validation import check_integer
from kdopt.graph.inline import Ref
from kdopt.quantization.adaround import ITERATIONS, KernelGrid, adapt
from kdopt.quantization.data import calibration_batches, sample
from kdopt.quantization.native.execution import Limits, Mode, Pass
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.native.scope import Scope
from kdopt.quantization.native.steps import Step
from kdopt.quantization.quantizers import weight_step
from kdopt.quantization.weight_grids import LearnedStep, Uniform


def kernel_grid(placement: Placement, step: Step, variable: Any, axes: tuple[int, ...]) -> KernelGrid | str:
    """The grid that the model rounds a kernel to, or why there is none to adapt to.

    Args:
        placement: Of the model.
        step: The layer.
        variable: Its kernel.
        axes: Axes of the kernel that are output channels.
    """
    scheme = placement.schemes.of(step.layer)
    grid = scheme.weights
    if grid is None:
        return "it stays float"
    most = 2 ** (grid.bits - 1) - 1
    if isinstance(grid, LearnedStep):
        return KernelGrid(np.asarray(placement.learned[id(variable)]) / most, most)
    if type(grid) is not Uniform:
        return f"the step of its grid ({grid}) follows from its weights"
    if step.norm is not None and not scheme.per_channel:
        return "BatchNormalization spreads its one step over the channels"
    return KernelGrid(
        np.asarray(weight_step(np.asarray(variable), axes if scheme.per_channel else (), grid.bits)), most
    )


@dataclass(frozen=True)
class LayerRounding:
    """How the kernel of one layer was rounded.

    Attributes:
        layer: Name.
        mode: `"adaptive"` or `"nearest"`.
        nearest_mse: Float, mean squared error of the layer's output if its kernel is rounded to the nearest step, the
            layers before it as they were rounded; `None` where it was not measured.
        adaptive_mse: Float, the same of the adapted kernel; `None` where there is none.
        moved: Integer, how many weights went to the other side than the nearest.
        reason: String, why it stays `"nearest"`, or which other kernel of the layer does.
    """

    layer: str
    mode: Literal["adaptive", "nearest"]
    nearest_mse: float | None = None
    adaptive_mse: float | None = None
    moved: int = 0
    reason: str = ""


def round_adaptively(
    model: NativeModel,
    data: Any,
    *,
    samples: int = 256,
    iterations: int = ITERATIONS,
    verbose: int = 1,
) -> tuple[LayerRounding, ...]:
    """Rounds kernels so that each layer's output stays near that of the float net; changes the model's kernels.

    Layer by layer in order, each with the inputs that the rounded layers before it make. The new weights lie on the
    grid of the old, so that rounding to the nearest step, as the model and its file do, leaves them where they are. A
    kernel whose error on the data would not be smaller is left alone.

    Args:
        model: With its ranges.
        data: Real inputs, as `calibration` of `quantize_aware`.
        samples: Integer >= 1, no more of them than this. Defaults to `256`.
        iterations: Integer >= 1, steps of Adam for each layer. Defaults to `1000`.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns: One `LayerRounding` for each layer with a kernel, in order.
    Raises: RuntimeError for a model without ranges; TypeError, ValueError for data or numbers that cannot be used.
    Reference: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
    """
    check_integer("samples", samples)
    check_integer("iterations", iterations)
    model.require_ranges()
    placement = model._hidden.placement
    limits = [tuple(pair) for pair in np.asarray(model.ranges.limits)]
    inputs = [ops.convert_to_tensor(x) for x in sample(calibration_batches(data, model._inputs), samples)]
    exact = _Tensors(placement, limits, "float")
    exact.run(inputs)
    calls = Counter(id(step.operation) for step in placement.steps if _has_kernel(step))
    bar = keras.utils.Progbar(calls.total(), verbose=verbose, unit_name="layer")
    records: dict[int, LayerRounding] = {}

    def after(step: Step, output: Any) -> Any:
        if not calls[id(step.operation)]:
            return output
        products = rounded.products(step)
        if calls[id(step.operation)] > 1 or not products:
            reason = "it is called several times" if products else "it is no convolution or dense layer"
            records[id(step.operation)] = LayerRounding(step.layer, "nearest", reason=reason)
        else:
            output, record = _adapted(step, products[-1], output, exact, rounded, iterations)
            records[id(step.operation)] = record
        bar.add(1)
        return output

    rounded = _Tensors(placement, limits, "rounded", after)
    rounded.run(inputs)
    return tuple(records.values())


@dataclass(frozen=True)
class _Product:
    """What a rule gives to `Scope.linear`, and what that makes of it."""

    layer: Any
    x: Any
    kernel: str
    axes: tuple[int, ...]
    call: Any
    output: Any


class _Tap(Scope):
    """Notes what goes through `linear`."""

    def __init__(self, run: Pass, step: Step) -> None:
        super().__init__(run, step)
        self.products: list[_Product] = []

    def linear(self, layer: Any, x: Any, kernel: str = "kernel", axes: Any = (-1,), call: Any = None) -> Any:
        y = super().linear(layer, x, kernel, axes, call)
        self.products.append(_Product(layer, x, kernel, axes, call, y))
        return y


class _Tensors:
    """A pass, and the tensors that it has made so far by number."""

    def __init__(self, placement: Placement, limits: list[Limits], mode: Mode, after: Any = None) -> None:
        self.values: dict[int, Any] = {}
        self.run = Pass(placement, list(limits), mode, seen=self.values, after=after)

    def call(self, scope: Scope, step: Step) -> Any:
        """Output of a step."""
        args, kwargs = keras.tree.map_structure(
            lambda leaf: self.values[leaf.index] if isinstance(leaf, Ref) else leaf, (step.args, step.kwargs)
        )
        assert step.rule.call is not None
        return step.rule.call(scope, step.operation, *args, **kwargs)

    def products(self, step: Step) -> list[_Product]:
        """What goes through `Scope.linear` in a step."""
        tap = _Tap(self.run, step)
        if step.rule.call is not None:
            self.call(tap, step)
        return tap.products


def _adapted(
    step: Step, product: _Product, output: Any, exact: _Tensors, rounded: _Tensors, iterations: int
) -> tuple[Any, LayerRounding]:
    """The output of a step with its kernel adapted, which changes the kernel; as it was if that is not better."""
    variable, relu = _variable(product), _relu_behind(step, exact.run.placement)
    kernel, placement = np.asarray(variable), rounded.run.placement
    fits = kernel_grid(placement, step, variable, product.axes)
    if isinstance(fits, str):
        return output, LayerRounding(step.layer, "nearest", reason=fits)

    def behind(values: Any, x: Any) -> Any:
        with keras.StatelessScope(state_mapping=[(variable, values)]):
            y = Scope(exact.run, step).linear(product.layer, x, product.kernel, product.axes, product.call)
        return relu(ops.cast(y, "float32"))

    def error(y: Any) -> float:
        difference = relu(ops.cast(y, "float32")) - relu(ops.cast(exact.values[step.outputs[0]], "float32"))
        return float(ops.mean(ops.square(difference)))

    *_, expected = exact.products(step)  # of a separable convolution the last
    made = adapt(kernel, fits, behind, product.x, relu(ops.cast(expected.output, "float32")), iterations)
    variable.assign(made)
    after = kernel_grid(placement, step, variable, product.axes)
    assert isinstance(after, KernelGrid)
    assert np.array_equal(after.steps, fits.steps), step.name
    changed = rounded.call(Scope(rounded.run, step), step)
    nearest, adaptive = error(output), error(changed)
    if adaptive < nearest:
        others = [one.name for one in product.layer.weights if len(one.shape) > 1 and one is not variable]
        reason = f"{', '.join(others)} to the nearest" if others else ""
        moved = int(np.sum(np.round(made / fits.steps) != np.round(kernel / fits.steps)))
        return changed, LayerRounding(step.layer, "adaptive", nearest, adaptive, moved, reason)
    variable.assign(kernel)
    return output, LayerRounding(step.layer, "nearest", nearest, adaptive, reason="its error would not be smaller")


def _variable(product: _Product) -> Any:
    held = getattr(product.layer, f"_{product.kernel}", None)
    return getattr(product.layer, product.kernel) if held is None else held


def _has_kernel(step: Step) -> bool:
    return any(len(weight.shape) > 1 for weight in getattr(step.operation, "weights", ()))


def _relu_behind(step: Step, placement: Placement) -> Callable[[Any], Any]:
    """The ReLU that TFLite fuses into a step; the identity where there is none."""
    (number,) = step.outputs
    while number not in placement.grids:
        reader = next((one for one in placement.steps if number in one.inputs), None)
        if reader is None:
            break
        if reader.rule.relu:
            return reader.operation
        number = reader.outputs[0]
    return lambda x: x
