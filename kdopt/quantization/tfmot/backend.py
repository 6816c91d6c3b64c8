"""Loads tf_keras and tfmot, and leaves the process as it was.

Importing tfmot sets `TF_USE_LEGACY_KERAS=1` for the whole process and, while it is set, may resolve TensorFlow's
lazy Keras to tf_keras for good. `load` resolves the lazy loader first and restores the variable afterwards.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from kdopt.core.backend import require_tensorflow

_SWITCH = "TF_USE_LEGACY_KERAS"


@dataclass(frozen=True)
class Backend:
    """The two modules, loaded."""

    tf_keras: ModuleType
    tfmot: ModuleType


@cache
def load() -> Backend:
    """Imports tf_keras and tfmot.

    Returns: A `Backend`.
    Raises: ImportError with the pip line if one is missing or tf_keras does not fit TensorFlow; RuntimeError on
        another Keras backend than TensorFlow.
    """
    require_tensorflow("quantize_aware")
    _check_versions()
    with legacy_switch_restored():
        # tfmot's package imports Keras through the switch it sets itself.
        import tensorflow_model_optimization as tfmot
        import tf_keras
    return Backend(tf_keras, tfmot)


@contextmanager
def legacy_switch_restored() -> Iterator[None]:
    """Resolves TensorFlow's lazy Keras before, puts the environment variable back after."""
    import tensorflow

    getattr(tensorflow, "keras").layers  # noqa: B009, B018  the lazy loader decides on first access
    before = os.environ.get(_SWITCH)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before


def _check_versions() -> None:
    import tensorflow

    # The module's own word: the package may be called tensorflow-cpu, tensorflow-macos, tf-nightly, ...
    running = tensorflow.__version__
    wanted = ".".join(running.split(".")[:2])
    tf_keras = _installed("tf_keras")
    line = f"pip install 'tf_keras=={wanted}.*'"
    if tf_keras is None:
        raise ImportError(f"quantize_aware(engine='tfmot') needs tf_keras: {line}")
    if tf_keras.split(".")[:2] != wanted.split("."):
        raise ImportError(f"tf_keras {tf_keras} does not fit TensorFlow {running}: {line}")
    if _installed("tensorflow-model-optimization") is None:
        raise ImportError("quantize_aware(engine='tfmot') needs tfmot: pip install tensorflow-model-optimization")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
