"""What devices in the field must download to get from one version of a file to the next."""

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from tflite_export.files import gzip_size
from tflite_export.tflite.content import TFLite, content_of
from tflite_export.tflite.records import constants

_MARK = b"TFLU1\0"
_LARGEST = 2**31  # bytes of a flatbuffer
_HEADER = struct.Struct("<6s32s32sQ")


@dataclass(frozen=True)
class Update:
    """The way from one version of a file to another.

    Attributes:
        patch: Bytes for `apply_update`.
        changed_bytes: Bytes of the new file that are not as in the old one at the same place.
        changed_tensors: Names of constants that changed, or are new.
        full_bytes: Size of the new file after gzip, for comparison.
    """

    patch: bytes
    changed_bytes: int
    changed_tensors: tuple[str, ...]
    full_bytes: int

    @property
    def size_bytes(self) -> int:
        """What is downloaded."""
        return len(self.patch)

    def __str__(self) -> str:
        share = self.size_bytes / self.full_bytes
        advice = "" if share < 1 else "; send the whole file instead"
        return (
            f"update of {self.size_bytes:,} bytes, {share:.0%} of the whole file after gzip ({self.full_bytes:,}); "
            f"{len(self.changed_tensors)} constants changed{advice}"
        )


def update(old: TFLite, new: TFLite) -> Update:
    """The update between two versions of a model: the differences of their bytes, compressed.

        patch = deflate((new - old) mod 256)

    Where a layer was not trained on, or pruned weights stayed zero, the difference is 0 and costs next to nothing; int8
    weights that moved by a step compress well, floats hardly. Versions of one architecture and precision lie byte upon
    byte; for others it is as large as the file.

    Args:
        old, new: `TFLiteModel`, path or bytes.

    Returns: an `Update`.
    Raises: ValueError for what is no `.tflite` file.
    """
    before, after = content_of(old), content_of(new)
    difference = _aligned(after, len(after)) - _aligned(before, len(after))
    packed = zlib.compress(difference.tobytes(), 9)
    header = _HEADER.pack(_MARK, hashlib.sha256(before).digest(), hashlib.sha256(after).digest(), len(after))
    known = constants(before)
    changed = [name for name, data in constants(after).items() if name not in known or known[name] != data]
    return Update(header + packed, int(np.count_nonzero(difference)), tuple(changed), gzip_size(after))


def apply_update(old: TFLite, patch: bytes) -> bytes:
    """The new file.

    Raises: ValueError if the patch is damaged, or was made for another file.
    """
    before = content_of(old)
    if len(patch) < _HEADER.size or not patch.startswith(_MARK):
        raise ValueError("The patch is none that `update` made.")
    _, from_hash, to_hash, length = _HEADER.unpack_from(patch)
    if hashlib.sha256(before).digest() != from_hash:
        raise ValueError("The patch was made for another version of the file than `old`.")
    if length > _LARGEST:
        raise ValueError(f"The patch is damaged: it speaks of a file of {length} bytes.")
    try:
        difference = zlib.decompressobj().decompress(patch[_HEADER.size :], length + 1)
    except zlib.error as error:
        raise ValueError(f"The patch is damaged: {error}.") from error
    if len(difference) != length:
        raise ValueError("The patch is damaged: it holds another number of bytes than it says.")
    after = (_aligned(before, length) + np.frombuffer(difference, np.uint8)).tobytes()
    if hashlib.sha256(after).digest() != to_hash:
        raise ValueError("The patch is damaged: what it makes is not the new file.")
    return after


def _aligned(content: bytes, length: int) -> np.ndarray:
    """Bytes, cut or filled up with zeros."""
    return np.frombuffer(content[:length].ljust(length, b"\0"), np.uint8)
