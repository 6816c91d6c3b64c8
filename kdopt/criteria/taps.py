"""What the layers of a model read and make while it runs, without a trace in the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import layers, ops

from kdopt.core.kernels import KernelView

Tensor = Any
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU)
_ACTIVATION_OPS = frozenset(
    {"Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "HardSilu", "HardSigmoid", "Sigmoid", "Tanh"}
    | {"Softplus", "Softsign", "HardTanh", "Mish", "SquarePlus"}
)


@dataclass(eq=False)
class Call:
    """One call of one layer or operation.

    Attributes:
        operation: The layer or `keras.ops` operation.
        reads: First argument.
        makes: Output.
        middle: What the depthwise half of a separable convolution makes and the pointwise half reads.
    """

    operation: Any
    reads: Tensor
    makes: Tensor
    middle: Tensor | None = None


@dataclass(eq=False)
class Taps:
    """The calls of one run of a model, in order."""

    calls: list[Call] = field(default_factory=list)

    def of(self, operation: Any) -> list[Call]:
        return [call for call in self.calls if call.operation is operation]

    def activated(self, call: Call) -> Tensor:
        """The output of a call after the activation that follows it as a layer or operation of its own.

        Follows an output that one thing alone reads, through a BatchNormalization, to the activation; without one it is
        the output itself. What a subclassed `call` does with `keras.ops` is not seen.
        """
        tensor = call.makes
        while True:
            readers = [c for c in self.calls if any(x is tensor for x in keras.tree.flatten(c.reads))]
            readers = [c for c in readers if c.makes is not tensor]  # dropout in inference hands its input on
            if len(readers) != 1:
                return call.makes
            (reader,) = readers
            if is_activation(reader.operation):
                return reader.makes
            if not isinstance(reader.operation, layers.BatchNormalization):
                return call.makes
            tensor = reader.makes


def is_linear(layer: Any) -> bool:
    """Whether a layer makes its output without an activation of its own."""
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def is_activation(operation: Any) -> bool:
    """Whether an operation is nothing but an activation function."""
    return isinstance(operation, _ACTIVATIONS) or type(operation).__name__ in _ACTIVATION_OPS


def hosts(model: keras.Model, views: Sequence[KernelView]) -> list[Any]:
    """The layer whose calls show what a kernel reads and makes, for each kernel.

    Its own layer; the wrapper or recurrent layer around it where that loops over time.
    """
    around: dict[int, Any] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, layers.TimeDistributed):
            around[id(layer.layer)] = layer
        elif isinstance(layer, layers.RNN):
            around[id(layer.cell)] = layer
    return [around.get(id(view.layer), view.layer) for view in views]


@contextmanager
def tapped(
    model: keras.Model, watched: Sequence[Any] = (), watch: Callable[[Tensor], None] = lambda tensor: None
) -> Iterator[Taps]:
    """Records the calls of the innermost layers and operations of a model while it runs.

    Each `call` is replaced on the instance, and put back at the end.

    Args:
        model: Built model.
        watched: Layers to record in any case, also with layers inside. A separable convolution among them runs in its
            two halves.
        watch: Function of every tensor the `watched` layers make, called before anyone reads it.
    """
    taps = Taps()
    ids = {id(layer) for layer in watched}
    operations = {id(operation): operation for operation in [*_innermost(model), *watched]}
    before = [(operation, vars(operation).get("call")) for operation in operations.values()]
    try:
        for operation in operations.values():
            vars(operation)["call"] = _recording(operation, taps, watch if id(operation) in ids else None)
        yield taps
    finally:
        for operation, own in before:
            if own is None:
                vars(operation).pop("call", None)
            else:
                vars(operation)["call"] = own


def _innermost(model: keras.Model) -> list[Any]:
    """Layers without layers inside, and the operations of graphs."""
    found = []
    for layer in model._flatten_layers():
        graph = getattr(layer, "_functional", None) or layer
        if isinstance(graph, keras.Function):
            found += [op for op in graph.operations if not isinstance(op, keras.layers.Layer)]
        if not layer._layers and not isinstance(layer, keras.layers.InputLayer):
            found.append(layer)
    return found


def _recording(operation: Any, taps: Taps, watch: Callable[[Tensor], None] | None) -> Callable[..., Any]:
    original = operation.call

    def call(*args: Any, **kwargs: Any) -> Any:
        reads = args[0] if args else next(iter(kwargs.values()), None)
        middle = None
        if watch is not None and isinstance(operation, _SEPARABLE):
            middle = _depthwise_half(operation, reads)
            watch(middle)
            makes = _pointwise_half(operation, middle)
        else:
            makes = original(*args, **kwargs)
        if watch is not None:
            for tensor in keras.tree.flatten(makes):
                watch(tensor)
        taps.calls.append(Call(operation, reads, makes, middle))
        return makes

    return call


def _depthwise_half(layer: Any, x: Tensor) -> Tensor:
    y = ops.depthwise_conv(
        _channels_last(layer, x),
        layer.depthwise_kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _as_the_layer_has_it(layer, y)


def _pointwise_half(layer: Any, x: Tensor) -> Tensor:
    y = ops.matmul(_channels_last(layer, x), ops.reshape(layer.pointwise_kernel, layer.pointwise_kernel.shape[-2:]))
    y = _as_the_layer_has_it(layer, ops.add(y, layer.bias) if layer.use_bias else y)
    return y if layer.activation is None else layer.activation(y)


# Convolutions with the channels first run on few devices.
def _channels_last(layer: Any, x: Tensor) -> Tensor:
    return x if layer.data_format == "channels_last" else ops.moveaxis(x, 1, -1)


def _as_the_layer_has_it(layer: Any, x: Tensor) -> Tensor:
    return x if layer.data_format == "channels_last" else ops.moveaxis(x, -1, 1)
