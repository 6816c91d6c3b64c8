"""A tf_keras model as a source."""

from pathlib import Path
from typing import Any

from tflite_export.sources.protocol import InputSpec, Source, layer_names, safe_names
from tflite_export.sources.structures import structure_keys


def load_legacy(path: Path) -> Any:
    """The model of an `.h5` file that Keras 3 refuses, from the library that wrote it; None if that refuses it, too."""
    try:
        import tf_keras

        return tf_keras.models.load_model(path, compile=False)
    except Exception:
        return None


def from_tf_keras(model: Any) -> Source:
    """A model of tf_keras, in inference mode.

    Raises: ValueError for a model that was never called.
    """
    import tensorflow as tf

    label = f"tf_keras model {model.name!r}"
    structure = getattr(model, "_nested_inputs", None)
    if structure is None:
        saved = model.save_spec() if model.built else None
        if saved is None:
            raise ValueError(
                f"{label} was never called, so its input shapes are unknown. Call it once on a batch, then convert."
            )
        structure = saved[0][0] if len(saved[0]) == 1 else list(saved[0])
    tensors = tf.nest.flatten(structure)
    called = [getattr(tensor, "name", None) or f"input_{i}" for i, tensor in enumerate(tensors)]
    named = list(getattr(model, "input_names", None) or called)
    names = safe_names(structure_keys(structure, tf.nest.flatten) or named)
    nested = getattr(model, "_nested_outputs", None)
    outputs = structure_keys(nested, tf.nest.flatten) or list(model.output_names or ["output_0"])

    def function(*arguments: Any) -> list[Any]:
        packed = tf.nest.pack_sequence_as(structure, list(arguments))
        return list(tf.nest.flatten(model(packed, training=False)))

    return Source(
        label=label,
        module=model,
        function=function,
        inputs={n: InputSpec(tuple(t.shape.as_list()), t.dtype.name) for n, t in zip(names, tensors, strict=True)},
        outputs=safe_names(outputs),
        layers=layer_names(model),
    )
