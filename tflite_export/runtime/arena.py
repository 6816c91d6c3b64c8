"""How much memory the tensors of a loaded file take, by their addresses."""

from collections.abc import Iterable

import numpy as np

from tflite_export.runtime.runner import Runner

_ALIGNMENT = 64  # of tensors in the arena: a smaller gap is nobody's


def arena_bytes(runner: Runner, content: bytes) -> int:
    """Bytes that the tensors of the main graph take between them; those that share a place count once.

    The runtime tells no size of its arena, but where each tensor lies: constants in the file, all others in the arena,
    a second one for what lives on (dequantized weights, variables), or on the heap. The union of the latter is what
    was looked for. Graphs inside (loops) have arenas of their own, which do not count.

    Args:
        runner: A loaded file that has run once, so that tensors of sizes found out in running have theirs.
        content: The bytes that it was made from.
    """
    start = np.frombuffer(content, np.uint8).ctypes.data
    places = []
    for tensor in runner.tensors():
        address = tensor.ctypes.data
        if tensor.nbytes and not start <= address < start + len(content):
            places.append((address, address + tensor.nbytes))
    return covered(places)


def covered(places: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals [start, end), gaps below 64 included.

    Example: `covered([(0, 10), (5, 20), (64, 70), (1000, 1001)])` is 71: 0 to 70, and one byte.
    """
    total, reached = 0, None
    for start, end in sorted(places):
        if reached is None or start - reached >= _ALIGNMENT:
            total, reached = total + end - start, end
        elif end > reached:
            total, reached = total + end - reached, end
    return total
