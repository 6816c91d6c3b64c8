"""Blocks that a model keeps its shapes without: residual branches, and layers that repeat in a plain net."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kdopt.graph.parts import Part, Wiring, plain_parts, residual_parts


@dataclass(frozen=True, eq=False)
class Block:
    """Layers that can go.

    Attributes:
        name: Of the sums, or the last layers, of its parts.
        parts: (tensor at the end, tensor at the start that can take its place) of each part; attention and the dense
            layers behind it are two parts of one block.
    """

    name: str
    parts: tuple[tuple[keras.KerasTensor, keras.KerasTensor], ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """Blocks of one shape, one behind the other.

    Attributes:
        blocks: In the model's order.
        led: Whether a block that makes the shape, from another one, stands before them.
    """

    blocks: tuple[Block, ...]
    led: bool

    @property
    def count(self) -> int:
        """How many blocks, with the one that makes the shape."""
        return len(self.blocks) + self.led

    @property
    def removable(self) -> tuple[Block, ...]:
        """All but the first one of the stage."""
        return self.blocks if self.led else self.blocks[1:]


def find_stages(model: keras.Model) -> tuple[Stage, ...]:
    """The blocks of a model, those of one shape together.

    A residual block is a sum of a tensor and of what layers with kernels make of that tensor, if nothing else reads
    what is between; of blocks inside blocks the inner ones. Only in a model without any, a layer with a kernel that
    makes the shape it reads is a block, with the normalization, activation and dropout behind it. What repeats in turn
    (attention and dense layers, depthwise and pointwise convolutions) is one block. Shapes with a single block are left
    out.

    Args:
        model: Built Functional, Sequential or traceable subclassed model; nested models are seen through.

    Returns: the stages in the model's order.
    """
    wiring = Wiring(model)
    rows: list[list[Part]] = []
    row_of: dict[int, list[Part]] = {}
    for part in residual_parts(wiring) or plain_parts(wiring):
        row = next((row_of[number] for number in wiring.back(part.start) if number in row_of), None)
        if row is None:
            rows.append(row := [])
        row.append(part)
        row_of[part.end] = row
    return tuple(stage for stage in (_stage(wiring, row) for row in rows) if stage.count > 1)


def repetition(kinds: Sequence[Any]) -> tuple[int, int, int]:
    """(first, period, repeats) of the longest run that repeats; of runs as long, that of the shortest period.

    Where nothing repeats: all of them once.

    Example:
    ```
    repetition(["embed", "attend", "dense", "attend", "dense"])      # (1, 2, 2)
    ```
    """
    best, longest = (0, len(kinds), 1), 0
    for period in range(1, len(kinds) // 2 + 1):
        for first in range(len(kinds) - 2 * period + 1):
            at = first
            while at + period < len(kinds) and kinds[at] == kinds[at + period]:
                at += 1
            repeats = (at - first) // period + 1
            if repeats > 1 and period * repeats > longest:
                best, longest = (first, period, repeats), period * repeats
    return best


def spread(stages: Sequence[Stage], count: int) -> list[Block]:
    """Which blocks go: the deepest of a stage first, each time from the stage that keeps the largest share of its own.

    Args:
        stages: Of `find_stages`.
        count: Integer, how many; at most as many as can go.
    """
    left = [list(stage.removable) for stage in stages]
    kept = [stage.count for stage in stages]
    gone = []
    for _ in range(count):
        able = [i for i, blocks in enumerate(left) if blocks]
        chosen = max(able, key=lambda i: ((kept[i] - 1) / stages[i].count, i))
        gone.append(left[chosen].pop())
        kept[chosen] -= 1
    return gone


def _stage(wiring: Wiring, row: list[Part]) -> Stage:
    first, period, repeats = repetition([part.kinds for part in row])
    if repeats == 1 and row[0].residual:  # each with a shortcut of its own
        period, repeats = 1, len(row)
    units = [row[at : at + period] for at in range(first, first + period * repeats, period)]
    blocks = tuple(Block(" + ".join(p.name for p in unit), tuple(p.ends for p in unit)) for unit in units)
    return Stage(blocks, first == 0 and _is_led(wiring, units[0]))


def _is_led(wiring: Wiring, unit: list[Part]) -> bool:
    """Whether a block like this one, but with another shape before it, makes what it reads."""
    *_, origin = wiring.back(unit[0].start)
    if wiring.is_projection(origin):
        return True
    if (maker := wiring.makers.get(origin)) is None or not wiring.has_kernel(maker):
        return False
    own = [wiring.kind(at) for part in unit for at in part.inside if wiring.has_weights(at)]
    before = [wiring.kind(at) for at in sorted(wiring.ancestors(unit[0].start)) if wiring.has_weights(at)]
    return before[-len(own) :] == own
