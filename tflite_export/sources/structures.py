"""Nested lists and dicts of tensors or shapes: names, leaves, and back."""

from collections.abc import Callable, Mapping
from typing import Any


def structure_keys(structure: Any, flatten: Callable[[Any], list[Any]]) -> list[str] | None:
    """The names a flat dict of tensors gives, in the order in which `flatten` takes them; else None."""
    if not isinstance(structure, Mapping) or any(isinstance(v, Mapping | list | tuple) for v in structure.values()):
        return None
    return list(flatten({key: key for key in structure}))


def shapes_in(structure: Any, path: str = "") -> list[tuple[str, tuple[int | None, ...]]]:
    """(path, shape) of every tensor in a structure of shapes."""
    if isinstance(structure, Mapping):
        return [found for key, value in structure.items() for found in shapes_in(value, f"{path}_{key}".lstrip("_"))]
    if all(isinstance(size, int) or size is None for size in structure):
        return [(path, tuple(structure))]
    return [found for i, value in enumerate(structure) for found in shapes_in(value, f"{path or 'input'}_{i}")]


def refilled(structure: Any, queue: list[Any]) -> Any:
    """The structure of shapes with tensors, taken from the front of `queue`, in the places of the shapes."""
    if isinstance(structure, Mapping):
        return {key: refilled(value, queue) for key, value in structure.items()}
    if all(isinstance(size, int) or size is None for size in structure):
        return queue.pop(0)
    return type(structure)(refilled(value, queue) for value in structure)
