"""The fake-quantized tf_keras net, and every variable in it by source layer and name."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdopt.quantization.report import LayerReport
from kdopt.quantization.tfmot import quantizers
from kdopt.quantization.tfmot.annotate import Placement, place
from kdopt.quantization.tfmot.bridge import Blueprint, check_equal, emit, scope_name
from kdopt.quantization.tfmot.calibrate import activation_ranges, kernel_range
from kdopt.quantization.tfmot.steps import Step


@dataclass(frozen=True)
class NetVariable:
    """A tf.Variable of the net.

    Args:
        layer: Source layer it belongs to.
        name: Name within the layer.
        value: The tf.Variable.
        source: The Keras 3 variable it was copied from, None for a range.
        trainable: Whether it is a weight the optimizer may update.
    """

    layer: str
    name: str
    value: Any
    source: Any
    trainable: bool


@dataclass(frozen=True)
class Kernel:
    """A fake-quantized kernel: its float variable and its range variables."""

    layer: str
    key: str
    value: Any
    minimum: Any
    maximum: Any


class QuantizedNet:
    """tfmot's 8-bit scheme over the tf_keras copy of a Keras 3 model.

    Args:
        model: Keras 3 Sequential or Functional model.
        batches: tf.Variable, float32, number of training batches the ranges have seen.
        probe: Inputs to prove the copy equal on, one array an input. Defaults to random ones.
    """

    def __init__(self, model: Any, batches: Any, probe: list[np.ndarray] | None = None) -> None:
        self.batches = batches
        self.blueprint = Blueprint.of(model)
        check_equal(model, self.blueprint, probe)
        self.placement: Placement = place(self.blueprint)
        self.kernels: list[Kernel] = []
        self.ranges: dict[int, tuple[str, str, Any, Any]] = {}
        self._producers = {index: step for step in self.blueprint.steps for index in step.outputs}
        self._names: set[str] = set()
        net = emit(self.blueprint, self._wrap_layer, self._wrap_tensor)
        self.model, self._weights, self.layers = net.model, net.variables, net.layers

    @property
    def report(self) -> tuple[LayerReport, ...]:
        return self.placement.report

    def calibrate(self, data: list[list[np.ndarray]]) -> None:
        """Sets all ranges from batches of data."""
        measured = activation_ranges(self.blueprint, self.placement.tensors, data, self._weights)
        for index, (low, high) in measured.items():
            _, _, minimum, maximum = self.ranges[index]
            minimum.assign(low)
            maximum.assign(high)
        self.set_kernel_ranges()
        self.batches.assign(quantizers.SETTLED)

    def set_kernel_ranges(self) -> None:
        """Sets the range of each kernel to its largest magnitude, as a training step would."""
        for kernel in self.kernels:
            found = kernel_range(kernel.value.numpy(), per_channel=bool(kernel.maximum.shape.rank))
            kernel.minimum.assign(-found)
            kernel.maximum.assign(found)

    def variables(self) -> list[NetVariable]:
        """All variables, layer by layer in the order of the source; without tfmot's own step counters."""
        found = []
        for step in self.blueprint.steps:
            for weight in step.weights:
                name = weight.key.removeprefix(f"{step.source}/")
                trainable = weight.source.trainable
                found.append(NetVariable(step.source, name, self._weights[weight.key], weight.source, trainable))
        for kernel in self.kernels:
            name = kernel.key.removeprefix(f"{kernel.layer}/")
            found.append(NetVariable(kernel.layer, f"{name}_min", kernel.minimum, None, False))
            found.append(NetVariable(kernel.layer, f"{name}_max", kernel.maximum, None, False))
        for layer, name, minimum, maximum in self.ranges.values():
            found.append(NetVariable(layer, f"{name}_min", minimum, None, False))
            found.append(NetVariable(layer, f"{name}_max", maximum, None, False))
        return list({(entry.layer, entry.name): entry for entry in found}.values())

    def _wrap_layer(self, step: Step, layer: Any) -> Any:
        if step.name not in self.placement.kernels or step.kernel is None:
            return layer
        value = getattr(layer, step.kernel)
        wrapper = quantizers.kernel_layer(layer, step.kernel)
        wrapper.build(None)  # the layer is built; the wrapper's own variables depend on the kernel alone
        ((_, _, ranges),) = wrapper._weight_vars
        key = next(weight.key for weight in step.weights if weight.attribute == step.kernel)
        self.kernels.append(Kernel(step.source, key, value, ranges["min_var"], ranges["max_var"]))
        return wrapper

    def _wrap_tensor(self, index: int, tensor: Any) -> Any:
        if index not in self.placement.tensors:
            return tensor
        step = self._producers.get(index)
        if step is None:
            source = next(entry.name for entry in self.blueprint.trace.inputs if entry.index == index)
            name = "input"
        else:
            source = step.source
            name = "output" + step.name.removeprefix(step.source)
        name = self._unique(source, name)
        layer = quantizers.tensor_layer(
            scope_name(f"{source}.{name}_range"), is_input=step is None, batches=self.batches
        )
        result = layer(tensor)
        self.ranges[index] = (source, name, layer.quantizer_vars["min_var"], layer.quantizer_vars["max_var"])
        return result

    def _unique(self, source: str, name: str) -> str:
        number, candidate = 0, name
        while f"{source}/{candidate}" in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(f"{source}/{candidate}")
        return candidate
