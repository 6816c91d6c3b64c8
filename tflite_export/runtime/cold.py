"""What the first use of a file costs: the time to load it, and memory, in a fresh process."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tflite_export.runtime import apart
from tflite_export.runtime.arena import arena_bytes
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.ready import Specs, inputs_of, path_runner, specs_of
from tflite_export.runtime.runner import Runner

_STATUS = Path("/proc/self/status")
_RUNS = 5


def first_use(file: TFLiteModel, threads: int, kernels: str) -> dict[str, Any]:
    """What `measure` finds in a fresh process. It also shows that these kernels do not end the process.

    Raises: ValueError if the file does not run.
    """
    options = {"batch": Runner(file.content).batch, "threads": threads, "kernels": kernels}
    found, problem = apart.ask(f"{__name__}:measure", file.content, specs=specs_of(file), **options)
    if "load_ms" not in found:
        raise ValueError(f"The file does not run with kernels={kernels!r}: {problem}.")
    return found


def measure(path: str, specs: Specs, batch: int | None, threads: int, kernels: str) -> Iterator[dict[str, float]]:
    """Yields load_ms and first_ms; peak_memory_bytes where Linux tells it; arena_bytes.

    Args:
        path: Of the file.
        specs: Of its inputs.
        batch: Samples of one run; None: any number, one is taken.
        threads: CPU threads.
        kernels: As in `Runner`.
    """
    import ai_edge_litert.interpreter  # noqa: F401 - the import is no part of loading a file

    inputs = inputs_of(specs, batch)
    before = _reset()
    start = time.perf_counter()
    runner = path_runner(path, threads, kernels)
    if not runner.allocated:
        runner.set_inputs(inputs)
    loaded = time.perf_counter()
    runner.set_inputs(inputs)
    filled = time.perf_counter()
    runner.invoke()
    yield {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (time.perf_counter() - filled)}
    for _ in range(_RUNS):
        runner.invoke()
    if before is not None:
        yield {"peak_memory_bytes": _status("VmHWM") - before}
    del runner
    content = Path(path).read_bytes()
    own = Runner(content, kernels="builtin")
    own.set_inputs(inputs)
    own.invoke()
    yield {"arena_bytes": arena_bytes(own, content)}


def _reset() -> int | None:
    """Resident bytes now, from which on the kernel keeps the peak; None where it tells neither."""
    if not _STATUS.exists():
        return None
    with contextlib.suppress(OSError):  # not allowed: then the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
