"""A file as an array in C, for microcontrollers without a file system."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tflite_export.app.attached import detached
from tflite_export.files import write_atomic
from tflite_export.runtime.model import TFLiteModel

_ALIGNMENT = 16  # of what TensorFlow Lite Micro reads in place
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of C and C++, as far as a name of a model might be one.
_RESERVED = """
auto bool break case catch char class const continue default delete do double else enum explicit export extern false
float for friend goto if inline int long mutable namespace new operator private protected public register return short
signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void
volatile while
"""
_PER_LINE = 16


@dataclass(frozen=True)
class CSource:
    """What was written.

    Attributes:
        header: Path of the `.h` file.
        source: Path of the `.c` file.
        name: Of the array; its length is `<name>_len`.
        size_bytes: Length of the array.
    """

    header: Path
    source: Path
    name: str
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.header}, {self.source}: {self.name}[{self.size_bytes}]"


def c_array(tflite: Any, path: str | os.PathLike[str], *, name: str | None = None) -> CSource:
    """Writes a file as `const unsigned char name[]`, aligned to 16 bytes, with a header for C and C++.

    Files that `set_metadata` put behind it (labels) stay out.

    Args:
        tflite: `TFLiteModel`, path of a `.tflite` file, or bytes.
        path: Where to write: `firmware/model` or `firmware/model.c` gives `model.h` and `model.c` in `firmware`.
        name: Of the array: letters, digits and `_`. Defaults to `None`: the file's, other characters replaced by `_`.

    Returns: a `CSource`. Both files are written, or none.
    Raises: ValueError for a name that C does not take or a file that does not load; TypeError, FileNotFoundError.

    Example:
    ```
    tflite_export.c_array("model.tflite", "firmware/model")
    # In the firmware: #include "model.h" ... tflite::GetModel(model)
    ```
    """
    content = detached(TFLiteModel.load(tflite).content)
    stem = Path(path).with_suffix("") if Path(path).suffix in (".c", ".cc", ".cpp", ".h") else Path(path)
    if not stem.name:
        raise ValueError(f"`path` must name a file to write; got {os.fspath(path)!r}.")
    name = re.sub(r"\W", "_", stem.name, flags=re.ASCII) if name is None else name
    if not _NAME.fullmatch(name) or name in _RESERVED.split():
        raise ValueError(f"`name` must be a name in C (letters, digits, _; no keyword); got {name!r}. Pass `name=`.")
    header, source = stem.parent / f"{stem.name}.h", stem.parent / f"{stem.name}.c"
    written = header.exists()
    write_atomic(header, _header(name, len(content)).encode())
    try:
        write_atomic(source, _source(name, header.name, content).encode())
    except BaseException:
        if not written:
            header.unlink(missing_ok=True)
        raise
    return CSource(header, source, name, len(content))


def _header(name: str, size: int) -> str:
    guard = f"{name.upper()}_H_"
    return f"""#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

/* A .tflite file of {size} bytes. */
extern const unsigned char {name}[];
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif /* {guard} */
"""


def _source(name: str, header: str, content: bytes) -> str:
    lines = [
        "  " + ", ".join(f"0x{byte:02x}" for byte in content[start : start + _PER_LINE])
        for start in range(0, len(content), _PER_LINE)
    ]
    body = ",\n".join(lines)
    return f"""#include "{header}"

#if defined(__GNUC__) || defined(__clang__)
#define ALIGNED __attribute__((aligned({_ALIGNMENT})))
#elif defined(_MSC_VER)
#define ALIGNED __declspec(align({_ALIGNMENT}))
#else
#error "Say how this compiler aligns an array to {_ALIGNMENT} bytes."
#endif

ALIGNED const unsigned char {name}[] = {{
{body}
}};
const unsigned int {name}_len = {len(content)};
"""
