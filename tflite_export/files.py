"""Files: written whole or not at all."""

import gzip
import os
import tempfile
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: bytes) -> Path:
    """Writes `content` to `path`: a reader sees the old file or the new one, never a part.

    Args:
        path: Destination. Missing parent folders are made.
        content: Bytes.

    Returns: `path` as a `Path`.
    Raises: IsADirectoryError if `path` is a folder or empty; OSError with the path if it cannot be written.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"Expected the name of a file to write; got the folder {os.fspath(path)!r}.")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _told(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes a private file
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _told(error, path) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _told(error: OSError, path: Path) -> OSError:
    """The same error, with the file that was to be written."""
    kept = " The file that is there is as it was." if path.is_file() else ""
    return type(error)(error.errno, f"{error.strerror or error}; cannot write {str(path)!r}.{kept}")


def gzip_size(content: bytes) -> int:
    """Size in bytes of `content` after gzip at level 9, as an app store would ship it."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))
