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
    found = {scores: _mask_of(file, makers, scores) for scores in softmaxes}
    masks: list[_Mask] = []
    known = [mask for mask in found.values() if mask is not None]
    while len(masks) != len(known):  # without one, another that shares its constant may have to go, too
        masks, known = known, [mask for mask in known if _is_alone(file, makers, mask, known)]
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
    return bool(masks), [
        file.name(scores) for scores, mask in found.items() if mask not in masks and _low(file, scores)
    ]


def _is_alone(file: FileObjects, makers: Makers, mask: _Mask, masks: list[_Mask]) -> bool:
    """Whether nothing else reads the mask, or the masked scores: it would get other numbers."""
    readers = {id(one.operator) for one in masks}
    readers |= {id(makers[number]) for one in masks for number in (*one.scores[:-1], *one.same[:-1])}
    readers |= {id(operator) for operator in file.operators if file.kind(operator) == "SOFTMAX"}
    tensors = (*mask.scores, *mask.same)
    found = {id(operator) for number in tensors for operator in file.readers(number)}
    return found <= readers and not set(tensors) & set(map(int, file.graph.outputs))


def _mask_of(file: FileObjects, makers: Makers, scores: int) -> _Mask | None:
    """Also where calibration met no masked place: the constant is there all the same."""
    views = _views(file, makers, scores)
    maker = makers.get(views[-1])
    if maker is None or file.kind(maker) not in _PLACES:
        return None
    kind = file.kind(maker)
    held = {place: _holder(file, makers, maker, place) for place in _PLACES[kind]}
    known = [place for place, holder in held.items() if holder is not None]
    plain = [int(number) for place, number in enumerate(maker.inputs) if place not in known and _is_score(kind, place)]
    own = file.range_of(plain[0]) if len(known) == len(plain) == 1 else None
    holder = held[known[0]] if own is not None else None
    return None if own is None or holder is None else _Mask(maker, kind, views, own[0], own[1], *holder)


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
