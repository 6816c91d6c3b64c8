"""Files behind a `.tflite`: a zip archive after its last byte, which flatbuffer readers do not see."""

import io
import zipfile
from collections.abc import Mapping

from tflite_export.tflite import soundness

_LARGEST = 16 * 2**20  # bytes of a file that is read


def attach(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """The bytes with an archive of these files behind them, stored as they are: readers map them in place.

    Args:
        content: A `.tflite` file without an archive.
        files: Name -> bytes. Empty: no archive.
    """
    if not files:
        return content
    buffer = io.BytesIO(content)
    buffer.seek(len(content))
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            timeless = zipfile.ZipInfo(name)  # of 1980: the same files give the same bytes
            archive.writestr(timeless, data, zipfile.ZIP_STORED)
    return buffer.getvalue()


def attached(content: bytes, name: str) -> bytes:
    """A file of the archive behind a `.tflite`.

    Raises: ValueError if there is no archive, no such file in it, or a damaged or too large one.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = archive.getinfo(name).file_size
            if size > _LARGEST:
                raise ValueError(f"it has {size:,} bytes, more than {_LARGEST:,}")
            with archive.open(name) as file:
                return file.read(_LARGEST)
    except Exception as error:  # zipfile, zlib, lzma each have their own
        raise ValueError(f"The metadata names {name!r}, which is not readable behind the file: {error}.") from error


def detached(content: bytes) -> bytes:
    """A `.tflite` without the archive behind it.

    Raises: ValueError if what is before the archive is no sound file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    except zipfile.BadZipFile:
        return content
    soundness.check(content[:start], "What is before the archive behind the file")
    return content[:start]
