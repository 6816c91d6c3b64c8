"""Warnings that point at the user's line, not at ours or Keras's."""

import sys
import warnings
from pathlib import Path
from types import FrameType

_INSIDE = ("kdopt", "keras", "tensorflow", "tf_keras", "tensorflow_model_optimization")


def warn_user(message: str) -> None:
    """Warns with a `UserWarning` at the innermost caller outside the frameworks, e.g. the line with `model.fit`."""
    folders = [str(Path(file).parent) + "/" for file in map(_file_of, _INSIDE) if file]
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(tuple(folders)):
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level if frame is not None else 2)


def _file_of(package: str) -> str | None:
    return getattr(sys.modules.get(package), "__file__", None)
