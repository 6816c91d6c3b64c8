"""From whatever the user has to a `Source`: model, function, file, folder, `__tflite_source__`."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from tflite_export.sources.functions import from_function
from tflite_export.sources.keras3 import from_keras
from tflite_export.sources.legacy_keras import from_tf_keras, load_legacy
from tflite_export.sources.protocol import Source, from_protocol
from tflite_export.sources.saved_model import from_saved_model

_KERAS_FILES = (".keras", ".h5", ".hdf5")
_SUPPORTED = (
    "a Keras 3 model, a tf_keras model, a tf.function or concrete function, the path of a `.keras` or `.h5` file or of "
    "a SavedModel folder, or an object with `__tflite_source__()`"
)


def resolve(source: Any) -> Source:
    """The `Source` behind anything that `convert` and `verify` accept.

    Raises: TypeError, ValueError, FileNotFoundError with what was expected; RuntimeError for Keras on another backend.
    """
    if isinstance(source, Source):
        return source
    if hasattr(source, "__tflite_source__") and not isinstance(source, type):
        return from_protocol(source)
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source))
    family = _family(source)
    if family == "keras":
        _require_tensorflow()
        return from_keras(source)
    if family == "tf_keras":
        return from_tf_keras(source)
    if hasattr(source, "structured_input_signature") or hasattr(source, "get_concrete_function"):
        return from_function(source)
    raise TypeError(f"`source` must be {_SUPPORTED}; got {type(source).__module__}.{type(source).__qualname__}.")


def _family(source: Any) -> str | None:
    """`"keras"`, `"tf_keras"` or None, without importing either: a model's package is loaded already."""
    for family in ("keras", "tf_keras"):
        package = sys.modules.get(family)
        if package is not None and isinstance(source, package.Model):
            return family
    return None


def _require_tensorflow() -> None:
    import keras

    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            f"Only Keras on the TensorFlow backend leads to a .tflite; this process runs Keras on "
            f"{keras.config.backend()!r}. Switch before the first `import keras`: "
            '`import os; os.environ["KERAS_BACKEND"] = "tensorflow"`.'
        )


def _from_path(path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"No such model: {str(path)!r}.")
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ValueError(f"{str(path)!r} is a folder without saved_model.pb: not a SavedModel.")
        return from_saved_model(path)
    if path.suffix not in _KERAS_FILES:
        raise ValueError(f"`source` must be {_SUPPORTED}; got the file {str(path)!r}.")
    import keras

    _require_tensorflow()
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        model = None if path.suffix == ".keras" else load_legacy(path)
        if model is None:
            raise ValueError(f"Keras cannot load {str(path)!r}: {_reason(error)}") from error
    return resolve(model)


def _reason(error: Exception) -> str:
    """Keras' message without the model's whole config, and the way out where there is one."""
    text = str(error)
    if "safe_mode" in text:
        return (
            "It holds a Lambda layer, which is code. If you trust it, load it in Python, "
            "`keras.models.load_model(path, safe_mode=False)`, and convert the model."
        )
    missing = re.search(r"Could not locate \w+ '[^']*'", text)
    if missing:
        return (
            f"{missing.group()}. Import the package that registers it first, in Python or with `--import PACKAGE` on "
            "the command line (`kdopt` for its QAT models)."
        )
    return text if len(text) <= 1000 else f"{text[:1000]} ..."
