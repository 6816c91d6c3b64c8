"""XNNPACK, the runtime's fast kernels for the CPU: what it takes of a file, measured on this machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

from tflite_export.hardware.judging import verdict_on
from tflite_export.hardware.nodes import Graph
from tflite_export.hardware.report import Verdict
from tflite_export.runtime import sandbox
from tflite_export.runtime.partitions import inside
from tflite_export.runtime.runner import Runner
from tflite_export.tflite.records import TensorRecord

NAME = "xnnpack"
_NOTE = "Other releases of the runtime and other CPUs may take more or less."
_REMEDY = "What it leaves runs in the runtime's built-in kernels; between two pieces tensors change hands."


def measured(graph: Graph, content: bytes, *, trusted: bool) -> Verdict:
    """Loads the file and asks the runtime.

    Args:
        graph: Of the file.
        content: The file.
        trusted: Whether it was loaded before; another one is run once in a process of its own first.
    """
    try:
        if not trusted:
            sandbox.admit(content)
        runner = Runner(content)
    except ValueError as error:
        return _nothing(graph, f"the runtime refuses the file: {str(error).splitlines()[0]}")
    if not runner.allocated:
        return _nothing(graph, "sizes are open: no piece is taken before the app sets them")
    taken = inside(runner)
    numbers = {number for piece in taken for number in piece}
    left = [
        (node, f"left to the built-in kernels ({_dtype(node.running or node.outputs)})")
        for node in graph.nodes
        if node.number not in numbers
    ]
    advice = _NOTE if not left else f"{_REMEDY} {_NOTE}"
    return verdict_on(graph, NAME, _runtime(), numbers, len(taken), left, advice, measured=True)


def _nothing(graph: Graph, reason: str) -> Verdict:
    left = [(node, reason) for node in graph.nodes]
    advice = "Convert with fixed sizes (shapes=...) and built-in operations only."
    return verdict_on(graph, NAME, _runtime(), (), 0, left, advice, measured=True)


def _dtype(tensors: tuple[TensorRecord, ...]) -> str:
    return tensors[0].dtype if tensors else "no inputs"


def _runtime() -> str:
    try:
        return f"ai_edge_litert {version('ai-edge-litert')} on {platform.machine()}"
    except PackageNotFoundError:
        return f"ai_edge_litert on {platform.machine()}"
