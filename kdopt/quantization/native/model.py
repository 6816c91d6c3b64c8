"""A Keras 3 model that trains with the rounding of its int8 file, in Keras alone."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.copying import copy_model
from kdopt.core.validation import check_integer
from kdopt.graph.inline import TracedInput, trace
from kdopt.graph.trace import graph_of
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.native import rules_activations, rules_layers, rules_sequences  # noqa: F401  they register themselves
from kdopt.quantization.native.execution import Limits, Pass
from kdopt.quantization.native.measuring import DEAD, extremes_of, measured_ranges, widest
from kdopt.quantization.native.placement import Placement, place
from kdopt.quantization.native.reporting import report_of
from kdopt.quantization.observers import OBSERVERS, Observer
from kdopt.quantization.ranges import RANGES, RangeMethod
from kdopt.quantization.report import LayerReport


@keras.saving.register_keras_serializable("kdopt")
class Ranges(keras.layers.Layer):
    """The range of every tensor that has one, in one Variable.

    Attributes:
        limits: Variable (ranges, 2): smallest value <= 0, largest >= 0.
        batches: Variable (), how many training batches they have followed; large once they were calibrated.
        steps: Variable (), how many training steps there were.
        frozen: Variable (), 1 where ranges stay as they are.
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.limits = self.add_weight(
            (count, 2), initializer="zeros", trainable=False, name="limits", aggregation="mean"
        )
        # float32, not an integer: XLA keeps small integers of a training step on the host.
        self.batches, self.steps, self.frozen = (
            self.add_weight((), initializer="zeros", trainable=False, name=name, aggregation="mean")
            for name in ("batches", "steps", "frozen")
        )
        self.built = True


class _Hidden:
    """Keeps what is no layer out of Keras's tracking."""

    def __init__(self, net: keras.Model, observer: Observer) -> None:
        self.graph = graph_of(net)
        self.placement: Placement = place(trace(net))
        self.observer = observer


@keras.saving.register_keras_serializable("kdopt")
class NativeModel(QuantizationAware):
    """Quantization-aware training with the int8 scheme of TFLite, in Keras 3.

    Made by `kdopt.quantization.quantize_aware(model, engine="native")`. Its layers are a copy of the source's.

    Args:
        source: Built Functional, Sequential or traceable subclassed model; left as it is.
        calibration: Data as in `quantize_aware`. Defaults to `None`: the first training batches.
        observer: Name in `OBSERVERS`, or an `Observer`. Defaults to `"ema"`.
        delay: Integer >= 0, training steps in which ranges are observed but nothing is rounded. Defaults to `0`.
        name: String.
    """

    def __init__(
        self,
        source: Any,
        calibration: Any = None,
        observer: str | Observer = "ema",
        delay: int = 0,
        name: str | None = None,
    ) -> None:
        if not isinstance(source, keras.Model):
            raise TypeError(f"Expected a built keras.Model; got {type(source).__name__}.")
        super().__init__(name=name or f"{source.name}_quantized")
        _refuse_extended(source)
        self.net = copy_model(source)
        self._hidden = _Hidden(self.net, OBSERVERS.get(observer))
        self.delay = check_integer("delay", delay, minimum=0)
        self.ranges = Ranges(len(self._hidden.placement.names), name="ranges")
        self.built = True
        if calibration is not None:
            self.calibrate(calibration)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """Those of the source, and the ranges."""
        return [*self.net.layers, self.ranges]

    @property
    def _inputs(self) -> tuple[TracedInput, ...]:
        return self._hidden.placement.traced.inputs

    @property
    def _graph(self) -> Any:
        return self._hidden.graph

    @property
    def report(self) -> tuple[LayerReport, ...]:
        """One `LayerReport` a source layer: how it is quantized, and why not if it is not."""
        return report_of(self._hidden.placement)

    @property
    def calibrated(self) -> bool:
        """Whether the ranges have seen data."""
        import tensorflow as tf

        with tf.init_scope():
            return float(self.ranges.batches.numpy()) > 0

    def calibrate(self, data: Any, ranges: str | RangeMethod = "min_max") -> None:
        """Sets all ranges from data, with the weights as they are.

        Args:
            data: Data as in `quantize_aware`.
            ranges: Name in `kdopt.quantization.RANGES`, or a `RangeMethod`: what is clipped, so that the rest has finer
                steps. Defaults to `"min_max"`: nothing.
        """
        self._method = RANGES.get(ranges)
        super().calibrate(data)

    def _set_ranges(self, batches: list[list[np.ndarray]]) -> None:
        placement = self._hidden.placement
        if placement.names:
            self.ranges.limits.assign(measured_ranges(placement, batches, self._method))
        self.ranges.batches.assign(1e6)

    def _run(self, tensors: list[Any], training: bool) -> list[Any]:
        placement, count = self._hidden.placement, len(self._hidden.placement.names)
        limits = self.ranges.limits.value
        flat = ops.unstack(ops.reshape(limits, (-1,)), 2 * count) if count else []
        pairs = [(flat[2 * row], flat[2 * row + 1]) for row in range(count)]
        if not training:
            return Pass(placement, pairs)(tensors)
        seen, frozen = self.ranges.batches.value, self.ranges.frozen.value > 0
        starts = self.ranges.steps.value >= self.delay if self.delay else None
        updated: dict[int, Any] = {}
        extremes: dict[int, list[Any]] = {}

        def observe(row: int, x: Any) -> Limits:
            # Several of one range in a loop over time.
            extremes.setdefault(row, []).append(extremes_of(x, row in placement.positive))
            update = self._hidden.observer.update(ops.stack(pairs[row]), widest(extremes[row]), seen)
            # Frozen ranges stay, and all where a batch is not finite, or zero throughout.
            nothing = extremes[row][-1][0] == extremes[row][-1][1]
            stays = ops.logical_or(frozen | nothing, ops.logical_not(ops.all(ops.isfinite(update))))
            updated[row] = ops.where(stays, ops.stack(pairs[row]), ops.stop_gradient(update))
            low, high = updated[row][0], updated[row][1]
            return low, ops.where(low == high, DEAD, high)

        outputs = Pass(placement, pairs, training=True, observe=observe, starts=starts)(tensors)
        if count:
            rows = [updated.get(row, limits[row]) for row in range(count)]
            self.ranges.limits.assign(ops.stack(rows))
        self.ranges.batches.assign(seen + 1.0)
        self.ranges.steps.assign(self.ranges.steps.value + 1.0)
        return outputs

    def _converted(self) -> tuple[Any, Any]:
        limits = [(low, high) for low, high in np.asarray(self.ranges.limits)]
        half = any(layer.compute_dtype != "float32" for layer in self.net._flatten_layers() if is_float(layer))
        net = copy_model(self.net, "float32") if half else self.net
        placement = place(trace(net)) if half else self._hidden.placement
        return net, lambda *tensors: Pass(placement, limits, "export")(list(tensors))

    def freeze_ranges(self, frozen: bool = True) -> None:
        """Keeps all ranges as they are while training goes on, or lets them follow the data again.

        Freeze them for the last epochs: weights then settle on the very grid of the file.

        Raises: RuntimeError if they have not seen data yet.
        """
        if frozen and not self.calibrated:
            raise RuntimeError(f"The ranges of {self.name!r} have not seen any data yet: calibrate it, or train first.")
        self.ranges.frozen.assign(float(frozen))

    def range_of(self, name: str) -> tuple[float, float]:
        """The range of a tensor, as named in `range_names`."""
        low, high = np.asarray(self.ranges.limits)[self.range_names.index(name)].tolist()
        return low, high

    @property
    def range_names(self) -> tuple[str, ...]:
        """`layer.output`, `input.input`, and the names of tensors inside layers."""
        return self._hidden.placement.names

    def compute_output_spec(self, inputs: Any, training: Any = None) -> Any:
        del training
        return self.net.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.net.compute_output_shape(input_shape)

    def output_activation(self) -> Any:
        """The model whose graph tells logits from probabilities."""
        return self.net

    def strip(self) -> keras.Model:
        """A float Keras 3 model like the source, with the trained weights; `self` is left as it is."""
        return copy_model(self.net)

    def get_config(self) -> dict[str, Any]:
        source = keras.saving.serialize_keras_object(self.net)
        observer = keras.saving.serialize_keras_object(self._hidden.observer)
        return {"name": self.name, "source": source, "observer": observer, "delay": self.delay}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "NativeModel":
        source = keras.saving.deserialize_keras_object(config["source"], custom_objects=custom_objects)
        return cls(source, observer=config["observer"], delay=config["delay"], name=config["name"])


def _refuse_extended(source: keras.Model) -> None:
    for layer in source._flatten_layers():
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            what = "LoRA weights" if getattr(layer, "lora_enabled", False) else "weights that Keras has quantized"
            raise ValueError(
                f"Layer {layer.name!r} has {what}. Way out: save and load the model, which merges LoRA weights into "
                "the kernels; start from the model as it was before `quantize`."
            )


def is_float(layer: keras.layers.Layer) -> bool:
    """Whether a layer computes in floating point."""
    return "float" in str(layer.compute_dtype)
