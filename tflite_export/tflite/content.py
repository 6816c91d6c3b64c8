"""The bytes of a file, however it is given."""

import os
from pathlib import Path
from typing import Protocol

from tflite_export.tflite import soundness


class HasContent(Protocol):
    """A `TFLiteModel`."""

    @property
    def content(self) -> bytes:
        """The bytes of the file."""


TFLite = HasContent | str | os.PathLike[str] | bytes


def content_of(tflite: TFLite) -> bytes:
    """The bytes of a `TFLiteModel`, of a path, or themselves; sound ones.

    Raises: FileNotFoundError; ValueError for bytes that are no sound `.tflite` file; TypeError for anything else.
    """
    if isinstance(tflite, bytes | bytearray | memoryview):
        content, label = bytes(tflite), "The file"
    elif isinstance(tflite, str | os.PathLike):
        if not Path(tflite).is_file():
            raise FileNotFoundError(f"No such file: {os.fspath(tflite)!r}.")
        content, label = Path(tflite).read_bytes(), repr(os.fspath(tflite))
    elif hasattr(tflite, "content"):
        return tflite.content
    else:
        raise TypeError(f"`tflite` must be a TFLiteModel, a path or bytes; got {type(tflite).__name__}.")
    soundness.check(content, label)
    return content
