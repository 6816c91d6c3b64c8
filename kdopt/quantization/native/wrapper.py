"""One layer that trains with rounding, in a model of one's own."""

from typing import Any

import keras
import numpy as np

from kdopt.core.validation import check_flag
from kdopt.graph.inline import trace
from kdopt.quantization.native.execution import Pass, Training
from kdopt.quantization.native.following import Following
from kdopt.quantization.native.kernels import LearnedSteps, kernels_of
from kdopt.quantization.native.limits import Ranges
from kdopt.quantization.native.placement import Placement, place
from kdopt.quantization.native.steps import steps_of
from kdopt.quantization.observers import OBSERVERS, Observer
from kdopt.quantization.schemes import Choices, resolve


class _Hidden:
    """Keeps what is no layer out of Keras's tracking."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement


@keras.saving.register_keras_serializable("kdopt")
class Quantized(keras.layers.Wrapper):
    """A layer whose kernel and output are rounded in training and inference, in any Keras model.

    For models that are written by hand, or of which a few layers alone are to be rounded. `quantize_aware` is for whole
    models: it knows what TFLite fuses (a BatchNormalization behind a convolution, which this wrapper keeps from being
    folded) and which tensors share a scale.

    Exported with precision `"int8"`, the file keeps the ranges that are in the model, and `representative_data` gives
    those of the other tensors.

    Args:
        layer: Layer with a kernel that is called on one tensor: a convolution, `Dense`, a recurrent layer.
        weights: How its kernel is rounded: a number of bits in [2, 8], a name in `WEIGHT_GRIDS` or a `WeightGrid`.
            Defaults to `8`.
        per_channel: Whether each output channel has a step of its own. Defaults to `True`.
        inputs: Whether the input is rounded, too: for the first layer. Defaults to `False`.
        observer: Name in `OBSERVERS`, or an `Observer`, for its ranges. Defaults to `"ema"`.

    Raises: TypeError, ValueError for what is not a layer, or has no kernel that is rounded.

    Example:
    ```
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        Quantized(keras.layers.Conv2D(8, 3, activation="relu"), inputs=True),
        keras.layers.Flatten(),
        Quantized(keras.layers.Dense(10), weights=4),
    ])
    ```

    Reference: Jacob et al., CVPR 2018, section 3.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weights: Any = 8,
        per_channel: bool = True,
        inputs: bool = False,
        observer: str | Observer = "ema",
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
            raise TypeError(f"Expected a layer; got {type(layer).__name__}. For a model: `quantize_aware(model)`.")
        # float32: its ranges must not be read in half precision; the layer computes in its own.
        super().__init__(layer, **{"name": f"quantized_{layer.name}", "dtype": "float32", **kwargs})
        self.quantized_weights, self.per_channel = weights, check_flag("per_channel", per_channel)
        self.rounds_inputs, self.observer = check_flag("inputs", inputs), OBSERVERS.get(observer)
        self._options = {"weights": weights, "per_channel": per_channel}
        resolve("int8", {layer.name: self._options}, Choices({layer.name: layer}, [layer.name], []))

    def build(self, input_shape: Any = None) -> None:
        """Makes the layer, and a range for each tensor in it."""
        x = keras.Input(batch_shape=input_shape, dtype=self.layer.compute_dtype)
        traced = trace(keras.Model(x, self.layer(x)))
        plain = place(traced, resolve("int8", None, _choices(self.layer, [])))
        name = traced.calls[0].name
        if not kernels_of(plain) or not all(step.rule.known for step in steps_of(traced)):
            kind = type(self.layer).__name__
            raise ValueError(
                f"{self.layer.name!r} ({kind}) has no kernel that is rounded; see `quantization_rule` for layers of "
                "one's own."
            )
        schemes = resolve("int8", {name: self._options}, _choices(self.layer, [name]))
        placement = place(traced, schemes)
        if not self.rounds_inputs:
            placement.grids.pop(placement.traced.inputs[0].index, None)
        self._hidden = _Hidden(placement)
        self.ranges = Ranges(len(placement.names), self.observer.learned, name="ranges")
        weights = schemes.of(name).weights
        self.steps = LearnedSteps(placement, name="steps") if weights is not None and weights.learned else None
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        placement, ranges = self._hidden.placement, self.ranges
        if not training or not self.trainable:
            run = Pass(placement, ranges.pairs(), exact=False)
            run.how.starts = ranges.batches.value > 0
            (outputs,) = run([inputs])
            return outputs
        following = Following(self.observer, placement, ranges, fresh=True)
        (outputs,) = Pass(placement, ranges.pairs(), training=Training(self.observer.quantize), observe=following)(
            [inputs]
        )
        for loss in following.penalties():
            self.add_loss(loss)
        following.store()
        ranges.batches.assign(ranges.batches.value + 1.0)
        return outputs

    def __tflite_kernels__(self) -> list[dict[str, Any]]:
        """What a converter cannot derive from the weights, see `tflite_export.kernels.Kernel`."""
        placement = self._hidden.placement
        entry = placement.traced.inputs[0]
        if not float(self.ranges.batches):
            raise ValueError(
                f"{self.name!r} has no range yet. Train the model, or call it on data with training=True, before it is "
                "exported."
            )
        made = Pass(placement, [(float(low), float(high)) for low, high in np.asarray(self.ranges.limits)], "export")
        made([keras.ops.zeros([entry.shape[0] or 1, *(size or 32 for size in entry.shape[1:])], entry.dtype)])
        return made.kernels

    def to_plain(self) -> keras.layers.Layer:
        """A new layer without the wrapper, built if this one is, with the same float weights."""
        plain = type(self.layer).from_config(self.layer.get_config())
        if self.built:
            plain.build(self._hidden.placement.traced.inputs[0].shape)
            plain.set_weights(self.layer.get_weights())
        return plain

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Refuses masks: the file would not have them."""
        if any(mask is not None for mask in keras.tree.flatten([previous_mask])):
            raise ValueError(f"{self.name!r} does not compute with masks of time steps: feed sequences of full length.")
        return None

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        weights = self.quantized_weights
        kept: Any = weights if isinstance(weights, (int, str)) else keras.saving.serialize_keras_object(weights)
        observer = keras.saving.serialize_keras_object(self.observer)
        options = {"weights": kept, "per_channel": self.per_channel, "inputs": self.rounds_inputs, "observer": observer}
        return {**super().get_config(), **options}


def _choices(layer: keras.layers.Layer, kernels: list[str]) -> Choices:
    return Choices({layer.name: layer}, kernels, [])
