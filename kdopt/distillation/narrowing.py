"""Which channels a narrower student leaves out."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.groups import ChannelGraph
from kdopt.graph.channels.handlers_weights import kernel_of
from kdopt.graph.channels.labels import Slot

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


@dataclass(frozen=True)
class Group:
    """Channels in the same Variables, each of which can go alone.

    Attributes:
        roots: Integer array (n,), their identities.
        size: Integer, channels that go with each, where there are fewest: 2 before a normalization in groups of two.
        makers: Paths of the layers that make them.
        kind: `"channels"`, `"heads"` of an attention, or `"head size"`.
        heads: Integer, how many heads the attention has; 0 for channels.
    """

    roots: np.ndarray
    size: int
    makers: tuple[str, ...]
    kind: str = "channels"
    heads: int = 0


def kept_channels(channels: int, fraction: float, round_to: int = 1, size: int = 1) -> int:
    """How many channels stay.

        m = lcm(round_to, size),   n = min(channels, max(m, m * floor(fraction * channels / m + 1/2)))

    A fraction of 1 keeps all, whatever the multiple.

    Args:
        channels: Integer, a multiple of `size`.
        fraction: Float in (0, 1].
        round_to: Integer >= 1. Defaults to `1`.
        size: Integer >= 1, channels that go together. Defaults to `1`.

    Example:
    ```
    kept_channels(24, 0.5, 8)      # 16
    ```
    """
    if fraction == 1:
        return channels
    multiple = math.lcm(round_to, size)
    return min(channels, max(multiple, multiple * math.floor(fraction * channels / multiple + 0.5)))


def free_groups(graph: ChannelGraph) -> list[Group]:
    """The groups that may lose channels, in the model's order."""
    slots, frozen = graph.labels.slots(), graph.labels.frozen()
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, slot in enumerate(slots):
        roots, counts = np.unique(graph.labels.roots(slot.labels), return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            held[root].append((index, count))
    gathered: dict[Any, list[int]] = defaultdict(list)
    for root in sorted(held):
        if root not in frozen and any(slots[index].role == "makes" for index, _ in held[root]):
            gathered[tuple(held[root])].append(root)
    return [_group(graph, roots, [slots[i] for i, _ in key], min(n for _, n in key)) for key, roots in gathered.items()]


def _group(graph: ChannelGraph, roots: list[int], slots: list[Slot], size: int) -> Group:
    made = [slot for slot in slots if slot.role == "makes"]
    makers = tuple(dict.fromkeys(graph.paths.get(id(slot.layer), slot.layer.name) for slot in made))
    kind, heads = _attended(made[0])
    return Group(np.array(roots), size, makers, kind, heads)


def _attended(slot: Slot) -> tuple[str, int]:
    """(kind, heads) of what an axis of a kernel makes."""
    layer: Any = slot.layer
    if not isinstance(layer, _ATTENTION):
        return "channels", 0
    parts = (layer._query_dense, layer._key_dense, layer._value_dense)
    if not any(slot.variable is kernel_of(part) for part in parts):
        return "channels", 0
    heads = kernel_of(layer._key_dense).shape[1]
    return ("heads" if slot.axis == 1 else "head size"), heads


def removed_channels(
    graph: ChannelGraph, groups: Collection[Group], fraction_of: Callable[[Group], float], round_to: int
) -> np.ndarray:
    """The identities that go: those of each group whose kernels have the smallest L1 norm.

        score(c) = sum over the kernels that make c of sum |its slice|

    An attention loses whole heads, so that the size of a head stays; one that has a single head loses of that size.

    Args:
        graph: Of `trace_channels`.
        groups: Of `free_groups`.
        fraction_of: Group -> how much of it stays, float in (0, 1].
        round_to: Integer >= 1, for channels and head sizes.

    Returns: integer array.
    """
    scores = _scores(graph)
    gone = [np.empty(0, int)]
    for group in groups:
        fraction = 1.0 if group.kind == "head size" and group.heads > 1 else fraction_of(group)
        multiple = 1 if group.kind == "heads" else round_to
        kept = kept_channels(group.roots.size * group.size, fraction, multiple, group.size) // group.size
        order = np.argsort([-scores[root] for root in group.roots.tolist()], kind="stable")
        gone.append(group.roots[order[kept:]])
    return np.concatenate(gone)


def _scores(graph: ChannelGraph) -> dict[int, float]:
    """Identity -> L1 norm of what makes it."""
    found: dict[int, float] = defaultdict(float)
    for slot in graph.labels.slots():
        if slot.role == "makes":
            values = np.abs(np.asarray(keras.ops.convert_to_numpy(slot.variable), "float64"))
            if np.isnan(values).any():
                raise ValueError(f"Weights of {slot.variable.path!r} are NaN: training has diverged.")
            sums = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != slot.axis))
            for root, norm in zip(graph.labels.roots(slot.labels).tolist(), sums.tolist(), strict=True):
                found[root] += norm
    return found
