"""The runtime's own profiler: how long each operation takes, those inside XNNPACK too. Runs in a fresh process.

The Python classes have no door to it. LiteRT's C interface has (litert/c/litert_profiler.h of google-ai-edge/LiteRT),
and its library is part of the ai_edge_litert wheel, so it is called through ctypes.
"""

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.runtime.ready import Specs, inputs_of
from tflite_export.runtime.runner import Runner, quantize

_LIBRARIES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
_MODES = {"xnnpack": "delegate", "builtin": "builtin"}  # "reference" is accepted, but the built-in ones run
_CPU, _WRITE = 1, 1
WHOLE, OPERATION, INSIDE_DELEGATE = 1, 2, (4, 8)  # types of events
_WARMUP, _MIN_RUNS, _MAX_RUNS = 3, 10, 1000


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_size_t), ("in_use", ctypes.c_size_t), ("private", ctypes.c_size_t)]


class _Event(ctypes.Structure):
    """ProfiledEventData of litert/c/litert_profiler_event.h."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory_before", _Memory),
        ("memory_after", _Memory),
        ("number", ctypes.c_uint64),
        ("graph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


def measure(path: str, specs: Specs, threads: int, kernels: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields `events`, of each run one list of [name, type, number, start_us, elapsed_us], as the runtime tells them.

    Raises: RuntimeError if this runtime gives no profile, ValueError for open sizes.
    """
    model = _Model(path, specs, threads, kernels)
    for _ in range(_WARMUP):
        model.run()
    runs: list[list[tuple[str, int, int, int, int]]] = []
    end = time.perf_counter() + seconds
    while len(runs) < _MIN_RUNS or (time.perf_counter() < end and len(runs) < _MAX_RUNS):
        runs.append(model.profiled())
    yield {"events": runs}


class _Model:
    """A LiteRT compiled model with its profiler on and its buffers filled; lives as long as the process."""

    def __init__(self, path: str, specs: Specs, threads: int, kernels: str) -> None:
        self._library = ctypes.CDLL(str(_library()))
        self._kept: list[Any] = []
        environment = self._new("LiteRtCreateEnvironment", ctypes.c_int(0), None)
        model = self._new("LiteRtCreateModelFromFile", environment, path.encode())
        options = self._new("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, ctypes.c_int(_CPU))
        self._add(options, "runtime_options_string", "enable_profiling = true\n")
        self._add(options, "xnnpack", f'kernel_mode = "{_MODES[kernels]}"\nnum_threads = {threads}\n')
        self._model = self._new("LiteRtCreateCompiledModel", environment, model, options)
        self._signature = self._new("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self._environment = environment
        self._inputs = self._buffers("Input", self._raw(path, specs))
        self._outputs = self._buffers("Output", {})
        self._profiler = self._new("LiteRtCompiledModelGetProfiler", self._model)

    def run(self) -> None:
        sides = [(ctypes.c_size_t(len(side)), side) for side in (self._inputs, self._outputs)]
        self._call("LiteRtRunCompiledModel", self._model, ctypes.c_size_t(0), *sides[0], *sides[1])

    def profiled(self) -> list[tuple[str, int, int, int, int]]:
        """The events of one run, in the order in which they began."""
        self._call("LiteRtStartProfiler", self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        wanted = (WHOLE, OPERATION, *INSIDE_DELEGATE)
        return [(e.tag.decode(), e.type, e.number, e.start_us, e.elapsed_us) for e in events if e.type in wanted]

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name, None)
        status = function(*arguments) if function is not None else "missing"
        if status:
            raise RuntimeError(f"{name}: status {status}")

    def _new(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        return handle

    def _add(self, options: ctypes.c_void_p, identifier: str, toml: str) -> None:
        """Options of one part of the runtime; the text must live as long as they do."""
        text, keep = ctypes.create_string_buffer(toml.encode()), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
        self._kept += [text, keep]
        made = self._new("LiteRtCreateOpaqueOptions", identifier.encode(), ctypes.cast(text, ctypes.c_void_p), keep)
        self._call("LiteRtAddOpaqueOptions", options, made)

    def _raw(self, path: str, specs: Specs) -> dict[str, np.ndarray]:
        """Input name -> random array as the file takes it."""
        runner = Runner(Path(path).read_bytes())
        details = {**runner.inputs, **runner.outputs}
        if any(-1 in detail["shape_signature"] for detail in details.values()):
            raise ValueError("a file of open sizes cannot be profiled; convert the model with batch=1")
        arrays = inputs_of(specs, runner.batch)
        return {name: quantize(arrays[name], detail) for name, detail in runner.inputs.items()}

    def _buffers(self, side: str, arrays: dict[str, np.ndarray]) -> Any:
        """An array of tensor buffers for all inputs or outputs; inputs hold their array."""
        count = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", self._signature, ctypes.byref(count))
        made = (ctypes.c_void_p * count.value)()
        for place in range(count.value):
            number, kind = ctypes.c_size_t(place), ctypes.create_string_buffer(512)  # a LiteRtRankedTensorType
            tensor = self._new(f"LiteRtGetSignature{side}TensorByIndex", self._signature, number)
            self._call("LiteRtGetRankedTensorType", tensor, kind)
            needs = f"LiteRtGetCompiledModel{side}BufferRequirements"
            needed = self._new(needs, self._model, ctypes.c_size_t(0), number)
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            made[place] = self._new(create, self._environment, kind, needed).value
            if side == "Input":
                name = self._new("LiteRtGetSignatureInputName", self._signature, number)
                self._fill(made[place], arrays[ctypes.string_at(name.value or 0).decode()])
        return made

    def _fill(self, buffer: int | None, array: np.ndarray) -> None:
        handle, address = ctypes.c_void_p(buffer), ctypes.c_void_p()
        self._call("LiteRtLockTensorBuffer", handle, ctypes.byref(address), ctypes.c_int(_WRITE))
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self._call("LiteRtUnlockTensorBuffer", handle)


def _library() -> Path:
    import ai_edge_litert

    folder = Path(ai_edge_litert.__path__[0])
    for name in _LIBRARIES:
        if (folder / name).exists():
            return folder / name
    raise RuntimeError(f"the ai_edge_litert wheel of this system has none of {', '.join(_LIBRARIES)}")
