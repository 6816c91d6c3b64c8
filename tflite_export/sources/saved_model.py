"""A SavedModel folder as a source."""

from pathlib import Path
from typing import Any

from tflite_export.sources.protocol import InputSpec, Source, named_outputs, safe_names


def from_saved_model(path: Path) -> Source:
    """The signature `serving_default` of a SavedModel folder.

    Raises: ValueError if it cannot be loaded or has no such signature.
    """
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ValueError(f"TensorFlow cannot load the SavedModel {str(path)!r}: {error}") from error
    if "serving_default" not in loaded.signatures:
        found = ", ".join(loaded.signatures) or "none"
        raise ValueError(f"The SavedModel {str(path)!r} has no signature 'serving_default'; it has: {found}.")
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    outputs = tuple(signature.structured_outputs)
    safe = safe_names(outputs)

    def function(*arguments: Any) -> dict[str, Any]:
        result = signature(**dict(zip(specs, arguments, strict=True)))
        return named_outputs([result[name] for name in outputs], safe)

    return Source(
        label=f"SavedModel {str(path)!r}",
        module=loaded,
        function=function,
        inputs={
            name: InputSpec(tuple(spec.shape.as_list()), spec.dtype.name)
            for name, spec in zip(safe_names(specs), specs.values(), strict=True)
        },
        outputs=safe,
    )
