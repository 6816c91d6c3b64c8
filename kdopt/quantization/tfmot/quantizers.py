"""tfmot's quantizers, with ranges that learn fast at first.

tfmot starts every range at +-6 and moves it by 0.001 a batch, so hundreds of steps are clipped or coarse. Here the
decay grows with the number `n` of batches seen

    decay = min(0.999, n / (n + 1))

so the first batch sets the range, the next ones average, and tfmot's 0.999 comes in the end.
"""

from functools import cache
from typing import Any

from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.preserve import preserving
from kdopt.quantization.tfmot.schemes import Scheme

DECAY = 0.999
SETTLED = 999.0


def tensor_layer(name: str, *, is_input: bool, batches: Any) -> Any:
    """A tfmot QuantizeLayer for one tensor.

    Args:
        name: Name of the tensor, unique in the net.
        is_input: Whether it is an input of the model: these keep the largest range seen, as in tfmot's scheme.
        batches: tf.Variable, number of training batches the ranges have seen.
    """
    quantizers = load().tfmot.quantization.keras.quantizers
    options = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}
    quantizer = quantizers.AllValuesQuantizer(**options) if is_input else _warm_average()(batches, **options)
    return _quantize_layer()(quantizer, name=name, dtype="float32")


def kernel_layer(layer: Any, name: str, scheme: Scheme) -> Any:
    """A tfmot QuantizeWrapperV2 that quantizes the kernel of `layer` as tfmot's scheme does, and nothing else.

    Args:
        layer: Built tf_keras layer.
        name: Attribute of the kernel.
        scheme: One that rounds kernels.
    """
    return _wrapper()(layer, _weights_only()(layer, name, scheme))


def _weight_quantizer(layer: Any, scheme: Scheme) -> Any:
    """tfmot's own for the kind of layer; a per-tensor one for kinds tfmot lacks (convolutions over 1 dimension)."""
    if scheme.weight_bits == 8:
        known = _internal("default_8bit.default_8bit_quantize_registry").Default8BitQuantizeRegistry()
    else:
        registry = _internal("experimental.default_n_bit.default_n_bit_quantize_registry")
        known = registry.DefaultNBitQuantizeRegistry(num_bits_weight=scheme.weight_bits)
    if known.supports(layer):
        quantizer = known.get_quantize_config(layer).weight_quantizer
    else:
        options = {"per_axis": False, "symmetric": True, "narrow_range": True}
        last_value = load().tfmot.quantization.keras.quantizers.LastValueQuantizer
        quantizer = last_value(num_bits=scheme.weight_bits, **options)
    return preserving(quantizer, scheme) if scheme.preserves else quantizer


def _internal(module: str) -> Any:
    from importlib import import_module

    return import_module(f"tensorflow_model_optimization.python.core.quantization.keras.{module}")


@cache
def _quantize_layer() -> Any:
    load()
    return _internal("quantize_layer").QuantizeLayer


@cache
def _wrapper() -> Any:
    load()
    return _internal("quantize_wrapper").QuantizeWrapperV2


@cache
def _warm_average() -> Any:
    import tensorflow as tf

    quant_ops = _internal("quant_ops")

    base: Any = load().tfmot.quantization.keras.quantizers.MovingAverageQuantizer

    class WarmAverageQuantizer(base):
        """Moving average whose decay starts at 0."""

        def __init__(self, batches: Any, **options: Any) -> None:
            super().__init__(**options)
            self.batches = batches

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            decay = tf.minimum(DECAY, self.batches / (self.batches + 1.0))
            return quant_ops.MovingAvgQuantize(
                inputs, weights["min_var"], weights["max_var"], ema_decay=decay, is_training=training, **self._options()
            )

        @staticmethod
        def _options() -> dict[str, Any]:
            return {"num_bits": 8, "per_channel": False, "symmetric": False, "narrow_range": False}

    return WarmAverageQuantizer


@cache
def _weights_only() -> Any:
    base: Any = _internal("default_8bit.default_8bit_quantize_registry").Default8BitQuantizeConfig

    class WeightsOnly(base):
        """The kernel's part of tfmot's config for a layer."""

        def __init__(self, layer: Any, kernel: str, scheme: Scheme) -> None:
            super().__init__([kernel], [], False)
            self.weight_quantizer = _weight_quantizer(layer, scheme)

        def get_output_quantizers(self, layer: Any) -> list:
            return []

    return WeightsOnly
