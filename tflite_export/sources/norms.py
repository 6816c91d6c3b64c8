"""Whether data have the scale of those that a model was trained on, by its BatchNormalization layers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tflite_export.sources.quality import Finding

_FACTOR = 10.0  # of a standard deviation: another scale
_SHIFT = 4.0  # standard deviations
_FIRST_NORMS = 3


def of_norms(model: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """The first trained BatchNormalization layers: what comes in now, beside what came in when they were trained.

    Args:
        model: Any; something is found in Keras 3 models with inputs alone.
        arrays: Input name -> array (n, ...), a few samples.
    """
    import keras

    norms = [layer for layer in getattr(model, "layers", ()) if type(layer).__name__ == "BatchNormalization"]
    norms = [norm for norm in norms if np.any(np.asarray(norm.moving_mean)) or np.ptp(np.asarray(norm.moving_variance))]
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None) or not norms:
        return
    norms = norms[:_FIRST_NORMS]
    inner = keras.Model(model.inputs, [norm.input for norm in norms])
    given = list(arrays.values())
    seen = inner(given if len(given) > 1 else given[0], training=False)
    for norm, values in zip(norms, seen if isinstance(seen, list) else [seen], strict=True):
        axes = tuple(axis for axis in range(len(values.shape)) if axis != norm.axis % len(values.shape))
        mean, variance = np.mean(values, axis=axes), np.var(values, axis=axes)
        own_mean, own = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance) + norm.epsilon
        factor = float(np.median(np.sqrt((variance + 1e-12) / own)))
        shift = float(np.median(np.abs(mean - own_mean) / np.sqrt(own)))
        if not 1 / _FACTOR < factor < _FACTOR or shift > _SHIFT:
            yield Finding(
                "scale",
                f"what comes in spreads {factor:.3g} times as far as in training, {shift:.3g} standard deviations off",
                "The data are on another scale than those the model was trained on: give them as `fit` had them",
                norm.name,
            )
            return
