"""A layer with a penalty on its kernels, for models that are being written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from kdopt.core.kernels import KernelView, find_kernels
from kdopt.core.live import Live
from kdopt.regularizers.base import PENALTIES, Penalty
from kdopt.regularizers.following import Priced, bind

Tensor = Any


@keras.saving.register_keras_serializable("kdopt")
class SparseRegularized(keras.layers.Wrapper):
    """Adds a penalty on the kernels of any layer, also one without a `kernel_regularizer` argument.

    Reads the kernel as the layer does (depthwise, transposed), and works on every kernel inside a layer or
    block. Saves and loads as `.keras`, strength schedule included if the schedule is serializable; then or
    for the values in the logs, give `fit` a `RegularizationLogger()`.

    Args:
        layer: `keras.layers.Layer` that is called on one input and has at least one kernel.
        penalty: `Penalty`, or a name in `PENALTIES`.

    Raises: ValueError when it is built, if the layer has no kernel.

    Example:
    ```
    x = SparseRegularized(keras.layers.DepthwiseConv2D(3), GroupLasso(1e-3))(x)
    ```
    """

    def __init__(self, layer: keras.layers.Layer, penalty: Any, **kwargs: Any) -> None:
        super().__init__(layer, **{"name": f"sparse_{getattr(layer, 'name', '')}", **kwargs})
        self.penalty: Penalty = PENALTIES.get(penalty)
        self._priced: list[Priced] = []
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._input_shape = input_shape
        live = Live(self)
        self._priced = bind(self.penalty, kernels_inside(self))
        for bound, variable in self._priced:
            live.penalize(variable, bound)
        self.built = True

    def call(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(inputs, **kwargs)

    def compute_mask(self, inputs: Tensor, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_penalties(self) -> list[Priced]:
        """The penalty and each Variable it is on; read by `RegularizationLogger`."""
        return self._priced

    def to_plain(self) -> keras.layers.Layer:
        """A new layer without the wrapper, built if this one is, with the same weights."""
        plain = type(self.layer).from_config(self.layer.get_config())
        if self.built:
            plain.build(self._input_shape)
            plain.set_weights(self.layer.get_weights())
        return plain

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "penalty": keras.saving.serialize_keras_object(self.penalty)}


def kernels_inside(wrapper: keras.layers.Wrapper) -> list[KernelView]:
    """The kernels of a wrapper's built layer, frozen ones too: a model may be frozen when it is loaded.

    Raises: ValueError if it has none.
    """
    with all_trainable(wrapper):
        found, skipped = find_kernels(wrapper)
    if not found:
        reasons = "; ".join(f"{skip.name!r}: {skip.reason}" for skip in skipped if skip.name)
        raise ValueError(
            f"{type(wrapper).__name__} needs a layer with a kernel that is trained; {wrapper.layer.name!r} "
            f"({type(wrapper.layer).__name__}) has none.{f' {reasons}.' if reasons else ''}"
        )
    return found


@contextmanager
def all_trainable(layer: keras.layers.Layer) -> Iterator[None]:
    """Everything in `layer` trainable for a moment."""
    before = [(inner, inner.trainable) for inner in layer._flatten_layers()]
    try:
        for inner, _ in before:
            inner.trainable = True
        yield
    finally:
        for inner, was in before:  # from the outside in: a layer sets those inside
            inner.trainable = was
