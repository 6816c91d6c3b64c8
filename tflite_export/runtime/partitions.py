"""Which operations XNNPACK, the runtime's fast CPU kernels, takes over, in how many pieces."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tflite_export.runtime.runner import Runner

_DELEGATE = "DELEGATE"


@dataclass(frozen=True)
class Partitions:
    """How a file runs on this machine's CPU.

    Attributes:
        count: Pieces of the graph that XNNPACK runs; between two of them tensors change hands. 1 is best.
        inside: Number of operations in them.
        outside: Operation -> how many of them run on the slower built-in kernels.
    """

    count: int
    inside: int
    outside: dict[str, int]

    def __str__(self) -> str:
        left = ", ".join(f"{count} {name}" for name, count in sorted(self.outside.items())) or "none"
        return f"XNNPACK: {self.inside} operations in {self.count} partition{'s' * (self.count != 1)}; outside: {left}"


def partitions(content: bytes) -> Partitions:
    """Loads a file and asks the runtime. The main graph only; loops count as the one operation that holds them.

    Raises: ValueError if the runtime refuses the file.
    """
    return partitions_of(Runner(content))


def partitions_of(runner: Runner) -> Partitions:
    """As `partitions`, of a file that is loaded."""
    pieces = inside(runner)
    taken = {number for piece in pieces for number in piece}
    outside = Counter(node["op_name"] for index, node in _plain(runner).items() if index not in taken)
    return Partitions(len(pieces), len(taken), dict(outside))


def inside(runner: Runner) -> list[set[int]]:
    """Numbers of the operations of the main graph in each piece that XNNPACK runs."""
    plain = _plain(runner)
    makers = {int(tensor): index for index, node in plain.items() for tensor in node["outputs"]}
    return [_behind(node, plain, makers) for node in runner.nodes() if node["op_name"] == _DELEGATE]


def _plain(runner: Runner) -> dict[int, dict[str, Any]]:
    return {node["index"]: node for node in runner.nodes() if node["op_name"] != _DELEGATE}


def _behind(delegate: dict[str, Any], plain: dict[int, dict[str, Any]], makers: dict[int, int]) -> set[int]:
    """The operations between the inputs and the outputs of a delegated piece."""
    given = {int(tensor) for tensor in delegate["inputs"]}
    queue, found = [int(tensor) for tensor in delegate["outputs"]], set()
    while queue:
        index = makers.get(queue.pop())
        if index is None or index in found:
            continue
        found.add(index)
        queue += [int(tensor) for tensor in plain[index]["inputs"] if int(tensor) not in given]
    return found
