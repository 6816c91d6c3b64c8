"""Where ranges go: on the tensors that the int8 file really has.

A tensor has a range of its own if TFLite stores it with one: after convolution, BatchNormalization and ReLU, not
between them; not after an operation that keeps the scale of its input, nor where TFLite fixes the scale; and not on an
input of a concatenation that nothing else reads, which has the scale of the concatenation.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from kdopt.graph.inline import Trace
from kdopt.quantization.native.steps import Step, steps_of
from kdopt.quantization.schemes import Schemes


@dataclass(frozen=True)
class Grid:
    """How a tensor is scaled.

    Attributes:
        row: Number of its range, None for a fixed scale.
        limits: Of a fixed scale.
        own: Whether the range is that of this tensor: it follows its values, and the converter is told. Others share
            one with it, and the converter concludes that.
        rounds: Whether the tensor is rounded; False where the values are on the grid already, or are rounded later.
    """

    row: int | None
    limits: tuple[float, float] | None = None
    own: bool = False
    rounds: bool = True


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
    learned: dict[int, Any] = field(default_factory=dict)

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
        self.steps = steps_of(traced)
        self._read()
        self.steps = self._with_norms()
        self._read()
        self.producer = {number: step for step in self.steps for number in step.outputs}
        self.grids: dict[int, Grid] = {}
        self.names: list[str] = []

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
        if type(norm) is not keras.layers.BatchNormalization or self.calls[id(step.operation)] > 1:
            return False
        rank = len(norm.input_spec.axes) and norm.input_spec.ndim
        return self.calls[id(norm)] == 1 and norm.axis % rank == rank - 1

    def place(self) -> Placement:
        for entry in self.traced.inputs:
            if self.bits and self.is_float(entry.index) and self.readers[entry.index]:
                self.grids[entry.index] = Grid(self.new(f"{entry.name}.input"), own=True)
        inner: dict[str, dict[str, int]] = {}
        if self.bits:
            self.place_outputs(inner)
        floats = frozenset(filter(self.is_float, self.producer))
        held = [(self.grids[n].row, step.rule.relu) for step in self.steps for n in step.outputs if n in self.grids]
        inside = {row for rows in inner.values() for row in rows.values()}
        above = {row for row, relu in held if relu} - {row for row, relu in held if not relu} - inside - {None}
        positive = frozenset(row for row in above if row is not None)
        names, steps, symmetric = tuple(self.names), tuple(self.steps), self.symmetric(inside)
        return Placement(
            self.traced, steps, self.grids, inner, names, floats, positive - symmetric, self.schemes, symmetric
        )

    def place_outputs(self, inner: dict[str, dict[str, int]]) -> None:
        joined = self.joined()
        rows: dict[int, int] = {}
        for step in self.steps:
            if step.rule.inner and step.name not in inner:
                inner[step.name] = {name: self.new(f"{step.name}.{name}") for name in step.rule.inner}
            for number in filter(self.is_float, step.outputs):
                if step.rule.keeps:
                    self.grids[number] = Grid(inner[step.name][step.rule.keeps], rounds=False)
                elif self.has_own(step, number):
                    root = number
                    while root in joined:
                        root = joined[root]
                    if root not in rows:
                        rows[root] = self.new(f"{step.name if root == number else self.producer[root].name}.output")
                    self.grids[number] = Grid(rows[root], own=root == number, rounds=root == number)
                elif step.rule.output == "fixed":
                    self.grids[number] = Grid(None, step.rule.limits)
                elif keeps_scale(step) and step.inputs[0] in self.grids:
                    before = self.grids[step.inputs[0]]
                    self.grids[number] = replace(before, own=False, rounds=step.rule.rounds)

    def symmetric(self, inside: set[int]) -> frozenset[int]:
        """The ranges with zero point 0."""
        if self.bits == 16:
            return frozenset(range(len(self.names)))
        wanted = {name for name, scheme in self.schemes.layers.items() if scheme.symmetric}
        numbers = [number for step in self.steps if step.layer in wanted for number in step.outputs]
        own = {self.grids[n].row for n in numbers if n in self.grids and self.grids[n].own} - inside
        return frozenset(row for row in own if row is not None)

    def joined(self) -> dict[int, int]:
        """Inputs of concatenations that nothing else reads -> the concatenation's output.

        A concatenation is such an input only if all of its own are: the converter would give it the scale of another.
        """
        found: dict[int, int] = {}
        for step in self.steps:
            for number in step.inputs if step.rule.output == "joined" else ():
                before = self.producer.get(number)
                if before is None or not self.has_own(before, number) or self.only_reader(number) is not step:
                    continue
                if before.rule.output != "joined" or all(one in found for one in before.inputs):
                    found[number] = step.outputs[0]
        return found

    def has_own(self, step: Step, number: int) -> bool:
        """Whether TFLite stores the output with a range of its own, or one that it shares with others."""
        if step.rule.identity or step.rule.output not in ("trained", "joined"):
            return False
        after = self.only_reader(number)
        return after is None or not (after.rule.relu and step.rule.fuses_relu)

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
