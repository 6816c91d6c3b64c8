"""Groups of weights: which weights of a kernel live or die together."""

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer, check_one_of

Tensor = Any
GROUPS = ("out_channels", "in_channels", "rows", "columns", "blocks")
LAYOUTS = ("standard", "transposed", "depthwise")
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


Layout = str | tuple[int, ...]


def checked_layout(layout: object) -> Layout:
    """A layout's name, or the axes of the inputs as a tuple.

    Raises: ValueError.
    """
    if isinstance(layout, (tuple, list)):
        if not layout or len(set(layout)) < len(layout) or not all(type(a) is int and a < 0 for a in layout):
            raise ValueError(f"`layout` must be a name or the axes < 0 of the inputs, e.g. (-3,); got {layout!r}.")
        return tuple(layout)
    return check_one_of("layout", layout, LAYOUTS)


def layout_of(view: KernelView) -> Layout:
    """How the axes of a kernel are to be read, from the layer that owns it; see `Grouping`."""
    if isinstance(view.layer, keras.layers.EinsumDense):
        return view.input_axes or "standard"
    if isinstance(view.layer, _DEPTHWISE) or (isinstance(view.layer, _SEPARABLE) and view.channel_axis == -2):
        return "depthwise"
    return "transposed" if view.channel_axis == -2 else "standard"


@dataclass(frozen=True)
class Grouping:
    """A way to part a kernel into groups.

    A kernel is read as positions x inputs x outputs (a Dense kernel has one position), and as a matrix
    with one row per position and input and one column per output:

        out_channels, columns     all weights of one output
        in_channels               all weights of one input (the `channels` that the layer before makes)
        rows                      the weights of one input at one position
        blocks                    tiles of `block_shape` of the matrix; at its edges they may be smaller

    Args:
        groups: One of the names above.
        block_shape: Tuple (rows, columns) of integers >= 1, for `"blocks"` only.
        layout: `"standard"`: the last two axes of the kernel are (inputs, outputs); `"transposed"`: (outputs,
            inputs), as in `Conv2DTranspose`; `"depthwise"`: (inputs, multiplier), each pair an output, so
            that the matrix has one row per position. Or the axes (integers < 0) of the inputs, where all others are
            outputs, as `EinsumDense` has them: (-3,) for a query projection (inputs, heads, width), every width of
            every head an output.

    Raises: ValueError at construction.
    """

    groups: str
    block_shape: tuple[int, int] | None = None
    layout: Layout = "standard"

    def __post_init__(self) -> None:
        check_one_of("groups", self.groups, GROUPS)
        object.__setattr__(self, "layout", checked_layout(self.layout))
        if (self.groups == "blocks") != (self.block_shape is not None):
            raise ValueError(
                "`block_shape` belongs to groups='blocks', e.g. groups='blocks', block_shape=(1, 4); got "
                f"groups={self.groups!r}, block_shape={self.block_shape!r}."
            )
        if self.block_shape is not None:
            if not isinstance(self.block_shape, (tuple, list)) or len(self.block_shape) != 2:
                raise ValueError(f"`block_shape` must be two integers, e.g. (1, 4); got {self.block_shape!r}.")
            sides = [check_integer("block_shape", side) for side in self.block_shape]
            object.__setattr__(self, "block_shape", tuple(sides))

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of `split`'s result that run inside a group."""
        if self.groups == "blocks":
            return (1, 3)
        if self.groups == "in_channels":
            return (0, 2)
        if self.groups == "rows":
            return (1, 2) if self.layout == "depthwise" else (2,)
        return (0,) if self.layout == "depthwise" else (0, 1)

    def split(self, weights: Tensor) -> Tensor:
        """`weights` with the axes of a group apart from the others: (positions, inputs, outputs), or tiles
        (rows of tiles, rows in a tile, columns of tiles, columns in a tile), filled up with zeros."""
        shape, order = weights.shape, self._order(len(weights.shape))
        parts = ops.reshape(weights if _is_sorted(order) else ops.transpose(weights, order), self._three(shape))
        if self.groups != "blocks":
            return parts
        (rows, columns), (down, right) = self._matrix(shape), self._tiles(shape)
        height, width = self.block_shape  # type: ignore[misc]
        matrix = ops.reshape(parts, (rows, columns))
        matrix = ops.pad(matrix, ((0, down * height - rows), (0, right * width - columns)))
        return ops.reshape(matrix, (down, height, right, width))

    def merge(self, parts: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The kernel of `shape` that `split` took apart."""
        if self.groups == "blocks":
            (rows, columns), (down, right) = self._matrix(shape), self._tiles(shape)
            height, width = self.block_shape  # type: ignore[misc]
            parts = ops.reshape(parts, (down * height, right * width))[:rows, :columns]
        order = self._order(len(shape))
        parts = ops.reshape(parts, [shape[axis] for axis in order])
        return parts if _is_sorted(order) else ops.transpose(parts, [order.index(axis) for axis in range(len(order))])

    def norms(self, parts: Tensor) -> Tensor:
        """sqrt(sum of squares) of each group, its axes kept as 1. The gradient of an all-zero group is zero."""
        squares = ops.sum(ops.square(parts), axis=self.axes, keepdims=True)
        positive = squares > 0
        return ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)

    def sizes(self, shape: tuple[int, ...]) -> Tensor:
        """Number of weights in each group of a kernel of `shape`, int32, in the shape of `norms`."""
        ones = self.split(ops.ones(shape, dtype="int32"))
        return ops.sum(ones, axis=self.axes, keepdims=True)

    def _order(self, rank: int) -> tuple[int, ...]:
        """The axes of a kernel in the order positions, inputs, outputs."""
        axes = list(range(rank))
        if self.layout == "transposed":
            axes[-2:] = axes[:-3:-1]
        elif isinstance(self.layout, tuple):
            inputs = [axis % rank for axis in self.layout]
            axes = inputs + [axis for axis in axes if axis not in inputs]
        return tuple(axes)

    def _three(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(positions, inputs, outputs) of a kernel."""
        sizes = [1, *(shape[axis] for axis in self._order(len(shape)))]
        if isinstance(self.layout, tuple):
            return 1, math.prod(sizes[: len(self.layout) + 1]), math.prod(sizes[len(self.layout) + 1 :])
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        positions, first, second = self._three(shape)
        if self.layout == "depthwise":
            return positions, first * second
        return positions * first, second

    def _tiles(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = self._matrix(shape)
        height, width = self.block_shape  # type: ignore[misc]
        return -(-rows // height), -(-columns // width)


def _is_sorted(order: tuple[int, ...]) -> bool:
    return order == tuple(range(len(order)))
