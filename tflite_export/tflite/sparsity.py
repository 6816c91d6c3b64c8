"""Constants that are stored without their zeros."""

from typing import Any

import numpy as np


def block_size(tensor: Any) -> int | None:
    """How many values of a sparse tensor are kept or left out together; None for a dense one.

    Args:
        tensor: Of the flatbuffer schema.
    """
    sparsity = tensor.Sparsity()
    if sparsity is None:
        return None
    first = sparsity.DimMetadataLength() - sparsity.BlockMapLength()
    sizes = [sparsity.DimMetadata(place).DenseSize() for place in range(first, sparsity.DimMetadataLength())]
    return int(np.prod(sizes, dtype=np.int64))


def densified(tensor: Any, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """All values of a sparse tensor, zeros included.

    The dimensions of the tensor, and behind them those of a block, are walked through in an order that the file tells;
    each is dense, or holds the indices of what is there (compressed rows).

    Args:
        tensor: Of the flatbuffer schema.
        values: What is stored, in the order of the walk.
        shape: Of the tensor.

    Raises: ValueError, IndexError for a description that does not fit.
    Reference: tensorflow/compiler/mlir/lite/schema/schema.fbs, SparsityParameters.
    """
    from ai_edge_litert import schema_py_generated as schema

    told = schema.SparsityParametersT.InitFromObj(tensor.Sparsity())
    total = int(np.prod(shape, dtype=np.int64))
    order = [int(one) for one in told.traversalOrder]
    blocks = [] if told.blockMap is None else [int(one) for one in told.blockMap]
    found: dict[int, np.ndarray] = {}
    place = np.zeros(1, np.int64)
    for dimension, level in zip(order, told.dimMetadata, strict=True):
        rows, place, index = _level(level, place, total)
        found = {other: one[rows] for other, one in found.items()}
        found[dimension] = index
    sizes = {
        len(shape) + number: int(told.dimMetadata[order.index(len(shape) + number)].denseSize)
        for number in range(len(blocks))
    }
    coordinates = []
    for dimension in range(len(shape)):
        own = found[dimension]
        for number, blocked in enumerate(blocks):
            if blocked == dimension:
                own = own * sizes[len(shape) + number] + found[len(shape) + number]
        coordinates.append(own)
    dense = np.zeros(shape, values.dtype)
    dense[tuple(coordinates)] = values[place]
    return dense


def _level(level: Any, before: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries of the levels before it the entries of a level belong to, their numbers, and their indices."""
    if level.format == 0:
        size = int(level.denseSize)
        if not 0 <= size * len(before) <= total:
            raise ValueError(f"{size * len(before)} entries of a tensor of {total}")
        rows = np.repeat(np.arange(len(before)), size)
        index = np.tile(np.arange(size), len(before))
        return rows, before[rows] * size + index, index
    segments = np.asarray(level.arraySegments.values, np.int64)
    counts = segments[before + 1] - segments[before]
    if counts.min(initial=0) < 0 or counts.sum() > total:
        raise ValueError(f"{counts.sum()} entries of a tensor of {total}")
    rows = np.repeat(np.arange(len(before)), counts)
    starts = np.cumsum(counts) - counts
    place = segments[before][rows] + np.arange(len(rows)) - starts[rows]
    return rows, place, np.asarray(level.arrayIndices.values, np.int64)[place]
