"""What a structural pruning is going to do, as plain data."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from kdopt.core.files import write_atomic


class ReachedError(ValueError):
    """A target that cannot be reached; the message says how far one can go, and what holds it."""


@dataclass(frozen=True)
class LayerWidth:
    """The channels that one layer makes.

    Attributes:
        layer: Path, names from the model down joined by `/`; with the kernel and axis where a layer makes channels
            of several kinds, such as the heads and widths of attention.
        before, after: Integers, how many channels.
        frozen: Why (some of) them must stay, whatever the target; empty if all could go.
        macs: (before, after), multiply-accumulates of the layer; `None` where they are not known, and in all but the
            first row of a layer.
    """

    layer: str
    before: int
    after: int
    frozen: str = ""
    macs: tuple[int, int] | None = None


@dataclass(frozen=True, repr=False)
class ChannelPlan:
    """Which channels go, from which Variables; made by `plan_channels`, carried out by `apply_plan`.

    Attributes:
        removed: (number of the weight in `model.weights`, axis, places) of every axis that makes channels.
        shapes: Of `model.weights`, to know the model by.
        layers: One `LayerWidth` a layer that makes channels, in the model's order.
        parameters, macs: (before, after); MACs are `None` where they are not known.
        normalized: Whether channels may go that a LayerNormalization, a mean or a softmax takes together.
        branches: Whether layers go, too, that add nothing but a constant.
        dead: Integer, how many of the channels that go carried nothing but a constant.
        target: (name, before, after) of what the target was set for, e.g. `("latency", 1.2, 0.6)`; `None` without one.
        asked: What might be left of it at most, in the same unit; `None` without a target.
    """

    removed: tuple[tuple[int, int, tuple[int, ...]], ...]
    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerWidth, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    normalized: bool = False
    dead: int = 0
    branches: bool = False
    target: tuple[str, float, float] | None = None
    asked: float | None = None

    def __repr__(self) -> str:
        return f"ChannelPlan(parameters={self.parameters}, macs={self.macs}); print(plan.summary()) shows it all"

    def check(self, model: keras.Model) -> None:
        """Refuses a model that the plan was not made for.

        Raises: ValueError.
        """
        shapes = tuple(tuple(weight.shape) for weight in model.weights)
        wrong = [i for i, axis, places in self.removed if not _fits(shapes, i, axis, places)]
        if shapes == self.shapes and wrong:
            raise ValueError(f"The plan is damaged: it removes channels that weight {wrong[0]} of the model has not.")
        if shapes != self.shapes:
            first = next(
                (i for i, pair in enumerate(zip(shapes, self.shapes, strict=False)) if pair[0] != pair[1]), None
            )
            where = (
                f"{len(self.shapes)} weights, it has {len(shapes)}"
                if first is None
                else (f"{self.shapes[first]} as weight {first}, it has {shapes[first]} ({model.weights[first].path})")
            )
            raise ValueError(f"The plan was made for another model than {model.name!r}: it wants {where}.")

    def summary(self) -> str:
        """A table: layer, channels and multiply-accumulates before and after, why frozen; then the sums."""
        width = max(len(layer.layer) for layer in self.layers)
        wide = max([4, *(len(f"{layer.macs[0]:,}") for layer in self.layers if layer.macs)])
        lines = [f"{'layer':{width}}  channels            {'MACs':>{wide}}"]
        for layer in self.layers:
            after = f"-> {layer.after:>5}" if layer.after != layer.before else ""
            macs = "" if layer.macs is None else f"{layer.macs[0]:>{wide},}"
            fewer = f"-> {layer.macs[1]:>{wide},}" if layer.macs and layer.macs[1] != layer.macs[0] else ""
            told = (
                f"{layer.layer:{width}}  {layer.before:>8} {after:8}  {macs:{wide}} {fewer:{wide + 3}}  {layer.frozen}"
            )
            lines.append(told.rstrip())
        lines.append(_ratio("parameters", self.parameters))
        if self.macs is not None:
            lines.append(_ratio("multiply-accumulates", self.macs))
        if self.target is not None:
            name, whole, left = self.target
            asked = f"at most {(self.asked or whole) / whole:.3f} of it asked for, {left / whole:.3f} left"
            lines.append(f"{name}: {whole:,.6g} -> {left:,.6g} ({asked})")
        if emptied := [layer.layer for layer in self.layers if not layer.after]:
            lines.append(f"layers that go as a whole: {', '.join(emptied)}")
        elif not self.removed:
            lines.append("no channels are to go")
        if self.dead:
            lines.append(f"dead channels, with which nothing is lost: {self.dead:,}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the plan as JSON, whole or not at all."""
        return write_atomic(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ChannelPlan":
        """Reads what `save` wrote.

        Raises: ValueError if it is something else.
        """
        try:
            stored = json.loads(Path(path).read_bytes())
            removed = tuple((i, axis, tuple(places)) for i, axis, places in stored.pop("removed"))
            shapes = tuple(map(tuple, stored.pop("shapes")))
            layers = tuple(
                LayerWidth(**{**layer, "macs": layer["macs"] and tuple(layer["macs"])})
                for layer in stored.pop("layers")
            )
            tuples = ("parameters", "macs", "target")
            pairs = {name: None if stored[name] is None else tuple(stored[name]) for name in tuples}
            facts: dict[str, Any] = {
                **pairs,
                **{name: stored[name] for name in ("normalized", "dead", "branches", "asked")},
            }
            return cls(removed, shapes, layers, **facts)
        except (ValueError, TypeError, KeyError) as error:
            told = f"{type(error).__name__}: {str(error)[:100]}"
            raise ValueError(f"{str(path)!r} is no plan of this version of kdopt ({told}).") from error


def _fits(shapes: tuple[tuple[int, ...], ...], index: int, axis: int, places: tuple[int, ...]) -> bool:
    known = 0 <= index < len(shapes) and 0 <= axis < len(shapes[index])
    return known and all(0 <= place < shapes[index][axis] for place in places)


def _ratio(what: str, pair: tuple[int, int]) -> str:
    before, after = pair
    return f"{what}: {before:,} -> {after:,} ({before / max(after, 1):.2f}x fewer)"
