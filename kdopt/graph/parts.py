"""Parts of a graph with one way in and one way out, of the same shape."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras.src import backend
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.ops import numpy as knp

from kdopt.graph.inline import Call, Ref, trace
from kdopt.graph.trace import tensors_of

L = keras.layers
_DROPS = (L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.GaussianDropout, L.AlphaDropout)
_SUMS = (L.Add, knp.Add, CustomScaleLayer)
_OVER_CHANNELS = (L.LayerNormalization, L.RMSNormalization)
_NORMALIZES = (*_OVER_CHANNELS, L.BatchNormalization, L.GroupNormalization, L.UnitNormalization, L.Normalization)


@dataclass(frozen=True)
class Part:
    """What stands between two tensors of the same shape; nothing else reads what is made inside.

    Attributes:
        name: Of its sum, or of its layer with a kernel.
        start, end: Numbers of the tensors.
        ends: (tensor at the end, tensor at the start), those of the (nested) model that holds the part.
        inside: Places of its calls in the model, without the sum, in order.
        kinds: Their classes, without dropout.
        residual: Whether a sum with what is read at the start ends it.
    """

    name: str
    start: int
    end: int
    ends: tuple[keras.KerasTensor, keras.KerasTensor]
    inside: tuple[int, ...]
    kinds: tuple[str, ...]
    residual: bool


class Wiring:
    """Who makes and who reads which tensor of a model, nested models seen through.

    Attributes:
        calls: All calls, in order.
        makers: Number of a tensor -> place of the call that makes it; inputs of the model have none.
    """

    def __init__(self, model: keras.Model) -> None:
        traced = trace(model)
        self.calls = traced.calls
        self.makers = {number: at for at, call in enumerate(traced.calls) for number in call.outputs}
        self._readers: dict[int, set[int]] = defaultdict(set)
        for at, call in enumerate(traced.calls):
            for number in call.inputs():
                self._readers[number].add(at)
        self._shapes = {entry.index: (entry.shape, entry.dtype) for entry in traced.inputs}
        for call in traced.calls:
            self._shapes.update(zip(call.outputs, zip(call.shapes, call.dtypes, strict=True), strict=True))
        self._outputs = set(traced.outputs)
        times = Counter(id(call.node) for call in traced.calls)
        self._repeated = {at for at, call in enumerate(traced.calls) if times[id(call.node)] > 1}

    def read(self, at: int) -> list[tuple[int, keras.KerasTensor]]:
        """(number, tensor) of all that a call reads, without masks."""
        call = self.calls[at]
        numbers = [leaf.index for leaf in tensors_of(call.args, call.kwargs, Ref)]
        arguments = call.node.arguments
        return list(zip(numbers, tensors_of(arguments.args, arguments.kwargs, keras.KerasTensor), strict=True))

    def kind(self, at: int) -> str:
        """Class of a call's operation."""
        return type(self.calls[at].operation).__name__

    def has_weights(self, at: int) -> bool:
        """Whether a call is one of a layer with weights."""
        return bool(getattr(self.calls[at].operation, "weights", None))

    def has_kernel(self, at: int) -> bool:
        """Whether a call is one of a layer with weights that does more than to normalize."""
        return self.has_weights(at) and not isinstance(self.calls[at].operation, _NORMALIZES)

    def is_sum(self, at: int) -> bool:
        """Whether a call adds two tensors of the shape it makes."""
        read = [number for number, _ in self.read(at)] if isinstance(self.calls[at].operation, _SUMS) else []
        made = self.calls[at].outputs[0]
        return len(set(read)) == len(read) == 2 and all(self._shapes[one] == self._shapes[made] for one in read)

    def is_projection(self, number: int) -> bool:
        """Whether a tensor is the sum of two branches of one tensor, both of which change it."""
        at = self.makers.get(number)
        if at is None or not self.is_sum(at):
            return False
        (one, _), (other, _) = self.read(at)
        above = [self._tensors_above(one), self._tensors_above(other)]
        rank = len(self._shapes[number][0])
        common = any(len(self._shapes[shared][0]) == rank for shared in above[0] & above[1])
        return common and one not in above[1] and other not in above[0]

    def _tensors_above(self, number: int) -> set[int]:
        return {one for at in self.ancestors(number) for one in self.calls[at].inputs()}

    def ancestors(self, number: int) -> set[int]:
        """Places of all calls that a tensor depends on."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            at = self.makers.get(waiting.pop())
            if at is not None and at not in found:
                found.add(at)
                waiting.extend(self.calls[at].inputs())
        return found

    def between(self, start: int, end: int) -> list[int]:
        """Places of the calls on all ways from one tensor to another."""
        reached, found = {start}, []
        for at in sorted(self.ancestors(end)):
            if reached.intersection(self.calls[at].inputs()):
                found.append(at)
                reached.update(self.calls[at].outputs)
        return found

    def alone(self, number: int, readers: set[int]) -> bool:
        """Whether a tensor is read by some calls alone, and is no output of the model."""
        return number not in self._outputs and self._readers[number] <= readers

    def back(self, number: int) -> Iterator[int]:
        """A tensor, and those before it from which it comes by layers that keep the shape and have no kernel."""
        yield number
        while (at := self.makers.get(number)) is not None and self.passes(at):
            number = self.read(at)[0][0]
            yield number

    def passes(self, at: int) -> bool:
        """Whether a call makes one tensor of one of the same shape, without a kernel."""
        return not self.has_kernel(at) and self.keeps_shape(at)

    def keeps_shape(self, at: int) -> bool:
        """Whether a call makes one tensor of one of the same shape and dtype."""
        call, read = self.calls[at], self.read(at)
        if len(read) != 1 or len(call.outputs) != 1 or self._shapes[read[0][0]] != self._shapes[call.outputs[0]]:
            return False
        if None not in call.shapes[0][1:]:
            return True
        operation = call.operation  # of open sizes only what changes none
        strides = keras.tree.flatten(getattr(operation, "strides", 1))
        padded = getattr(operation, "padding", "same") in ("same", "causal")
        sized = any(hasattr(operation, name) for name in ("size", "cropping", "height"))
        return padded and not sized and all(one == 1 for one in strides)

    def ends(self, end: Any, start: Any, at: int) -> tuple[keras.KerasTensor, keras.KerasTensor] | None:
        """(end, start), if the one can take the other's place: in one call alone, no output, as much masked."""
        masked = [backend.get_keras_mask(tensor) is not None for tensor in (end, start)]
        if at in self._repeated or self.calls[at].outputs[0] in self._outputs or masked == [False, True]:
            return None
        return end, start

    def behind(self, at: int, kinds: Any = None) -> int | None:
        """The call, in the same nested model, that alone reads what a call makes and keeps its shape, or `None`."""
        readers = self._readers[self.calls[at].outputs[0]]
        if len(readers) != 1 or not self.alone(self.calls[at].outputs[0], readers):
            return None
        (following,) = readers
        same = self.passes(following) and self.read(following)[0][1] is self.calls[at].node.outputs[0]
        return following if same and (kinds is None or isinstance(self.calls[following].operation, kinds)) else None


def residual_parts(wiring: Wiring) -> list[Part]:
    """Branches whose sum with what they read can be replaced by what they read, the inner ones of nested ones."""
    found: dict[int, Part] = {}
    for at in range(len(wiring.calls)):
        if wiring.is_sum(at) and (part := _residual_part(wiring, at)) is not None:
            found[at] = part
    return [part for part in found.values() if not found.keys() & set(part.inside)]


def _residual_part(wiring: Wiring, at: int) -> Part | None:
    read = wiring.read(at)
    scaled = isinstance(wiring.calls[at].operation, CustomScaleLayer)  # it scales the second
    for (start, tensor), (branch, _) in [read] if scaled else [read, read[::-1]]:
        inside = wiring.between(start, branch)
        readers = {at, *inside}
        own = all(wiring.alone(number, readers) for one in inside for number in wiring.calls[one].outputs)
        if own and any(map(wiring.has_kernel, inside)):
            return _made(wiring, at, _last(wiring, at, start), (start, tensor), inside)
    return None


def _last(wiring: Wiring, at: int, start: int) -> int:
    """The call behind a sum if it does again what was done to the start: normalize, or cut off at zero; else the sum.

    Without the branch a second ReLU changes nothing; a second normalization would stand where a net that was made with
    fewer blocks has one.
    """
    following = wiring.behind(at)
    if following is None:
        return at
    before = [one for number in wiring.back(start) if (one := wiring.makers.get(number)) is not None]
    again = wiring.calls[following].operation
    normalizes = isinstance(again, _OVER_CHANNELS)
    makers = [wiring.calls[one].operation for one in (before if normalizes else before[:1])]
    same = [one for one in makers if type(one) is type(again)]
    return following if any(normalizes or _is_relu(one) == _is_relu(again) != "" for one in same) else at


def _is_relu(operation: Any) -> str:
    """Which of the ReLUs, that done twice is as done once, an operation is; empty for others."""
    if isinstance(operation, L.ReLU):
        return "" if operation.negative_slope or operation.threshold else f"relu up to {operation.max_value}"
    function = getattr(operation, "activation", None) if isinstance(operation, L.Activation) else None
    name = getattr(function, "__name__", type(operation).__name__).lower()
    return name if name in ("relu", "relu6") and not getattr(operation, "weights", None) else ""


def plain_parts(wiring: Wiring) -> list[Part]:
    """Layers with a kernel that make the shape they read, with what follows them and has no kernel."""
    found = []
    for at in range(len(wiring.calls)):
        if not wiring.has_kernel(at) or not wiring.keeps_shape(at):
            continue
        inside, start = [at], wiring.read(at)[0]
        while (following := wiring.behind(inside[-1])) is not None and not _is_last_dropout(
            wiring, following, start[0]
        ):
            inside.append(following)
        if (part := _made(wiring, at, inside[-1], start, inside)) is not None:
            found.append(part)
    return found


def _is_last_dropout(wiring: Wiring, at: int, start: int) -> bool:
    """Whether a call is a dropout that those before it have none like: it belongs to what follows."""
    before = wiring.makers.get(start)
    drops = isinstance(wiring.calls[at].operation, _DROPS)
    return drops and (before is None or not isinstance(wiring.calls[before].operation, _DROPS))


def _made(wiring: Wiring, at: int, last: int, start: tuple[int, Any], inside: list[int]) -> Part | None:
    end: Call = wiring.calls[last]
    ends = wiring.ends(end.node.outputs[0], start[1], last)
    kinds = tuple(wiring.kind(at) for at in inside if not isinstance(wiring.calls[at].operation, _DROPS))
    call, places = wiring.calls[at], tuple(inside)
    return None if ends is None else Part(call.name, start[0], end.outputs[0], ends, places, kinds, at not in places)
