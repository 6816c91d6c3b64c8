"""The inner tensors of a teacher that is not there: known by what its cache says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from kdopt.core.recording import Recorded, Recording, operations_of
from kdopt.distillation.taps import Tapped, is_model, prepares


@dataclass(frozen=True, eq=False)
class Unseen:
    """Stands for a layer or operation of a teacher whose model was not given.

    Attributes:
        name: Its path.
        kind: Its class.
        weights: Not empty if it has weights.
        prepares: Whether it only pads or prepares an input.
        is_model: Whether it is a nested model.
        data_format: Of a convolution or pooling, or None.
    """

    name: str
    kind: str
    weights: tuple[bool, ...]
    prepares: bool
    is_model: bool
    data_format: str | None


def tap_to_config(tapped: Tapped) -> dict[str, Any]:
    """A tappable tensor as JSON holds it."""
    operation = tapped.operation
    return {
        "path": tapped.path,
        "call": tapped.call,
        "calls": tapped.calls,
        "shape": list(tapped.shape),
        "attends": tapped.attends,
        "reads": tapped.reads,
        "operation": {
            "kind": type(operation).__name__,
            "weights": [True] if getattr(operation, "weights", ()) else [],
            "prepares": prepares(operation),
            "is_model": is_model(operation),
            "data_format": getattr(operation, "data_format", None),
        },
    }


def taps_of_cache(
    configs: Sequence[dict[str, Any]], kept: Sequence[str], model: keras.Model | None, cache: str
) -> list[Tapped]:
    """All tensors of a teacher, those that were not kept marked.

    Args:
        configs: Of all, by `tap_to_config`.
        kept: Names of those in the cache.
        model: The teacher, if it is there: its own layers then.
        cache: Path, for messages.
    """
    operations: dict[str, Any] = {} if model is None else operations_of(model)
    found = []
    for config in configs:
        path, described = config["path"], config["operation"]
        if path not in operations:
            operations[path] = Unseen(path, **{**described, "weights": tuple(described["weights"])})
        numbers = (config["call"], config["calls"], tuple(config["shape"]), config["attends"])
        tapped = Tapped(path, operations[path], *numbers, config.get("reads"))
        why = "" if tapped.name in kept else _why(tapped, kept, cache)
        found.append(replace(tapped, absent=why))
    return found


def _why(tapped: Tapped, kept: Sequence[str], cache: str) -> str:
    if tapped.attends:
        return attention_refusal(tapped)
    return (
        f"The teacher's layer {tapped.name!r} is not in the cache {cache!r}, which holds {', '.join(map(repr, kept))}. "
        f"Tap one of these, or make a cache with `taps=[{tapped.name!r}, ...]` at another path."
    )


def attention_refusal(tapped: Tapped) -> str:
    """Why an attention layer is in no cache."""
    return (
        f"{tapped.name!r} of the teacher is an attention layer: its queries, keys and values are not cached, which "
        "would take as much room as all its features. Train with the teacher itself for losses on attention; for "
        "losses on features tap the layer behind it."
    )


def replayed(wanted: Sequence[Tapped], values: dict[str, Any]) -> Recording:
    """A recording as the teacher's run would have made it.

    Args:
        wanted: The tapped tensors.
        values: Name of a tap -> tensor.
    """
    recording = Recording(frozenset(id(tapped.operation) for tapped in wanted))
    last: dict[int, tuple[Any, int]] = {}
    for tapped in wanted:
        before = last.get(id(tapped.operation), (None, 0))[1]
        last[id(tapped.operation)] = (tapped.operation, max(before, tapped.calls - 1))
    named = {(id(tapped.operation), tapped.call): tapped.name for tapped in wanted}
    for operation, calls in last.values():
        for call in range(calls + 1):
            name = named.get((id(operation), call))
            recording.calls.append(Recorded(operation, None if name is None else values[name]))
    return recording
