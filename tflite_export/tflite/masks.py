"""Masks of attention: the lowest score is one that an integer can hold beside the others."""

from typing import Any

import numpy as np

from tflite_export.tflite.objects import FileObjects

_NONE = -1e4  # below it a score is meant to be minus infinity: models write -1e9, or nearly the lowest float
_SHAPES = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "BROADCAST_TO", "TRANSPOSE")
_BELOW = 10.0  # exp(-10) = 4.5e-5


def with_bounded_masks(content: bytes) -> bytes:
    """A calibrated float file in which masked scores lie a little below all others before a SOFTMAX.

    Minus 1e9 beside scores of one digit would leave 8 bits no step for these: all attention would be the same. A score
    of 10 below the lowest that was seen has a weight of at most exp(-10), which 8 bits do not show.

    Args:
        content: A float `.tflite` file with ranges.
    """
    file = FileObjects(content)
    changed = [_bound_all(file) for _ in file.each_graph()]
    return file.content() if any(changed) else content


def _bound_all(file: FileObjects) -> bool:
    makers = {int(number): operator for operator in file.operators for number in operator.outputs}
    changed = False
    for softmax in [one for one in file.operators if file.kind(one) == "SOFTMAX"]:
        scores = int(softmax.inputs[0])
        if scores in makers:  # also where calibration met no masked place: the constant is there all the same
            changed |= _bound(file, makers, makers[scores], scores)
    return changed


def _bound(file: FileObjects, makers: dict[int, Any], maker: Any, scores: int) -> bool:
    """Whether the mask is of a kind that is known: chosen by a SELECT, or added."""
    kind, inputs = file.kind(maker), [int(number) for number in maker.inputs]
    places = {"SELECT": (1, 2), "SELECT_V2": (1, 2), "ADD": (0, 1)}.get(kind, ())
    masks = [place for place in places if _is_masked(file, inputs[place])]
    plain = [own for place in places if place not in masks and (own := file.range_of(inputs[place])) is not None]
    if len(masks) != 1 or len(plain) != 1:
        return False
    (place,), ((low, high),) = masks, plain
    bottom = low - high - _BELOW if kind == "ADD" else low - _BELOW
    mask = inputs[place]
    if file.float_values(mask) is not None:
        _raise(file, maker, place, bottom)
    elif not _raise_factor(file, makers, mask, bottom):
        return False
    file.set_range(scores, low + bottom if kind == "ADD" else bottom, high)
    return True


def _raise_factor(file: FileObjects, makers: dict[int, Any], mask: int, bottom: float) -> bool:
    """Whether a mask was the product of zeros and ones with a constant, which has another value now."""
    maker, same = makers.get(mask), [mask]
    while maker is not None and file.kind(maker) in _SHAPES:
        same.append(int(maker.inputs[0]))
        maker = makers.get(same[-1])
    if maker is None or file.kind(maker) != "MUL":
        return False
    places = [place for place in (0, 1) if file.float_values(int(maker.inputs[place])) is not None]
    if len(places) != 1 or not _is_masked(file, int(maker.inputs[places[0]])):
        return False
    _raise(file, maker, places[0], bottom)
    for number in same:
        file.set_range(number, bottom, 0.0)
    return True


def _raise(file: FileObjects, operator: Any, place: int, bottom: float) -> None:
    values = file.float_values(int(operator.inputs[place]))
    assert values is not None, "a mask has float values"
    file.set_input(operator, place, file.new_constant("mask", np.maximum(values, np.float32(bottom))))


def _is_masked(file: FileObjects, number: int) -> bool:
    values, own = file.float_values(number), file.range_of(number)
    low = values.min() if values is not None and values.size else own[0] if own is not None else 0.0
    return bool(low < _NONE)
