"""A Keras 3 model that trains a fake-quantized tf_keras net.

Its Variables are the net's tf.Variables and its `call` runs the net; so optimizers, callbacks, masks, checkpoints
and distillers see an ordinary Keras 3 model, and nothing is translated in either direction.
"""

from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import find_kernels
from kdopt.core.notices import warn_user
from kdopt.graph.inline import TracedInput, trace
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.data import calibration_batches
from kdopt.quantization.report import LayerReports
from kdopt.quantization.tfmot.annotate import is_rolled
from kdopt.quantization.tfmot.checks import functional_of
from kdopt.quantization.tfmot.holder import QuantizedLayer
from kdopt.quantization.tfmot.net import QuantizedNet
from kdopt.quantization.tfmot.preserve import check_something_kept
from kdopt.quantization.tfmot.schemes import scheme_of
from kdopt.quantization.tfmot.steps import variable_keys


class _Hidden:
    """Keeps the source and the net out of Keras's variable tracking."""

    def __init__(self, source: Any, net: QuantizedNet) -> None:
        self.source = source
        self.net = net
        self.graph = functional_of(source)
        self.prunable: list[tuple[str, keras.Variable, int]] = []


@keras.saving.register_keras_serializable("kdopt")
class QuantizedModel(QuantizationAware):
    """Quantization-aware training of a Keras 3 model on tfmot's 8-bit scheme.

    Made by `kdopt.quantization.quantize_aware`. `model.layers` are named as in the source and hold its variables
    plus the ranges (`*_min`, `*_max`). Ranges follow the data in training and are fixed in inference.

    Args:
        source: Keras 3 Sequential or Functional model; left as it is.
        calibration: Data as in `quantize_aware`. Defaults to `None`: the first training batches.
        name: String.
        scheme: Name in `SCHEMES`, as in `quantize_aware`. Defaults to `"int8"`.

    Raises: as `quantize_aware`.
    """

    def __init__(self, source: Any, calibration: Any = None, name: str | None = None, *, scheme: str = "int8") -> None:
        super().__init__(name=name or f"{source.name}_quantized")
        self.scheme = scheme
        rules = scheme_of(scheme)
        data = None if calibration is None else calibration_batches(calibration, trace(source).inputs)
        # float32, not an integer: XLA keeps small integers of a training step on the host.
        self.range_updates = self.add_weight(shape=(), initializer="zeros", trainable=False, name="range_updates")
        probe = [column[:2] for column in data[0]] if data else None
        net = QuantizedNet(source, self.range_updates.value, rules, probe)
        rolled = dict.fromkeys(step.source for step in net.blueprint.steps if is_rolled(step))
        if rolled:
            warn_user(
                f"{self.name!r} trains, but cannot become an int8 file as it is: {', '.join(map(repr, rolled))} keeps "
                "a loop in the graph, which the converter cannot calibrate. Way out: rebuild the layer with "
                "`unroll=True` (a fixed number of time steps), copy the weights, and quantize that model."
            )
        self._hidden = _Hidden(source, net)
        self._holders = self._make_holders(net)
        self._hidden.prunable = self._find_prunable(source)
        if data:
            net.calibrate(data)
            self._keep(data)
        self.built = True

    @staticmethod
    def _make_holders(net: QuantizedNet) -> list[QuantizedLayer]:
        variables: dict[str, list[Any]] = {}
        for entry in net.variables():
            variables.setdefault(entry.layer, []).append(entry)
        members: dict[str, dict[str, Any]] = {}
        frozen = set()
        for step in net.blueprint.steps:
            members.setdefault(step.source, {})[step.name] = net.layers[step.name]
            if not step.trainable:
                frozen.add(step.source)
        names = [entry.name for entry in net.blueprint.trace.inputs] + list(members)
        return [
            QuantizedLayer(name, variables.get(name, []), list(members.get(name, {}).values()), name not in frozen)
            for name in dict.fromkeys(names)
        ]

    def _find_prunable(self, source: Any) -> list[tuple[str, keras.Variable, int]]:
        # Now, not when asked: the source may be frozen later, say as the teacher of this model.
        own = {id(entry.source): f"{entry.layer}/{entry.name}" for entry in self._hidden.net.variables()}
        variables = self._by_key()
        views = [view for view in find_kernels(source)[0] if id(view.variable) in own]
        return [(view.path, variables[own[id(view.variable)]], view.channel_axis) for view in views]

    @property
    def _inputs(self) -> tuple[TracedInput, ...]:
        return self._hidden.net.blueprint.trace.inputs

    @property
    def _graph(self) -> Any:
        return self._hidden.graph

    def __recorded_model__(self) -> keras.Model:
        """Whose layers can be tapped; see `kdopt.core.recording`."""
        return self._hidden.source

    @property
    def report(self) -> LayerReports:
        """One `LayerReport` a source layer: how it is quantized, and why not if it is not."""
        return LayerReports(self._hidden.net.report)

    @property
    def calibrated(self) -> bool:
        """Whether the ranges have seen data."""
        import tensorflow as tf

        with tf.init_scope():
            return float(self._hidden.net.batches.numpy()) > 0

    def _set_ranges(self, batches: list[list[np.ndarray]]) -> None:
        self._hidden.net.calibrate(batches)

    def require_kept(self) -> None:
        """Refuses a scheme that keeps zeros or clusters in a net that has none.

        Raises: ValueError.
        """
        net = self._hidden.net
        groups = [kernel.groups.numpy() for kernel in net.kernels if kernel.groups is not None]
        check_something_kept(groups, net.scheme, self.scheme)

    def compute_output_spec(self, inputs: Any, training: Any = None) -> Any:
        del training
        return self._hidden.source.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self._hidden.source.compute_output_shape(input_shape)

    def get_prunable_weights(self) -> list[tuple[str, keras.Variable, int]]:
        """The float kernels, never the fake-quantized ones: `(name in the source, variable, axis of the channels)`."""
        return list(self._hidden.prunable)

    def output_activation(self) -> Any:
        """The model whose graph tells logits from probabilities. A method: Keras saves models it finds elsewhere."""
        return self._hidden.source

    def strip(self) -> Any:
        """A float Keras 3 model like the source, with the trained weights; `self` is left as it is."""
        hidden = self._hidden
        classes = {type(layer).__name__: type(layer) for layer in hidden.source._flatten_layers(include_self=False)}
        classes = {name: cls for name, cls in classes.items() if not cls.__module__.startswith("keras.")}
        config = keras.saving.serialize_keras_object(hidden.source)
        model = keras.saving.deserialize_keras_object(config, custom_objects=classes, safe_mode=False)
        own = {**self._by_key(), **hidden.net.kept_kernels()}
        # In order, not by name: a layer whose config lacks its name comes back with another one.
        for call, new in zip(hidden.net.blueprint.trace.calls, trace(model).calls, strict=True):
            keys = variable_keys(call.name, call.operation)
            for (key, _), variable in zip(keys, new.operation.variables if keys else (), strict=True):
                if key in own:
                    variable.assign(own[key])
        return model

    def _by_key(self) -> dict[str, keras.Variable]:
        found = {
            f"{layer.name}/{name}": variable for layer in self._holders for name, variable in layer.by_name.items()
        }
        return {**found, "range_updates": self.range_updates}

    def _run(self, tensors: list[Any], training: bool) -> list[Any]:
        net = self._hidden.net
        outputs = net.run(tensors, training)
        if training:
            import tensorflow as tf

            # Tied to the outputs: a step that finds the data at its end must not count.
            with tf.control_dependencies(outputs):
                self.range_updates.assign_add(1.0)
        for loss in net.model.losses:
            self.add_loss(loss)
        return outputs

    def _converted(self) -> tuple[Any, Any, list[dict[str, Any]]]:
        return self._hidden.net.model, lambda *tensors: self._run(list(tensors), training=False), []

    def get_config(self) -> dict[str, Any]:
        source = keras.saving.serialize_keras_object(self._hidden.source)
        return {**super().get_config(), "source": source, "scheme": self.scheme}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QuantizedModel":
        source = keras.saving.deserialize_keras_object(config["source"], custom_objects=custom_objects)
        model = cls(source, name=config["name"], scheme=config.get("scheme", "int8"))
        model.keep_calibration = config.get("keep_calibration", True)
        return model

    def save_own_variables(self, store: Any) -> None:
        for place, (_, variable) in self._by_place().items():
            store[place] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        own = self._by_place()
        missing = sorted(key for place, (key, _) in own.items() if place not in store.keys())  # noqa: SIM118  a store
        if missing:
            raise ValueError(f"The file lacks {len(missing)} variables of {self.name!r}, e.g. {missing[:3]}.")
        for place, (_, variable) in own.items():
            variable.assign(store[place])

    def _by_place(self) -> dict[str, tuple[str, keras.Variable]]:
        """Place in a file -> key and variable. By number, as Keras: a model built again has `dense_1` for `dense`."""
        numbers = {layer.name: number for number, layer in enumerate(self._holders)}
        places = {}
        for key, variable in self._by_key().items():
            layer, _, name = key.rpartition("/")
            places[f"{numbers[layer]}:{name}" if layer else name] = (key, variable)
        return places
