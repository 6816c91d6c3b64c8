"""The kernels of a model: which there are, and what a file is told about them."""

from typing import Any

import keras
import numpy as np

from kdopt.graph.inline import Trace
from kdopt.quantization.native.placement import Placement, place
from kdopt.quantization.schemes import PLAIN, Choices


def record(
    layer: str, bits: int, values: Any, steps: Any, axes: tuple[int, ...], bias: Any, plain: bool
) -> dict[str, Any]:
    """A kernel as `tflite_export.kernels.Kernel` has it.

    Args:
        layer: Name.
        bits: Of its integers; 0 for a float kernel.
        values: Array, on its grid.
        steps: Array that broadcasts to it; `None` for a float kernel.
        axes: Axes of the output channels.
        bias: Array, one value for each channel, not rounded; `None` for none.
        plain: Whether the converter derives its steps by itself.
    """
    values = np.asarray(values)
    places = [axis % values.ndim for axis in axes]
    order = [*places, *(axis for axis in range(values.ndim) if axis not in places)]
    channels = int(np.prod([values.shape[axis] for axis in places]))

    def matrix(array: Any) -> np.ndarray:
        return np.transpose(np.broadcast_to(array, values.shape), order).reshape(channels, -1)

    return {
        "layer": layer,
        "bits": bits,
        "values": matrix(values),
        "steps": None if steps is None else matrix(steps)[:, 0],
        "bias": None if bias is None else np.asarray(bias).reshape(-1),
        "plain": plain,
    }


def kernels_of(placement: Placement) -> list[tuple[str, Any, tuple[int, ...]]]:
    """(name of the layer, Variable, axes of its channels) of all kernels, in the order of the steps.

    Raises: ValueError for what the converter cannot give 16 bits.
    """
    import tensorflow as tf

    from kdopt.quantization.native.execution import Pass

    noted: list[tuple[str, Any, tuple[int, ...]]] = []

    def run(*arrays: Any) -> Any:
        traced = Pass(placement, [(0.0, 0.0)] * len(placement.names), "float", noted=noted)
        outputs = traced(list(arrays))
        if placement.bits == 16:
            _refuse_fixed(placement, traced.fixed)
        return outputs

    specs = [tf.TensorSpec((None, *entry.shape[1:]), entry.dtype) for entry in placement.traced.inputs]
    tf.function(run, autograph=False).get_concrete_function(*specs)
    return noted


def choices_of(traced: Trace) -> Choices:
    """What there is to choose for in a model."""
    plain = place(traced, PLAIN)
    kernels = (name for name, _, _ in kernels_of(plain))
    computed = (step.layer for step in plain.steps if step.rule.output != "input" and not step.rule.identity)
    return Choices(
        {call.name: call.operation for call in traced.calls},
        list(dict.fromkeys(kernels)),
        plain.with_ranges(),
        list(dict.fromkeys(computed)),
    )


def _refuse_fixed(placement: Placement, inside: set[str]) -> None:
    """The converter gives sigmoid, tanh and softmax of fake quantization 8 bits whatever is around them.

    Args:
        placement: Of 16 bits.
        inside: Names of the layers that have one inside.

    Raises: ValueError.
    """
    outside = {step.layer for step in placement.steps if step.rule.output in ("fixed", "joined")}
    if names := sorted(inside | outside):
        raise ValueError(
            f"scheme='int16x8': {', '.join(map(repr, names))} has a sigmoid, tanh, softmax, concatenation or maximum, "
            "which TensorFlow's converter does not give 16 bits in a model that trains with rounding. Way out: end in "
            "logits, use another scheme, or convert the float model: "
            "`tflite_export.convert(model, 'int16x8', x[:256])`."
        )


class LearnedSteps(keras.layers.Layer):
    """The learned step of each kernel that has one: Variables of the shape of its steps, step times largest integer."""

    def __init__(self, placement: Placement, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.built = True
        self._made: list[tuple[int, Any]] = []
        for layer, variable, axes in kernels_of(placement):
            scheme = placement.schemes.of(layer)
            grid = scheme.weights
            if grid is None or not grid.learned:
                continue
            values = keras.ops.cast(variable, "float32")
            step = np.asarray(grid.step(values, axes if scheme.per_channel else ()))
            limit = np.maximum(step * (2 ** (grid.bits - 1) - 1), 1e-6)
            name = f"{layer.replace('.', '_').replace('/', '_')}_{variable.name}"
            weight = self.add_weight(limit.shape, initializer="zeros", name=name, trainable=variable.trainable)
            weight.assign(limit)
            placement.learned[id(variable)] = weight

    def get_prunable_weights(self) -> list[Any]:
        """Steps are no kernels."""
        return []


def learned_steps(placement: Placement) -> LearnedSteps | None:
    """The learned steps of a model, None for none."""
    learned = any(scheme.weights is not None and scheme.weights.learned for scheme in placement.schemes.layers.values())
    return LearnedSteps(placement, name="learned_steps") if learned else None
