"""Files: written whole or not at all, and their sizes."""

import gzip
import os
import tempfile
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Writes `content` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to disk, and the file is
    renamed over `path`. Missing parent folders are created.

    Args:
        path: Destination.
        content: Bytes.

    Returns: `path` as a `Path`.
    Raises: IsADirectoryError if `path` is a folder or empty.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"Expected the name of a file to write; got the folder {os.fspath(path)!r}.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def gzip_bytes(content: bytes) -> int:
    """Size in bytes of `content` after gzip at level 9, as an app store would ship it."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
