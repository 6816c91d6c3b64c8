"""Where the time of one inference goes: operation by operation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.runtime import apart
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.profiler import INSIDE_DELEGATE, OPERATION, WHOLE
from tflite_export.runtime.ready import specs_of
from tflite_export.tflite import flatbuffer, records
from tflite_export.tflite.inspection import owners, shown

_TASK = "tflite_export.runtime.profiler:measure"
Event = tuple[str, int, int, int, int]  # name, type, number, start and length in microseconds


@dataclass(frozen=True)
class OpTime:
    """How long one operation takes.

    Attributes:
        op: What runs, as the runtime calls it: `"CONV_2D"`, or `"Convolution (NHWC, F32) IGEMM"` inside XNNPACK.
        layer: Path of the layer, as `inspect` has it; empty inside XNNPACK, which numbers its operations itself.
        inside_xnnpack: Whether XNNPACK ran it.
        ms: Milliseconds in one inference. The runtime counts whole microseconds; below that, it is the mean.
        share: Fraction in [0, 1] of the sum of all.
    """

    op: str
    layer: str
    inside_xnnpack: bool
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The operations of a file with their times, from the runtime's own profiler.

    Attributes:
        ops: In the order in which they ran.
        inference_ms: The whole inference with the profiler on, which takes some microseconds for each operation; what
            the sum of `ops` lacks is that, and passes between them.
        runs: Inferences that were profiled; the faster half of them counts.
    """

    ops: tuple[OpTime, ...]
    inference_ms: float
    runs: int

    @property
    def by_op(self) -> dict[str, float]:
        """Name of operation -> milliseconds of all of that name in one inference, the longest first."""
        sums: dict[str, float] = {}
        for op in self.ops:
            sums[op.op] = sums.get(op.op, 0.0) + op.ms
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        width = max(len(op.op) for op in self.ops)
        rows = [f"  {op.ms:8.3f} ms {op.share:6.1%}  {op.op.ljust(width)}  {op.layer}".rstrip() for op in self.ops]
        total = sum(op.ms for op in self.ops)
        return "\n".join([*rows, f"  {total:8.3f} ms in operations, {self.inference_ms:.3f} ms the inference"])


def profile_of(file: TFLiteModel, threads: int, kernels: str, seconds: float) -> Profile:
    """Profiles a file in a process of its own.

    Raises: ValueError for kernels or a file that cannot be profiled; RuntimeError if this runtime gives no profile.
    """
    if kernels not in ("xnnpack", "builtin"):
        raise ValueError(f"The runtime profiles kernels 'xnnpack' and 'builtin'; got {kernels!r}.")
    if any(None in info.shape for info in (*file.inputs, *file.outputs)):
        raise ValueError("A file of open sizes cannot be profiled; convert the model with batch=1.")
    if flatbuffer.read(file.content).SubgraphsLength() > 1:  # each event inside costs more than what it times
        raise ValueError("A file with loops or several signatures cannot be profiled.")
    found, problem = apart.ask(
        _TASK, file.content, specs=specs_of(file), threads=threads, kernels=kernels, seconds=seconds
    )
    if problem or not found.get("events"):
        raise RuntimeError(f"This ai_edge_litert gave no profile: {problem or 'it recorded nothing'}.")
    return summed(found["events"], layers_of(file.content))


def layers_of(content: bytes) -> list[tuple[str, str]]:
    """(operation, layer) of a file with one graph, by number."""
    ops = records.ops(content)
    paths = ["" if records.is_nameless(path) else shown(path) for path in owners(ops)]
    return [(op.name, path) for op, path in zip(ops, paths, strict=True)]


def summed(runs: Sequence[Sequence[Event]], layers: Sequence[tuple[str, str]]) -> Profile:
    """Means over the faster half of the runs: another process makes the others longer, never shorter.

    Args:
        runs: Events of each run, in the order in which they began; the operations are the same in all.
        layers: (operation, layer) by number in the main graph.
    """
    ordered = sorted(runs, key=_whole)
    kept = ordered[: max(1, len(ordered) // 2)]
    times = 1e-3 * np.mean([[event[4] for event in run if event[1] != WHOLE] for run in kept], axis=0)
    total = max(float(np.sum(times)), 1e-9)
    events = [event for event in kept[0] if event[1] != WHOLE]
    ops = tuple(
        OpTime(name, _layer(name, kind, number, layers), kind in INSIDE_DELEGATE, float(ms), float(ms) / total)
        for (name, kind, number, _, _), ms in zip(events, times, strict=True)
    )
    return Profile(ops, 1e-3 * float(np.mean([_whole(run) for run in kept])), len(runs))


def _whole(run: Sequence[Event]) -> int:
    return max((event[4] for event in run if event[1] == WHOLE), default=0)


def _layer(name: str, kind: int, number: int, layers: Sequence[tuple[str, str]]) -> str:
    """The layer of an operation that the runtime numbers as the file does."""
    if kind == OPERATION and number < len(layers) and layers[number][0] == name:
        return layers[number][1]
    return ""
