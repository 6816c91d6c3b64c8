"""What a delegate makes of a graph, by its table."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from tflite_export.hardware.nodes import Graph, Node
from tflite_export.hardware.pieces import largest, pieces
from tflite_export.hardware.registry import Delegate
from tflite_export.hardware.report import IN_PART, NOT_AT_ALL, WHOLE, Fallback, Verdict


def judged(graph: Graph, delegate: Delegate) -> Verdict:
    """The verdict of a delegate, from documentation."""
    stopping = _stopping(graph, delegate)
    if stopping:
        return verdict_on(graph, delegate.name, delegate.source, (), 0, stopping, advice=_advice(delegate, whole=False))
    nodes = graph.reading_float16() if delegate.reads_float16 else graph.nodes
    reasons = {node.number: reason for node in nodes if (reason := delegate.rule(node)) is not None}
    found = pieces(nodes, {node.number for node in nodes} - set(reasons))
    chosen = found[: delegate.most] if delegate.in_order else largest(found, delegate.most, delegate.smallest)
    taken = {number for piece in chosen for number in piece}
    taken |= _unpackers_of(graph, nodes, taken)
    sizes = {number: len(piece) for piece in found for number in piece}
    fallbacks = [
        (node, reasons.get(node.number) or _left_over(sizes.get(node.number, 0), delegate))
        for node in graph.nodes
        if node.number not in taken
    ]
    whole = not fallbacks
    return verdict_on(graph, delegate.name, delegate.source, taken, len(found), fallbacks, _advice(delegate, whole))


def verdict_on(
    graph: Graph,
    name: str,
    source: str,
    taken: Collection[int],
    found: int,
    fallbacks: Iterable[tuple[Node, str]],
    advice: str,
    *,
    measured: bool = False,
) -> Verdict:
    """A verdict from what is taken, in how many pieces, and what is left for which reason."""
    left = _grouped(fallbacks)
    done = sum(node.macs for node in graph.nodes if node.number in taken)
    share = done / graph.macs if graph.macs else float(not left)
    said = WHOLE if not left else IN_PART if taken else NOT_AT_ALL
    return Verdict(name, measured, source, len(taken), left, found, share, said, advice)


def _stopping(graph: Graph, delegate: Delegate) -> list[tuple[Node, str]]:
    """Operations without which the file does not load."""
    if delegate.needs is None:
        return []
    every = (*graph.nodes, *graph.inner)
    return [(node, reason) for node in every if (reason := delegate.needs(node)) is not None]


def _unpackers_of(graph: Graph, nodes: tuple[Node, ...], taken: Collection[int]) -> set[int]:
    """The DEQUANTIZE of float16 weights that vanish: those whose readers are all taken."""
    if len(nodes) == len(graph.nodes):
        return set()
    found = set()
    for tensor, unpacker in graph.unpackers().items():
        readers = [node.number for node in graph.nodes if tensor in node.reads]
        if readers and set(readers) <= set(taken):
            found.add(unpacker.number)
    return found


def _left_over(size: int, delegate: Delegate) -> str:
    """Why an operation that the delegate has, in a piece of some size, stays on the CPU."""
    if not size:
        return "unpacks float16 weights for an operation that stays on the CPU"
    if delegate.in_order:
        return "after the first operation that it does not have"
    if size < delegate.smallest:
        return f"in a piece of {size}; it takes pieces of {delegate.smallest} operations and more"
    many = "one piece" if delegate.most == 1 else f"{delegate.most} pieces"
    return f"in a piece with fewer operations; it takes {many}, with the most"


def _advice(delegate: Delegate, whole: bool) -> str:
    return " ".join(part for part in ("" if whole else delegate.remedy, delegate.note) if part)


def _grouped(fallbacks: Iterable[tuple[Node, str]]) -> tuple[Fallback, ...]:
    counts: Mapping[tuple[str, str, str], int] = Counter((node.op, node.layer, reason) for node, reason in fallbacks)
    return tuple(Fallback(op, count, layer, reason) for (op, layer, reason), count in counts.items())
