"""`delegates`: who runs which operation of a file, and why not."""

from collections.abc import Sequence

from tflite_export.hardware import xnnpack
from tflite_export.hardware.judging import judged
from tflite_export.hardware.nodes import graph_of
from tflite_export.hardware.registry import known
from tflite_export.hardware.report import DelegateReport
from tflite_export.runtime.model import TFLiteModel
from tflite_export.tflite.content import TFLite, content_of


def delegates(tflite: TFLite, names: str | Sequence[str] | None = None) -> DelegateReport:
    """Says of each delegate or accelerator which operations of a file it runs, and why the others stay on the CPU.

    XNNPACK is measured on this machine. The others are judged by tables of what their documents and sources say, with
    an estimate of the pieces in which they would take the graph: the device has the last word.

    Args:
        tflite: `TFLiteModel`, path or bytes. What is no `TFLiteModel` is run once in a process of its own before
            XNNPACK is measured.
        names: One name or several of `"xnnpack"`, `"cmsis_nn"`, `"edgetpu"`, `"gpu"`, `"hexagon"`, `"micro"`,
            `"nnapi"`, `"qualcomm"`. Defaults to all.

    Returns: a `DelegateReport`; print it.
    Raises: FileNotFoundError; ValueError for an unknown name or what is no sound `.tflite` file; TypeError.

    Example:
    ```
    print(tflite_export.delegates("model.tflite"))
    tflite_export.delegates("model.tflite", "gpu")["gpu"].verdict     # "runs whole"
    ```
    """
    tables = known()
    wanted = _wanted(names, [xnnpack.NAME, *tables])
    content = content_of(tflite)
    graph = graph_of(content)
    trusted = isinstance(tflite, TFLiteModel)
    verdicts = tuple(
        judged(graph, tables[name]) if name in tables else xnnpack.measured(graph, content, trusted=trusted)
        for name in wanted
    )
    return DelegateReport(len(graph.nodes), graph.macs, verdicts)


def _wanted(names: str | Sequence[str] | None, every: list[str]) -> list[str]:
    wanted = every if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in every]
    if unknown:
        raise ValueError(f"No delegate {unknown[0]!r}; there are {', '.join(every)}.")
    return list(dict.fromkeys(wanted))
