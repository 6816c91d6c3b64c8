"""What a file must satisfy before it is handed over: rules on its bytes.

To add one: a function under `@rule` that yields a `Violation` for everything that is not as it must be.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tflite_export.errors import Violation
from tflite_export.precisions import Precision
from tflite_export.runtime.model import TFLiteModel
from tflite_export.sources.protocol import Source
from tflite_export.tflite import op_versions, records


@dataclass(frozen=True)
class Contract:
    """What the user asks for.

    Attributes:
        precision: As registered.
        any_batch: Whether the batch size is to stay open.
        open_shapes: Whether other sizes may stay open, too.
        floats: Names of tensors that float operations may make in an integer file.
        min_runtime: TensorFlow Lite release that must be able to run the file, e.g. `"2.9"`; None: any.
        max_bytes: Largest size of the file; None: any.
        custom_ops: Operations that are not builtin and may be in the file.
    """

    precision: Precision
    any_batch: bool = False
    open_shapes: bool = False
    floats: frozenset[str] = frozenset()
    min_runtime: str | None = None
    max_bytes: int | None = None
    custom_ops: frozenset[str] = frozenset()

    def check(self, model: TFLiteModel, source: Source) -> list[Violation]:
        """All in which a file is not as it must be."""
        found = records.ops(model.content, source.layers, scopes_numbered=source.scopes_numbered)
        return [violation for rule in _RULES for violation in rule(self, model, source, found)]


Ops = tuple[records.OpRecord, ...]
Rule = Callable[[Contract, TFLiteModel, Source, Ops], Iterable[Violation]]
_RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Decorator: every file is checked by `function(contract, model, source, operations)` from now on."""
    _RULES.append(function)
    return function


@rule
def names_and_order(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """The source's inputs and outputs, by name and in order."""
    for what, infos, wanted in (("inputs", model.inputs, source.inputs), ("outputs", model.outputs, source.outputs)):
        names = [info.name for info in infos]
        if names != list(wanted):
            yield Violation("names and order", f"the file's {what} are {names}; expected {list(wanted)}")


@rule
def builtin_operations(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """No custom and no Flex operation, which the standard runtimes do not have, but for those that are allowed."""
    for op in ops:
        if op.custom and op.name not in contract.custom_ops:
            yield Violation(
                "builtin operations",
                f"{op.name} is no builtin operation",
                op.name,
                op.layer,
                "Write the layer with other operations, leave it out of the model and compute it in the app, or, if "
                f"the app's runtime has it, pass custom_ops=[{op.name!r}]",
            )


@rule
def static_shapes(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """No open sizes, which GPU delegates and browsers refuse; the batch may be open when that is asked for."""
    if contract.open_shapes:
        return
    first = 1 if contract.any_batch else 0
    inputs, outputs = (
        [info for info in infos if None in info.shape[first:]] for infos in (model.inputs, model.outputs)
    )
    for info in inputs or outputs:
        sizes = "x".join("any" if size is None else str(size) for size in info.shape)
        mend = "Its size depends on the values: pad it to a fixed one in the model, or pass shapes='open'"
        if inputs:
            mend = f"Pass shapes={{{info.name!r}: (...)}}, or shapes='open' if they must stay open"
        yield Violation("static shapes", f"{info.name!r} has the open shape {sizes}", mend=mend)


@rule
def dtypes_of_inputs_and_outputs(
    contract: Contract, model: TFLiteModel, source: Source, ops: Ops
) -> Iterator[Violation]:
    """Those of the precision: integers where it has them, otherwise the source's."""
    own = {name: spec.dtype for name, spec in source.inputs.items() if not spec.dtype.startswith("float")}
    for info in (*[info for info in model.inputs if info.dtype != own.get(info.name)], *model.outputs):
        kind = np.dtype(info.dtype).kind
        asked = contract.precision.io_dtype
        if asked is not None and kind == "f":
            problem = f"{info.name!r} stayed {info.dtype} in the {contract.precision.name} file"
            mend = (
                "Leave constants and inputs that are handed on out of the model, or choose 'int8_float_io' or 'float16'"
            )
            yield Violation("dtypes", problem, mend=mend)
        elif asked is not None and info.scale is not None and info.dtype != asked:
            yield Violation("dtypes", f"{info.name!r} is {info.dtype}; {contract.precision.name} has {asked}")
        elif asked is None and (kind != "f" and info.scale is not None):
            yield Violation("dtypes", f"{info.name!r} is {info.dtype}; {contract.precision.name} has float32")


@rule
def dtypes_inside(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """No float64, and no computing in float16, which few kernels do."""
    for op in ops:
        wide = {tensor.dtype for tensor in op.outputs} & {"float64", "complex128"}
        half = op.name not in ("DEQUANTIZE", "DENSIFY") and any(
            tensor.dtype == "float16" and tensor.data is None for tensor in op.outputs
        )
        if wide or half:
            found = "float16" if half else wide.pop()
            yield Violation(
                "dtypes", f"{op.name} computes in {found}", op.name, op.layer, "Cast to float32 in the model before it"
            )


@rule
def no_float_islands(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """Nothing of an integer file computes in float, but for what the user wants so."""
    way = "Choose 'dynamic' or 'float16'; if the layer may stay float, say so: `layers={name: 'float32'}`"
    if contract.precision.name == "int16x8":
        way = "Choose 'dynamic' or 'float16', or 'int8_float_io', which knows more operations"
    if contract.precision.integer:
        for op in float_operations(ops, source, contract.floats):
            yield Violation(
                "float islands",
                f"{op.name} stayed float in the {contract.precision.name} file",
                op.name,
                op.layer,
                way,
            )


@rule
def old_runtimes(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """Every operation is in the oldest runtime that must be able to run the file."""
    if contract.min_runtime is None:
        return
    for need in op_versions.needed(model.content):
        if need.runtime is None or op_versions.number(need.runtime) > op_versions.number(contract.min_runtime):
            since = f"needs TensorFlow Lite {need.runtime}" if need.runtime else "is in no known release"
            layers = dict.fromkeys(op.layer for op in ops if op.name == need.op and op.layer)
            yield Violation(
                "old runtimes",
                f"{need.op} version {need.version} {since}; asked for was {contract.min_runtime}",
                need.op,
                ", ".join(layers),
                "Choose a precision with older kernels ('float32', 'int8'), or ship a newer runtime with the app",
            )


@rule
def size(contract: Contract, model: TFLiteModel, source: Source, ops: Ops) -> Iterator[Violation]:
    """No larger than asked for."""
    if contract.max_bytes is not None and model.size_bytes > contract.max_bytes:
        yield Violation(
            "size",
            f"the file has {model.size_bytes:,} bytes; at most {contract.max_bytes:,} were asked for",
            mend="Choose a smaller precision ('int8', 'dynamic'), or a smaller model",
        )


def float_operations(ops: Ops, source: Source, wanted: frozenset[str] = frozenset()) -> Iterator[records.OpRecord]:
    """Operations that compute in floating point, but for those that are wanted so: `wanted` names their outputs."""
    for op in ops:
        own = source.floats & set((op.layer or "").split("/"))
        if op.is_float and op.outputs[0].name not in wanted and not own:
            yield op


def float_layers(content: bytes, source: Source, wanted: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The same as layers with the operation in brackets."""
    ops = records.ops(content, source.layers, scopes_numbered=source.scopes_numbered)
    return tuple(dict.fromkeys(f"{op.layer or '?'} ({op.name})" for op in float_operations(ops, source, wanted)))
