"""The fake-quantized tf_keras net, and every variable in it by source layer and name."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdopt.core.recording import is_recording, note
from kdopt.quantization.report import LayerReport
from kdopt.quantization.tfmot import quantizers
from kdopt.quantization.tfmot.annotate import Placement, place
from kdopt.quantization.tfmot.bridge import Blueprint, check_equal, emit, scope_name
from kdopt.quantization.tfmot.calibrate import activation_ranges, kernel_range
from kdopt.quantization.tfmot.preserve import groups_of, kept
from kdopt.quantization.tfmot.schemes import Scheme
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
    """A fake-quantized kernel: its float variable, its range variables, its groups if a scheme keeps something."""

    layer: str
    key: str
    value: Any
    minimum: Any
    maximum: Any
    groups: Any = None


class QuantizedNet:
    """tfmot's 8-bit scheme over the tf_keras copy of a Keras 3 model.

    Args:
        model: Keras 3 Sequential or Functional model.
        batches: tf.Variable, float32, number of training batches the ranges have seen.
        scheme: What happens to kernels.
        probe: Inputs to prove the copy equal on, one array an input. Defaults to random ones.
    """

    def __init__(self, model: Any, batches: Any, scheme: Scheme, probe: list[np.ndarray] | None = None) -> None:
        self.batches = batches
        self.scheme = scheme
        self.blueprint = Blueprint.of(model)
        check_equal(model, self.blueprint, probe)
        self.placement: Placement = place(self.blueprint, scheme)
        self.kernels: list[Kernel] = []
        self.ranges: dict[int, tuple[str, str, Any, Any]] = {}
        self._producers = {index: step for step in self.blueprint.steps for index in step.outputs}
        self._rounding: dict[int, tuple[str, str, Any]] = {}
        self._names: set[str] = set()
        net = emit(self.blueprint, self._wrap_layer, self._wrap_tensor)
        self.model, self._weights, self.layers = net.model, net.variables, net.layers
        self._tensors = net.tensors
        self._open: Any = None

    @property
    def report(self) -> tuple[LayerReport, ...]:
        if not self.scheme.preserves:
            return self.placement.report
        texts: dict[str, list[str]] = {}
        for kernel in self.kernels:
            texts.setdefault(kernel.layer, []).append(what_is_kept(kernel, self.scheme))
        for step in self.blueprint.steps:
            if any(len(weight.source.shape) > 1 for weight in step.weights):
                texts.setdefault(step.source, ["its zeros and clusters are not kept"])
        return tuple(
            replace(entry, reason="; ".join([entry.reason, *texts.get(entry.layer, [])]))
            for entry in self.placement.report
        )

    def run(self, tensors: list[Any], training: bool) -> list[Any]:
        """Outputs, flat; what each layer of the source made is told to who records it."""
        calls = [call for call in self.blueprint.trace.calls if len(call.outputs) == 1] if is_recording() else []
        calls = [call for call in calls if call.outputs[0] in self._tensors]
        net = self._opened([self._tensors[call.outputs[0]] for call in calls]) if calls else self.model
        outputs = net(tensors if len(tensors) > 1 else tensors[0], training=training)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        count = len(outputs) - len(calls)
        for call, value in zip(calls, outputs[count:], strict=True):
            note(call.operation, value)
        return outputs[:count]

    def _opened(self, inner: list[Any]) -> Any:
        """The net with inner tensors as outputs, too; the same layers."""
        if self._open is None:
            self._open = type(self.model)(self.model.inputs, [*self.model.outputs, *inner])
        return self._open

    def kept_kernels(self) -> dict[str, np.ndarray]:
        """Key of each kernel a scheme keeps something of -> its values as the file has them, before rounding."""
        kernels = [kernel for kernel in self.kernels if kernel.groups is not None]
        return {kernel.key: kept(kernel.value, kernel.groups, self.scheme).numpy() for kernel in kernels}

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
        own = self.kept_kernels()
        for kernel in self.kernels:
            values = own.get(kernel.key, kernel.value.numpy())
            per_channel = bool(kernel.maximum.shape.rank) and not self.scheme.keeps_values
            found = np.broadcast_to(kernel_range(values, per_channel), kernel.maximum.shape)
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
            if kernel.groups is not None:
                found.append(NetVariable(kernel.layer, f"{name}_groups", kernel.groups, None, False))
        for layer, name, minimum, maximum in self.ranges.values():
            found.append(NetVariable(layer, f"{name}_min", minimum, None, False))
            found.append(NetVariable(layer, f"{name}_max", maximum, None, False))
        return list({(entry.layer, entry.name): entry for entry in found}.values())

    def _wrap_layer(self, step: Step, layer: Any) -> Any:
        if step.name not in self.placement.kernels or step.kernel is None:
            return layer
        value = getattr(layer, step.kernel)
        wrapper = quantizers.kernel_layer(layer, step.kernel, self.scheme)
        wrapper.build(None)  # the layer is built; the wrapper's own variables depend on the kernel alone
        ((_, _, own),) = wrapper._weight_vars
        groups = own.get("groups")
        if groups is not None:
            groups.assign(groups_of(value.numpy(), self.scheme))
        key = next(weight.key for weight in step.weights if weight.attribute == step.kernel)
        self.kernels.append(Kernel(step.source, key, value, own["min_var"], own["max_var"], groups))
        return wrapper

    def _wrap_tensor(self, index: int, tensor: Any) -> Any:
        root = self.placement.shared.get(index, index)
        if root not in self.placement.tensors:
            return tensor
        if root not in self._rounding:
            self._rounding[root] = self._new_rounding(root)
        source, name, layer = self._rounding[root]
        # A range that several tensors share follows the last of them, which holds the others.
        result = layer(tensor) if root == index else layer(tensor, training=False)
        self.ranges[root] = (source, name, layer.quantizer_vars["min_var"], layer.quantizer_vars["max_var"])
        return result

    def _new_rounding(self, index: int) -> tuple[str, str, Any]:
        """(source layer, name, layer that rounds) for a range."""
        step = self._producers.get(index)
        if step is None:
            source = next(entry.name for entry in self.blueprint.trace.inputs if entry.index == index)
            name = "input"
        else:
            source = step.source
            name = "output" + step.name.removeprefix(step.source)
        name = self._unique(source, name)
        scope = scope_name(f"{source}.{name}_range")
        return source, name, quantizers.tensor_layer(scope, is_input=step is None, batches=self.batches)

    def _unique(self, source: str, name: str) -> str:
        number, candidate = 0, name
        while f"{source}/{candidate}" in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(f"{source}/{candidate}")
        return candidate


def what_is_kept(kernel: Kernel, scheme: Scheme) -> str:
    """`"12 of 72 weights stay zero, at most 16 values"`."""
    groups = kernel.groups.numpy()
    zeros = f"{np.count_nonzero(groups == 0)} of {groups.size} weights stay zero" if scheme.keeps_zeros else ""
    values = f"at most {len(np.unique(groups))} values" if (groups > 0).any() else "not clustered"
    return ", ".join(filter(None, (zeros, values if scheme.keeps_values else "")))
