"""A Keras 3 model that trains with the rounding of its int8 file, in Keras alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.copying import copy_model
from kdopt.core.validation import check_flag, check_integer
from kdopt.graph.inline import TracedInput, trace
from kdopt.graph.trace import graph_of
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.checks import check_model
from kdopt.quantization.learned_ranges import LearnedRange
from kdopt.quantization.losses import check_losses, cross_entropy
from kdopt.quantization.native import (  # noqa: F401  they register themselves
    rules_activations,
    rules_attention,
    rules_curves,
    rules_layers,
    rules_norms,
    rules_sequences,
)
from kdopt.quantization.native.execution import Limits, Pass, Training
from kdopt.quantization.native.following import Following
from kdopt.quantization.native.kernels import choices_of, kernels_of, learned_steps
from kdopt.quantization.native.limits import Ranges
from kdopt.quantization.native.measuring import measured_ranges, shaped
from kdopt.quantization.native.placement import Placement, place
from kdopt.quantization.native.reporting import report_of
from kdopt.quantization.native.steps import gives_probabilities
from kdopt.quantization.observers import OBSERVERS, Observer
from kdopt.quantization.ranges import RANGES, RangeMethod
from kdopt.quantization.report import LayerReports
from kdopt.quantization.schemes import Layers, LayerScheme, resolve


class _Hidden:
    """Keeps what is no layer out of Keras's tracking."""

    def __init__(self, net: keras.Model, observer: Observer, scheme: str, layers: Layers | None) -> None:
        self.graph = graph_of(net)
        traced = trace(net)
        self.schemes = resolve(scheme, layers, choices_of(traced))
        self.placement: Placement = place(traced, self.schemes)
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
        scheme: Name in `SCHEMES`. Defaults to `"int8"`.
        layers: Exceptions as in `quantize_aware`. Defaults to `None`.
        folding: Whether BatchNormalization is folded in training. Defaults to `False`.
        freeze_batch_norm: Integer >= 0, training steps after which BatchNormalization is frozen; `None`: never.
        losses: Name in `LOSSES` -> weight. Defaults to `None`.
        name: String.

    Attributes:
        rounding: One `LayerRounding` for each layer with a kernel, after `post_training(rounding="adaptive")`.
    """

    rounding: tuple[Any, ...] = ()

    def __init__(
        self,
        source: Any,
        calibration: Any = None,
        observer: str | Observer = "ema",
        delay: int = 0,
        scheme: str = "int8",
        layers: Layers | None = None,
        folding: bool = False,
        freeze_batch_norm: int | None = None,
        losses: Mapping[str, float] | None = None,
        name: str | None = None,
    ) -> None:
        check_model(source)
        # float32 whatever the global policy is: its ranges must not be read in half precision.
        super().__init__(name=name or f"{source.name}_quantized", dtype="float32")
        _refuse_extended(source)
        self.net = copy_model(source)
        self._hidden = _Hidden(self.net, OBSERVERS.get(observer), scheme, _by_name(layers, source))
        self.scheme, self.delay = scheme, check_integer("delay", delay, minimum=0)
        self.folding, self.freeze_batch_norm = check_flag("folding", folding), freeze_batch_norm
        if freeze_batch_norm is not None:
            check_integer("freeze_batch_norm", freeze_batch_norm, minimum=0)
        self.auxiliary = check_losses(losses)
        if "cross_entropy" in self.auxiliary:
            self._logits()
        placement = self._hidden.placement
        self._refuse_idle(placement, observer)
        self.ranges = Ranges(
            len(placement.names), self._hidden.observer.learned and bool(placement.names), name="ranges"
        )
        if placement.bits == 16:
            kernels_of(placement)  # refuses what has no kernel of 16 bits
        self.steps = learned_steps(placement) if self._hidden.schemes.layers else None
        self.built = True
        if calibration is not None:
            self.calibrate(calibration)

    def _refuse_idle(self, placement: Placement, observer: Any) -> None:
        """Refuses options that would change nothing."""
        operations = [step.norm or step.operation for step in placement.steps]
        norms = any(isinstance(operation, keras.layers.BatchNormalization) for operation in operations)
        idle = {
            "folding": self.folding and not norms,
            "freeze_batch_norm": self.freeze_batch_norm is not None and not norms,
            "losses['mse']": placement.bits is None and "mse" in self.auxiliary,
            "observer": placement.bits is None and self._hidden.observer.learned,
        }
        if names := [name for name, there in idle.items() if there]:
            why = "activations stay float" if placement.bits is None else "the model has no BatchNormalization"
            raise ValueError(f"{', '.join(f'`{name}`' for name in names)}: nothing to do it to, {why}. Leave it out.")

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """Those of the source, and the ranges."""
        return [*self.net.layers, self.ranges, *([] if self.steps is None else [self.steps])]

    @property
    def _inputs(self) -> tuple[TracedInput, ...]:
        return self._hidden.placement.traced.inputs

    @property
    def _graph(self) -> Any:
        return self._hidden.graph

    @property
    def report(self) -> LayerReports:
        """One `LayerReport` a source layer: how it is quantized, and why not if it is not."""
        return LayerReports(report_of(self._hidden.placement))

    @property
    def calibrated(self) -> bool:
        """Whether the ranges have seen data, or there are none."""
        import tensorflow as tf

        if not self.range_names:
            return True

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
            limits = measured_ranges(placement, batches, self._method)
            for row in range(len(limits)):
                limits[row] = self._start(row, limits[row])
            self.ranges.set(limits)
        self.ranges.batches.assign(1e6)

    def _start(self, row: int, pair: np.ndarray) -> Any:
        """The range that training starts with, from what was measured."""
        placement, observer = self._hidden.placement, self._hidden.observer
        bits = placement.bits or 8
        if isinstance(observer, LearnedRange):
            pair = np.array([np.asarray(x) for x in observer.limits(pair, row in placement.positive, 1, bits)])
        return shaped(pair, bits) if row in placement.symmetric else pair

    def _run(self, tensors: list[Any], training: bool) -> list[Any]:
        placement = self._hidden.placement
        pairs = self.ranges.pairs()
        if not training:
            return Pass(placement, pairs)(tensors)
        return self._trained(tensors, pairs)

    def _trained(self, tensors: list[Any], pairs: list[Limits]) -> list[Any]:
        ranges, placement = self.ranges, self._hidden.placement
        steps = ranges.steps.value
        how = Training(
            self._hidden.observer.quantize,
            steps >= self.delay if self.delay else None,
            self.folding,
            None if self.freeze_batch_norm is None else steps >= self.freeze_batch_norm,
            [] if "mse" in self.auxiliary else None,
        )
        fresh = ranges.learned is not None and not self.calibrated
        following = Following(self._hidden.observer, placement, ranges, fresh)
        outputs = following.marked(Pass(placement, pairs, training=how, observe=following)(tensors))
        for loss in (*following.penalties(), *self._extra_losses(how, tensors, outputs)):
            self.add_loss(loss)
        following.store()
        ranges.batches.assign(ranges.batches.value + 1.0)
        ranges.steps.assign(steps + 1.0)
        return outputs

    def _extra_losses(self, how: Training, tensors: list[Any], outputs: list[Any]) -> Iterator[Any]:
        weights = self.auxiliary
        if how.errors:
            yield weights["mse"] * ops.sum(ops.stack(how.errors))
        if "cross_entropy" in weights:
            placement = self._hidden.placement
            exact = Pass(placement, [(0.0, 0.0)] * len(placement.names), "float")(tensors)
            yield weights["cross_entropy"] * cross_entropy(exact, outputs, self._logits())

    def _logits(self) -> list[bool]:
        """For each output, whether it holds logits."""
        producer = {number: step for step in self._hidden.placement.steps for number in step.outputs}
        outputs = self._hidden.placement.traced.outputs
        return [number not in producer or not gives_probabilities(producer[number]) for number in outputs]

    def _converted(self) -> tuple[Any, Any, Any]:
        limits = [(low, high) for low, high in np.asarray(self.ranges.limits)]
        half = any(layer.compute_dtype != "float32" for layer in self.net._flatten_layers() if is_float(layer))
        net, placement = self.net, self._hidden.placement
        if half:
            net = copy_model(self.net, "float32")
            learned = placement.learned
            old = kernels_of(placement) if learned else []
            placement = place(trace(net), self._hidden.schemes)
            pairs = zip(old, kernels_of(placement) if learned else [], strict=True)
            placement.learned.update({id(new[1]): learned[id(was[1])] for was, new in pairs if id(was[1]) in learned})
        kernels: list[dict[str, Any]] = []

        def run(*tensors: Any) -> list[Any]:
            made = Pass(placement, limits, "export")
            outputs = made(list(tensors))
            kernels[:] = made.kernels
            return outputs

        return net, run, kernels

    def _precisions(self) -> tuple[str, ...]:
        return self._hidden.schemes.scheme.precisions

    def _reference(self) -> Any:
        return lambda *tensors: Pass(self._hidden.placement, self.ranges.pairs())(list(tensors))

    def _floats(self) -> frozenset[str]:
        return self._hidden.schemes.floats

    def freeze_ranges(self, frozen: bool = True) -> None:
        """Keeps all ranges as they are while training goes on, or lets them follow the data again.

        Freeze them for the last epochs: weights then settle on the very grid of the file.

        Raises: RuntimeError if they have not seen data yet.
        """
        if frozen and not self.calibrated:
            raise RuntimeError(f"The ranges of {self.name!r} have not seen any data yet: calibrate it, or train first.")
        self.ranges.frozen.assign(float(frozen))
        if self.ranges.learned is not None:  # an optimizer goes on moving them; they start where they were kept
            self.ranges.learned.assign(self.ranges.limits)

    def range_of(self, name: str) -> tuple[float, float]:
        """The range of a tensor, as named in `range_names`."""
        return self.all_ranges()[name]

    def all_ranges(self) -> dict[str, tuple[float, float]]:
        """A record of all ranges, name -> (smallest value, largest value): what `strip` leaves behind."""
        return {
            name: (float(low), float(high))
            for name, (low, high) in zip(self.range_names, np.asarray(self.ranges.limits), strict=True)
        }

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
        layers = {name: scheme.get_config() for name, scheme in self._hidden.schemes.layers.items()}
        return {
            **super().get_config(),
            "source": source,
            "observer": observer,
            "delay": self.delay,
            "scheme": self.scheme,
            "layers": layers or None,
            "folding": self.folding,
            "freeze_batch_norm": self.freeze_batch_norm,
            "losses": self.auxiliary or None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "NativeModel":
        source = keras.saving.deserialize_keras_object(config["source"], custom_objects=custom_objects)
        options = {key: value for key, value in config.items() if key not in ("source", "keep_calibration")}
        options["layers"] = {name: LayerScheme.from_config(entry) for name, entry in (config["layers"] or {}).items()}
        model = cls(source, **options)
        model.keep_calibration = config.get("keep_calibration", True)
        return model


def _by_name(layers: Layers | None, source: keras.Model) -> Layers | None:
    """The same with names in place of layers of the source, whose names are not unique where models are nested."""
    if not isinstance(layers, Mapping) or not any(isinstance(key, keras.layers.Layer) for key in layers):
        return layers
    names = {id(call.operation): call.name for call in trace(source).calls}
    return {names.get(id(key), key): value for key, value in layers.items()}


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
