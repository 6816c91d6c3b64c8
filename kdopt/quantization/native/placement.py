"""Where ranges go: on the tensors that the int8 file really has.

A tensor has a range if TFLite stores it with one: after convolution, BatchNormalization and ReLU, not between them; not
after an operation that keeps the scale of its input, nor where TFLite fixes the scale. What goes into a concatenation
has one range with what comes out of it, as the converter does it: otherwise the file would have a QUANTIZE before it.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from keras.src.applications.convnext import LayerScale
from keras.src.ops import numpy as knp

from kdopt.graph.inline import Ref, Trace
from kdopt.quantization.native.rules import LEFT, Rule
from kdopt.quantization.native.steps import Scaled, Step, steps_of
from kdopt.quantization.schemes import Schemes

_IMAGES = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)


@dataclass(frozen=True)
class Grid:
    """How a tensor is scaled.

    Attributes:
        row: Number of its range, None for a fixed scale.
        limits: Of a fixed scale.
        own: Whether the range is that of this tensor: it follows its values, and the converter is told. Others share
            one with it, and the converter concludes that.
        rounds: Whether the tensor is rounded; False where the values are on the grid already, or are rounded later.
        factor: What its steps are larger than those of its range.
    """

    row: int | None
    limits: tuple[float, float] | None = None
    own: bool = False
    rounds: bool = True
    factor: float = 1.0


@dataclass(frozen=True)
class Placement:
    """The steps of a model and the grids of its tensors.

    Attributes:
        traced: The model's inputs and outputs.
        steps: In order.
        grids: Tensor number -> `Grid`; a tensor without one stays float or is an integer.
        inner: Name of a step -> name inside it -> number of the range.
        names: Of the ranges, by number.
        floats: Numbers of the tensors that are no integers.
        positive: Numbers of the ranges of tensors with nothing below 0.
        schemes: How each layer is rounded.
        symmetric: Numbers of the ranges with zero point 0.
        shifted: Names of the steps that a number is added to, which the converter makes part of their bias.
        cloned: Numbers of the outputs of dense layers that are there twice, if a ReLU reads them.
        learned: `id` of a kernel -> the Variable of its learned step.
    """

    traced: Trace
    steps: tuple[Step, ...]
    grids: dict[int, Grid]
    inner: dict[str, dict[str, int]]
    names: tuple[str, ...]
    floats: frozenset[int]
    positive: frozenset[int]
    schemes: Schemes
    symmetric: frozenset[int]
    shifted: frozenset[str] = frozenset()
    cloned: frozenset[int] = frozenset()
    learned: dict[int, Any] = field(default_factory=dict)

    @property
    def has_special(self) -> bool:
        """Whether there are kernels whose integers a converter cannot derive."""
        special = (name for name, scheme in self.schemes.layers.items() if not scheme.is_plain)
        return self.bits is None or bool(set(special) - self.schemes.floats)

    def with_ranges(self) -> list[str]:
        """The layers whose output has a range of its own."""
        inside = {row for rows in self.inner.values() for row in rows.values()}
        own = {n for n, grid in self.grids.items() if grid.own and grid.row not in inside}
        return list(dict.fromkeys(step.layer for step in self.steps if own & set(step.outputs)))

    @property
    def bits(self) -> int | None:
        """Of activations; None where they stay float."""
        return self.schemes.scheme.bits


def place(traced: Trace, schemes: Schemes) -> Placement:
    """Decides the placement for a traced model."""
    return _Placer(traced, schemes).place()


class _Placer:
    def __init__(self, traced: Trace, schemes: Schemes) -> None:
        self.traced, self.schemes, self.bits = traced, schemes, schemes.scheme.bits
        self.dtypes = {entry.index: entry.dtype for entry in traced.inputs}
        for call in traced.calls:
            self.dtypes.update(zip(call.outputs, call.dtypes, strict=True))
        self.outputs = set(traced.outputs)
        left = schemes.floats
        self.steps = [replace(step, rule=LEFT) if step.layer in left else step for step in steps_of(traced)]
        self._read()
        self.steps = self._with_norms()
        self._read()
        self.steps = [self._with_factor(step) for step in self.steps]
        self._read()
        self.producer = {number: step for step in self.steps for number in step.outputs}
        self.grids: dict[int, Grid] = {}
        self.names: list[str] = []
        self.roots, self.rows = self.shared(), dict[int, int]()

    def _read(self) -> None:
        self.readers: dict[int, list[Step]] = defaultdict(list)
        self.calls: dict[int, int] = defaultdict(int)
        for step in self.steps:
            self.calls[id(step.operation)] += 1
            for number in set(step.inputs):
                self.readers[number].append(step)

    def _with_norms(self) -> list[Step]:
        """The steps, each BatchNormalization that disappears into a kernel joined to it."""
        steps, joined = [], set()
        for step in self.steps:
            if id(step) in joined:
                continue
            after = self.only_reader(step.outputs[0]) if step.rule.fuses_norm else None
            if after is not None and step.outputs[0] in after.inputs and self._folds(step, after):
                joined.add(id(after))
                step = replace(step, outputs=after.outputs, norm=after.operation)
            steps.append(step)
        return steps

    def _folds(self, step: Step, after: Step) -> bool:
        norm = after.operation
        if type(norm) is not keras.layers.BatchNormalization or not self._paired(step.operation, norm):
            return False
        rank = len(norm.input_spec.axes) and norm.input_spec.ndim
        return norm.axis % rank == rank - 1

    def _paired(self, operation: Any, norm: Any) -> bool:
        """Whether every call of a layer goes to a normalization that is called on nothing else."""
        made = [step.outputs[0] for step in self.steps if step.operation is operation]
        readers = [self.only_reader(number) for number in made]
        return len(made) == self.calls[id(norm)] and all(
            reader is not None and reader.operation is norm and number in reader.inputs
            for number, reader in zip(made, readers, strict=True)
        )

    def _with_factor(self, step: Step) -> Step:
        """A rescaling by a number before a convolution computes nothing in the file: it is part of the kernel."""
        layer = step.operation
        if type(layer) is not keras.layers.Rescaling or np.any(layer.offset) or not self.is_float(step.inputs[0]):
            return step
        if np.size(layer.scale) > 1 or np.min(layer.scale) <= 0:
            return step
        after = self.only_reader(step.outputs[0])
        while after is not None and isinstance(after.operation, keras.layers.ZeroPadding2D):
            after = self.only_reader(after.outputs[0])
        if after is None or type(after.operation) not in _IMAGES:
            return step
        return replace(step, rule=Rule("input", factor=np.asarray(layer.scale, "float64").item()))

    def place(self) -> Placement:
        for entry in self.traced.inputs:
            if self.bits and self.is_float(entry.index) and self.readers[entry.index]:
                self.grids[entry.index] = Grid(self.row_of(entry.index, f"{entry.name}.input"), own=True)
        inner: dict[str, dict[str, int]] = {}
        if self.bits:
            self.place_outputs(inner)
        floats = frozenset(filter(self.is_float, self.producer))
        held = [(self.grids[n].row, step.rule.relu) for step in self.steps for n in step.outputs if n in self.grids]
        inside = {row for rows in inner.values() for row in rows.values()}
        above = {row for row, relu in held if relu} - {row for row, relu in held if not relu} - inside - {None}
        positive = frozenset(row for row in above if row is not None)
        names, steps, symmetric = tuple(self.names), tuple(self.steps), self.symmetric(inside)
        readers = ((step, self.only_reader(step.outputs[0])) for step in steps if step.rule.fuses_norm)
        shifted = frozenset(step.name for step, after in readers if after is not None and is_absorbed(after))
        kept = positive - symmetric
        cloned = frozenset(step.outputs[0] for step in steps if self.is_cloned(step))
        return Placement(
            self.traced, steps, self.grids, inner, names, floats, kept, self.schemes, symmetric, shifted, cloned
        )

    def place_outputs(self, inner: dict[str, dict[str, int]]) -> None:
        concluded = self.concluded()
        for step in self.steps:
            if step.rule.inner and step.name not in inner:
                inner[step.name] = {name: self.new(f"{step.name}.{name}") for name in step.rule.inner}
            for number in filter(self.is_float, step.outputs):
                if step.rule.keeps:
                    self.grids[number] = Grid(inner[step.name][step.rule.keeps], rounds=False)
                elif self.has_own(step, number):
                    own = number not in concluded
                    self.grids[number] = Grid(self.row_of(number, f"{step.name}.output"), own=own, rounds=own)
                elif step.rule.output == "fixed":
                    self.grids[number] = Grid(None, step.rule.limits)
                elif keeps_scale(step) and step.inputs[0] in self.grids:
                    before = self.grids[step.inputs[0]]
                    factor = before.factor * step.rule.factor
                    self.grids[number] = replace(before, own=False, rounds=step.rule.rounds, factor=factor)

    def is_cloned(self, step: Step) -> bool:
        """Whether the file has a dense layer twice: fused with a ReLU that reads it, and without, for the others."""
        dense = isinstance(step.operation, (keras.layers.Dense, keras.layers.EinsumDense)) and step.rule.fuses_relu
        return dense and self.has_own(step, step.outputs[0])

    def symmetric(self, inside: set[int]) -> frozenset[int]:
        """The ranges with zero point 0."""
        if self.bits == 16:
            return frozenset(range(len(self.names)))
        wanted = {name for name, scheme in self.schemes.layers.items() if scheme.symmetric}
        numbers = [number for step in self.steps if step.layer in wanted for number in step.outputs]
        own = {self.grids[n].row for n in numbers if n in self.grids and self.grids[n].own} - inside
        return frozenset(row for row in own if row is not None)

    def row_of(self, number: int, name: str) -> int:
        """The range of a tensor, which it may share; named after the last one that has it."""
        root = self.roots.get(number, number)
        if root not in self.rows:
            self.rows[root] = self.new(name if root == number else f"{self.producer[root].name}.output")
        return self.rows[root]

    def shared(self) -> dict[int, int]:
        """Tensors that go into a concatenation, moved or not -> the last tensor of the same range."""
        after: dict[int, int] = {}

        def last(number: int) -> int:
            while number in after:
                number = after[number]
            return number

        for step in self.steps:
            for number in step.inputs if step.rule.output == "joined" else ():
                root = last(self.origin(number))
                if root >= 0 and root != step.outputs[0]:
                    after[root] = step.outputs[0]
        return {number: last(number) for number in after}

    def origin(self, number: int) -> int:
        """The tensor whose range a tensor has, -1 without a trained one."""
        before = self.producer.get(number)
        while before is not None and keeps_scale(before) and not before.rule.keeps:
            number = before.inputs[0]
            before = self.producer.get(number)
        trained = before is None or (self.has_own(before, number) and not before.rule.keeps)
        return number if trained and self.is_float(number) else -1

    def concluded(self) -> set[int]:
        """Tensors that only a concatenation reads: the converter gives them its range, and they are rounded there.

        A concatenation is one of them only if all of its inputs are: it would get the scale of another.
        """
        found: set[int] = set()
        for step in self.steps:
            for given in step.inputs if step.rule.output == "joined" else ():
                number = self.moved(given, step)
                before = self.producer.get(number)
                if before is None or not self.has_own(before, number):
                    continue
                if before.rule.output != "joined" or all(self.moved(one, before) in found for one in before.inputs):
                    found.add(number)
        return found

    def moved(self, number: int, step: Step) -> int:
        """The tensor whose integers a step gets as they are, -1 if something else reads them, too."""
        while self.only_reader(number) is step:
            before = self.producer.get(number)
            if before is None or not keeps_scale(before) or before.rule.rounds or len(before.outputs) > 1:
                return number
            number, step = before.inputs[0], step if before.rule.identity else before
        return -1

    def has_own(self, step: Step, number: int) -> bool:
        """Whether TFLite stores the output with a range of its own, or one that it shares with others."""
        if step.rule.identity or step.rule.output not in ("trained", "joined"):
            return False
        after = self.only_reader(number)
        if after is None:
            return True
        return not (after.rule.relu and step.rule.fuses_relu) and not (step.rule.fuses_norm and is_absorbed(after))

    def only_reader(self, number: int) -> Step | None:
        """The one step that reads a tensor in the file, None if several do or it is an output of the model."""
        while number not in self.outputs and len(self.readers[number]) == 1:
            (step,) = self.readers[number]
            if not step.rule.identity:
                return step
            (number,) = step.outputs
        return None

    def is_float(self, number: int) -> bool:
        return self.dtypes.get(number, "float32").startswith(("float", "bfloat"))

    def new(self, name: str) -> int:
        """A new range; of a layer called twice, names get a number."""
        count, candidate = 0, name
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.append(candidate)
        return len(self.names) - 1


def keeps_scale(step: Step) -> bool:
    """Whether the outputs have the scale of the first input."""
    return step.rule.identity or step.rule.output == "input"


def is_absorbed(step: Step) -> bool:
    """Whether a step adds a number or multiplies by one for each channel, as part of the kernel and bias before it."""
    if step.operation is keras.activations.hard_sigmoid or isinstance(step.operation, (LayerScale, Scaled)):
        return True
    numbers = [leaf for leaf in keras.tree.flatten((step.args, step.kwargs)) if not isinstance(leaf, Ref)]
    return type(step.operation) is knp.Add and len(numbers) == 1 and np.size(numbers[0]) == 1
