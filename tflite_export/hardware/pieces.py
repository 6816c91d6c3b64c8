"""How a graph falls into pieces when a delegate has some of its operations.

TensorFlow Lite walks through the graph and alternates: it takes all operations of one side (delegate or CPU) whose
inputs are there, then all of the other side, until none is left. Each turn of the delegate is one piece.

Source: LiteRT f674577 (2026-08-21), tflite/graph_info.cc (PartitionGraphIntoIndependentNodeSubsets, greedy) and
tflite/core/subgraph.cc (OpMightHaveSideEffect: variables, loops and branches keep their order).
"""

from collections.abc import Collection, Sequence

from tflite_export.hardware.nodes import Node

_STATEFUL = ("IF", "WHILE", "CALL_ONCE")


def pieces(nodes: Sequence[Node], has: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """The pieces that a delegate could take, in the order in which they run.

    Args:
        nodes: Of one graph, in the order in which they run.
        has: Numbers of the nodes that the delegate has.

    Returns: numbers of the nodes of each piece.
    """
    waiting = {number for node in nodes for number in node.makes}
    before, left, found = _before(nodes), list(nodes), []
    while left:
        turn = _turn(left, has, waiting, before)
        if not turn:
            break
        if turn[0] in has:
            found.append(tuple(sorted(turn)))
        left = [node for node in left if node.number not in turn]
    return tuple(found)


def largest(found: Sequence[tuple[int, ...]], most: int | None, smallest: int = 1) -> list[tuple[int, ...]]:
    """The pieces with the most operations, at most `most` (None: all), each of `smallest` operations or more."""
    ordered = sorted(found, key=len, reverse=True)
    return [piece for piece in ordered if len(piece) >= smallest][:most]


def _turn(left: list[Node], has: Collection[int], waiting: set[int], before: dict[int, int]) -> list[int]:
    """All that one side can run now, the side of the first that can run; takes what they make out of `waiting`."""
    here = {node.number for node in left}
    turn: list[int] = []
    grows = True
    while grows:
        grows = False
        for node in left:
            if node.number not in here or before.get(node.number) in here or not waiting.isdisjoint(node.reads):
                continue
            if not turn or (node.number in has) == (turn[0] in has):
                turn.append(node.number)
                here.remove(node.number)
                waiting.difference_update(node.makes)
                grows = True
    return turn


def _before(nodes: Sequence[Node]) -> dict[int, int]:
    """Node -> the one that must run before it, of those that have an effect beside their outputs."""
    stateful = [
        node.number
        for node in nodes
        if node.op in _STATEFUL or any(tensor.dtype == "resource" for tensor in (*node.given, *node.outputs))
    ]
    return dict(zip(stateful[1:], stateful[:-1], strict=True))
