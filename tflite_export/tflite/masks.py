"""Masks of attention: the lowest score is one that an integer can hold beside the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export.tflite.objects import FileObjects

_FAR = 1e4  # a score below minus this is meant to be minus infinity: models write -1e9, or nearly the lowest float
_SHAPES = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "BROADCAST_TO", "TRANSPOSE")
_BELOW = 10.0  # exp(-10) = 4.5e-5
_NOTHING = 1e-6  # what is added as a mask is never above zero
_PLACES = {"SELECT": (1, 2), "SELECT_V2": (1, 2), "ADD": (0, 1), "SUB": (1,)}  # inputs that may be the mask
Makers = Mapping[int, Any]


@dataclass(frozen=True)
class _Mask:
    """How scores are masked.

    Attributes:
        operator: What puts the mask on: SELECT, ADD, SUB.
        kind: Of it.
        scores: Tensors with masked scores: what a SOFTMAX reads, and what that is a view of.
        low: Smallest score that is not masked.
        high: Largest.
        holder: Operation that reads the constant: the same one, or a product of zeros and ones with it.
        place: Which input of it that is.
        same: Tensors that hold the mask behind that product.
    """

    operator: Any
    kind: str
    scores: tuple[int, ...]
    low: float
    high: float
    holder: Any
    place: int
    same: tuple[int, ...]

    @property
    def depth(self) -> float:
        """How far below zero the constant must be."""
        return _BELOW - self.low + (0.0 if self.kind.startswith("SELECT") else self.high)


def with_bounded_masks(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """A calibrated float file in which masked scores lie a little below all others before a SOFTMAX.

    Minus 1e9 beside scores of one digit would leave 8 bits no step for these: all attention would be the same. A score
    of 10 below the lowest that was seen has a weight of at most exp(-10), which 8 bits do not show.

    Args:
        content: A float `.tflite` file with ranges.

    Returns: the file; the names of tensors that go into a SOFTMAX and are masked in a way that is not known here.
    """
    file = FileObjects(content)
    found = [_bound(file) for _ in file.each_graph()]
    left = tuple(name for _, names in found for name in names)
    return file.content() if any(changed for changed, _ in found) else content, left


def _bound(file: FileObjects) -> tuple[bool, list[str]]:
    """Whether there are masks in a graph; the names of those that are not known."""
    makers = {int(number): operator for operator in file.operators for number in operator.outputs}
    softmaxes = [int(one.inputs[0]) for one in file.operators if file.kind(one) == "SOFTMAX"]
    found = {scores: _masks_of(file, makers, scores) for scores in softmaxes}
    while left := [scores for scores, masks in found.items() if masks and not _are_alone(file, makers, masks, found)]:
        found |= {scores: [] for scores in left}  # without it, another that shares a constant may have to go, too
    masks = [mask for chain in found.values() for mask in chain]
    depths: dict[tuple[int, int], float] = {}  # one mask may be added to the scores of several layers
    for mask in masks:
        key = id(mask.holder), mask.place
        depths[key] = max(depths.get(key, 0.0), mask.depth)
    for mask in masks:
        depth = depths[id(mask.holder), mask.place]
        values = file.float_values(int(mask.holder.inputs[mask.place]))
        assert values is not None, "a mask has float values"
        file.set_input(mask.holder, mask.place, file.new_constant("mask", np.clip(values, -depth, depth)))
        for number in mask.same:
            file.set_range(number, *((0.0, depth) if mask.kind == "SUB" else (-depth, 0.0)))
        for number in mask.scores:
            file.set_range(number, mask.low - _BELOW, mask.high)  # sums below are cut off there
    return bool(masks), [file.name(scores) for scores, chain in found.items() if not chain and _low(file, scores)]


def _are_alone(file: FileObjects, makers: Makers, masks: list[_Mask], found: Mapping[int, list[_Mask]]) -> bool:
    """Whether nothing else reads these masks, or the masked scores: it would get other numbers."""
    all_masks = [mask for chain in found.values() for mask in chain]
    allowed = {id(one.operator) for one in all_masks}
    allowed |= {id(makers[number]) for one in all_masks for number in (*one.scores[:-1], *one.same[:-1])}
    allowed |= {id(operator) for operator in file.operators if file.kind(operator) == "SOFTMAX"}
    tensors = {number for mask in masks for number in (*mask.scores, *mask.same)}
    readers = {id(operator) for number in tensors for operator in file.readers(number)}
    return readers <= allowed and not tensors & set(map(int, file.graph.outputs))


def _masks_of(file: FileObjects, makers: Makers, scores: int) -> list[_Mask]:
    """Those of one attention, from the first that is put on: also where calibration met no masked place, since the
    constant is there all the same."""
    views = _views(file, makers, scores)
    maker = makers.get(views[-1])
    if maker is None or file.kind(maker) not in _PLACES:
        return []
    kind = file.kind(maker)
    held = {place: _holder(file, makers, maker, place) for place in _PLACES[kind]}
    known = [place for place, holder in held.items() if holder is not None]
    plain = [int(number) for place, number in enumerate(maker.inputs) if place not in known and _is_score(kind, place)]
    holder = held[known[0]] if len(known) == len(plain) == 1 else None
    if holder is None:
        return []
    before = _masks_of(file, makers, plain[0])
    own = (before[-1].low, before[-1].high) if before else file.range_of(plain[0])
    if own is None or own[0] < -_FAR:
        return []
    return [*before, _Mask(maker, kind, views, own[0], own[1], *holder)]


def _is_score(kind: str, place: int) -> bool:
    return place > 0 or not kind.startswith("SELECT")


def _holder(file: FileObjects, makers: Makers, operator: Any, place: int) -> tuple[Any, int, tuple[int, ...]] | None:
    """The operation and the input of it that is the constant behind a mask; the tensors between."""
    number, subtracted = int(operator.inputs[place]), file.kind(operator) == "SUB"
    if (ends := _ends(file, number)) is not None:
        return (operator, place, ()) if (ends[1] if subtracted else -ends[0]) > _FAR else None
    same = _views(file, makers, number)
    maker, told = makers.get(same[-1]), file.range_of(number)
    if maker is None or told is None or file.kind(maker) != "MUL":
        return None
    if (-told[0] if subtracted else told[1]) > _NOTHING:
        return None
    constants = [_ends(file, int(one)) for one in maker.inputs]
    far = [place for place, ends in enumerate(constants) if ends is not None and max(-ends[0], ends[1]) > _FAR]
    return (maker, far[0], same) if len(far) == 1 else None


def _views(file: FileObjects, makers: Makers, number: int) -> tuple[int, ...]:
    """A tensor, and those that it is a view of."""
    found = [number]
    while found[-1] in makers and file.kind(makers[found[-1]]) in _SHAPES:
        found.append(int(makers[found[-1]].inputs[0]))
    return tuple(found)


def _ends(file: FileObjects, number: int) -> tuple[float, float] | None:
    """Smallest and largest value of a constant."""
    values = file.float_values(number)
    return None if values is None or not values.size else (float(values.min()), float(values.max()))


def _low(file: FileObjects, number: int) -> bool:
    told = file.range_of(number)
    return told is not None and told[0] < -_FAR
