"""L0 regularization: gates that learn which weights to keep."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_fraction, check_one_of, check_positive
from kdopt.regularizers.base import Penalty, Tensor
from kdopt.regularizers.grouping import Grouping, layout_of
from kdopt.regularizers.strength import Strength
from kdopt.regularizers.wrapper import kernels_inside

GAMMA, ZETA = -0.1, 1.1  # limits of the stretched interval, as in the paper
GATES = ("weights", "out_channels", "in_channels", "rows", "columns")


def sample_gate(log_alpha: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Hard concrete samples in [0, 1]; equations 10 and 11 of the paper of `L0`.

    s = sigmoid((log u - log(1 - u) + log_alpha) / temperature)
    z = min(1, max(0, s * (zeta - gamma) + gamma))
    """
    noise = ops.log(uniform) - ops.log(1 - uniform)
    return _stretch(ops.sigmoid((noise + log_alpha) / temperature))


def mean_gate(log_alpha: Tensor) -> Tensor:
    """min(1, max(0, sigmoid(log_alpha) * (zeta - gamma) + gamma)), the gate at inference; equation 13."""
    return _stretch(ops.sigmoid(log_alpha))


def open_probability(log_alpha: Tensor, temperature: float) -> Tensor:
    """P(z != 0) = sigmoid(log_alpha - temperature * log(-gamma / zeta)); equation 12."""
    return ops.sigmoid(log_alpha - temperature * math.log(-GAMMA / ZETA))


def _stretch(s: Tensor) -> Tensor:
    return ops.clip(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


class ExpectedL0(Penalty):
    """strength * sum over gates g of sizes_g * P(z_g != 0), on the gates' log_alpha; part of `L0`."""

    def __init__(self, strength: Strength, temperature: float) -> None:
        super().__init__(strength)
        self.temperature = temperature
        self.sizes: Any = 1.0

    @property
    def name(self) -> str:
        return "l0"

    def of(self, sizes: np.ndarray) -> "ExpectedL0":
        """The same for gates of these numbers of weights; the strength stays shared."""
        sized = copy.copy(self)
        sized.sizes = sizes
        return sized

    def measure(self, weights: Tensor) -> Tensor:
        return ops.sum(ops.cast(self.sizes, weights.dtype) * open_probability(weights, self.temperature))


@keras.saving.register_keras_serializable("kdopt")
class L0(keras.layers.Wrapper):
    """Learns by gradient which weights, rows or channels of a layer to keep.

        training     y = layer(x) with kernel * z,     z ~ HardConcrete(log_alpha), one z per gate and step
        inference    y = layer(x) with kernel * z,     z = clip(sigmoid(log_alpha) * 1.2 - 0.1, 0, 1)
        loss        += strength * sum over gates g of |g| * P(z_g != 0)

    `to_plain()` (or `strip_regularizers(model)`) multiplies the gates into the kernel: a plain layer with exact zeros
    and the same outputs as at inference. Only a wrapper can do this, because the forward pass is stochastic.
    The bias has no gate. The expected number of weights is the penalty, so a strength of 1 / (training
    examples) is a good first guess. Given to `fit`, `RegularizationLogger()` logs `penalty/l0`.

    Args:
        layer: `keras.layers.Layer` that is called on one input and has at least one kernel.
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        gates: What a gate closes: `"weights"` (each), or groups as in `kdopt.regularizers.grouping.Grouping`.
            Defaults to `"out_channels"`.
        drop_rate: Float in (0, 1): at first sigmoid(log_alpha) = 1 - drop_rate. Fewer gates are closed then (17 % at
            `0.5`), because most of the stretched interval is inside [0, 1]. Defaults to `0.5`.
        temperature: Float > 0 of the concrete distribution. Defaults to `2 / 3`.
        seed: Integer, or `None`.

    Example:
    ```
    model = keras.Sequential([L0(keras.layers.Dense(300, activation="relu"), 1 / 60000), keras.layers.Dense(10)])
    model.fit(x, y)
    small = strip_regularizers(model)
    ```

    Reference: Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        strength: Strength = 1e-4,
        gates: str = "out_channels",
        drop_rate: float = 0.5,
        temperature: float = 2 / 3,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **{"name": f"l0_{getattr(layer, 'name', '')}", **kwargs})
        self.gates = check_one_of("gates", gates, GATES)
        self.drop_rate = check_positive("drop_rate", check_fraction("drop_rate", drop_rate))
        self.temperature = check_positive("temperature", temperature)
        self.seed = seed
        self.penalty = ExpectedL0(strength, self.temperature)
        self._generator = keras.random.SeedGenerator(seed)
        self._gates: list[Gate] = []
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._input_shape = input_shape
        self._gates = [Gate(self, view) for view in kernels_inside(self)]
        self.built = True

    def call(self, inputs: Tensor, training: bool = False, **kwargs: Any) -> Tensor:
        gated = [gate.applied(self._generator if training else None) for gate in self._gates]
        with _in_place_of_kernels([gate.view for gate in self._gates], gated):
            return self.layer(inputs, **kwargs)

    def compute_mask(self, inputs: Tensor, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def sparsity(self) -> float:
        """Fraction of the kernels' weights whose gate is closed at inference, in [0, 1]."""
        closed = [np.broadcast_to(gate.mean() == 0, gate.view.variable.shape) for gate in self._gates]
        return sum(int(c.sum()) for c in closed) / sum(c.size for c in closed)

    def to_plain(self) -> keras.layers.Layer:
        """A new layer without gates: the kernel times the gates of inference. Built if this one is."""
        plain = type(self.layer).from_config(self.layer.get_config())
        if self.built:
            means = {id(gate.view.variable): gate.mean() for gate in self._gates}
            plain.build(self._input_shape)
            plain.set_weights([ops.convert_to_numpy(w) * means.get(id(w), 1) for w in self.layer.weights])
        return plain

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.penalty.get_config(),
            "gates": self.gates,
            "drop_rate": self.drop_rate,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "L0":
        if isinstance(config.get("strength"), dict):
            config = {**config, "strength": keras.saving.deserialize_keras_object(config["strength"])}
        return super().from_config(config, custom_objects)


class Gate:
    """The gates of one kernel: their log_alpha and how they spread over the kernel.

    Args:
        wrapper: `L0` that owns log_alpha, in its `build`.
        view: The kernel.
    """

    def __init__(self, wrapper: L0, view: KernelView) -> None:
        self.view, self.temperature = view, wrapper.temperature
        self.shape = tuple(view.variable.shape)
        self._grouping = None if wrapper.gates == "weights" else Grouping(wrapper.gates, layout=layout_of(view))
        sizes = (
            np.ones(self.shape) if self._grouping is None else ops.convert_to_numpy(self._grouping.sizes(self.shape))
        )
        self._sizes_shape = sizes.shape
        self.log_alpha = wrapper.add_weight(
            name="log_alpha" if view.variable.name == "kernel" else f"{view.variable.name}_log_alpha",
            shape=(sizes.size,),
            initializer=keras.initializers.RandomNormal(math.log(1 / wrapper.drop_rate - 1), 0.01, seed=wrapper.seed),
            regularizer=wrapper.penalty.of(sizes.ravel()),
            dtype="float32",
            autocast=False,
        )

    def applied(self, generator: keras.random.SeedGenerator | None) -> Tensor:
        """The kernel times a sample of the gates, or without `generator` times their mean."""
        kernel = ops.convert_to_tensor(self.view.variable)
        if generator is None:
            gate = mean_gate(self.log_alpha)
        else:
            uniform = keras.random.uniform(self.log_alpha.shape, 1e-6, 1 - 1e-6, dtype="float32", seed=generator)
            gate = sample_gate(self.log_alpha, uniform, self.temperature)
        return kernel * ops.cast(self._spread(gate), kernel.dtype)

    def mean(self) -> np.ndarray:
        """The gates at inference, in [0, 1], of the kernel's shape."""
        return ops.convert_to_numpy(self._spread(mean_gate(self.log_alpha)))

    def _spread(self, gate: Tensor) -> Tensor:
        gate = ops.reshape(gate, self._sizes_shape)
        if self._grouping is None:
            return gate
        ones = self._grouping.split(ops.ones(self.shape, dtype=gate.dtype))
        return self._grouping.merge(ones * gate, self.shape)


@contextmanager
def _in_place_of_kernels(views: list[KernelView], tensors: list[Tensor]) -> Iterator[None]:
    """Lets the layers compute with `tensors` instead of their kernels."""
    places = [(view.layer, _attribute(view), view.variable) for view in views]
    try:
        for (layer, attribute, _), tensor in zip(places, tensors, strict=True):
            object.__setattr__(layer, attribute, tensor)  # past Keras's tracking
        yield
    finally:
        for layer, attribute, variable in places:
            object.__setattr__(layer, attribute, variable)


def _attribute(view: KernelView) -> str:
    for attribute, value in vars(view.layer).items():
        if value is view.variable:
            return attribute
    raise ValueError(
        f"L0 cannot gate {view.name!r}: {type(view.layer).__name__} holds its kernel in no attribute of its own."
    )
