"""Several functions in one file that share their weights: `embed` and `classify`, `infer` and `train`."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tflite_export import metrics
from tflite_export.conversion import contract as contracts
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.graph import LOOPS, check_weights, operations_in, save_all, traced
from tflite_export.conversion.lowering import lowered
from tflite_export.conversion.parts import Part, PartsJob, job_of
from tflite_export.conversion.plan import with_shapes
from tflite_export.conversion.unchanged import ranges, unchanged
from tflite_export.errors import ConversionError, Violation
from tflite_export.precisions import Precision
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.session import Session
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.norms import of_norms
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import records

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_PRECISIONS = ("float32", "float16", "dynamic", "weight_int8", "int8", "int8_float_io", "uint8")


def convert_signatures(
    sources: Mapping[str, Any],
    contract: Contract,
    data: Mapping[str, Any] | None,
    *,
    batch: int | None,
    shapes: Any,
    max_samples: int,
    verbose: bool,
) -> TFLiteModel:
    """As `convert`, for a dict signature name -> source.

    Args:
        sources: Functions may read and assign the same variables; sources with a batch size of their own keep it.
        contract: Its precision is one of `"float32"`, `"float16"`, `"dynamic"`, `"weight_int8"`, `"int8"`,
            `"int8_float_io"`, `"uint8"`.
        data: Signature name -> representative data, or None.
        batch: Of sources that have none of their own.
        shapes: Signature name -> `shapes` of `convert`; or `"open"`.
        max_samples: See `convert`.
        verbose: See `convert`.

    Raises: As `convert`.
    """
    rule = contract.precision
    _check(sources, rule, data, shapes)
    parts = tuple(_part(name, source, data, batch, shapes, max_samples, verbose) for name, source in sources.items())
    job = job_of(parts, contract, verbose)
    with silenced(verbose):
        functions = {part.name: traced(part.source, part.batch) for part in parts}
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as folder:
        with silenced(verbose):
            save_all([part.source for part in parts], functions, folder)
        loops = any(operations_in(function) & LOOPS for function in functions.values())
        try:
            content, _, floats = lowered(job, folder, ranged=False, loops=loops)
        finally:
            for part in parts:
                _warn_of(part)
    with silenced(verbose):
        model = TFLiteModel.from_content(content, rule.name, trusted=True)
        violations = [*_operations(model, job, floats), *_open_sizes(model, job, shapes)]
        violations = violations or [*_values(model, parts, rule)]
    if violations:
        said = "\n".join(f"  {violation}" for violation in dict.fromkeys(map(str, violations)))
        raise ConversionError(f"The {rule.name} file of {', '.join(sources)} is not as it must be:\n{said}", violations)
    return replace(model, notes=(*unchanged(model, job.source), *ranges(job.unseen, job.masked)))


def _check(sources: Mapping[str, Any], rule: Precision, data: Mapping[str, Any] | None, shapes: Any) -> None:
    strange = [name for name in sources if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if not sources or strange:
        raise ValueError(
            "A dict of sources must name each signature by letters, digits and _, a letter first; got "
            f"{strange or 'an empty dict'}."
        )
    if rule.name not in _PRECISIONS:
        raise ValueError(
            f"A file of several signatures can be {', '.join(map(repr, _PRECISIONS))}; got {rule.name!r}. Convert the "
            "sources one by one for it."
        )
    if data is not None and (not isinstance(data, Mapping) or set(data) - set(sources)):
        raise ValueError(
            f"`representative_data` for several signatures is a dict signature name -> data, of {list(sources)}; got "
            f"{list(data) if isinstance(data, Mapping) else type(data).__name__}."
        )
    if rule.integer and (data is None or set(data) != set(sources)):
        missing = [name for name in sources if data is None or name not in data]
        raise ValueError(f"{rule.name!r} needs `representative_data` for every signature; missing: {missing}.")
    if shapes not in (None, "open") and (not isinstance(shapes, Mapping) or set(shapes) - set(sources)):
        raise ValueError(
            f'`shapes` for several signatures is "open", or a dict signature name -> "open" or dict input name -> '
            f"shape of one sample, of {list(sources)}; got {shapes!r}."
        )


def _part(
    name: str,
    source: Any,
    data: Mapping[str, Any] | None,
    batch: int | None,
    shapes: Any,
    max_samples: int,
    verbose: bool,
) -> Part:
    with silenced(verbose):
        resolved = resolve(source)
    if resolved.has_ranges or resolved.kernels:
        raise ValueError(
            f"Signature {name!r}: {resolved.label} was trained with quantization, which a file of several signatures "
            "cannot keep. Convert it alone."
        )
    check_weights(resolved)
    resolved = with_shapes(resolved, shapes if shapes == "open" else (shapes or {}).get(name), signature=name)
    given = None if data is None or name not in data else data[name]
    what = f"representative_data[{name!r}]"
    stream = None if given is None else samples.Stream(resolved.inputs, given, limit=max_samples, what=what)
    return Part(name, resolved, resolved.fixed_batch or batch, stream)


def _warn_of(part: Part) -> None:
    """Tells what is strange about data that ranges were learned from."""
    if part.data is None or not part.seen.count:
        return
    with silenced():
        found = part.seen.findings(rescales=True)
        if not part.source.processed:  # else the data are not those of the module
            found += of_norms(part.source.module, part.data.head)
    for finding in found:
        warnings.warn(f"`representative_data[{part.name!r}]`: {finding}", UserWarning, stacklevel=4)


def _operations(model: TFLiteModel, job: PartsJob, floats: frozenset[str]) -> list[Violation]:
    contract, source = replace(job.contract, floats=floats), job.source
    ops = records.ops(model.content, source.layers, scopes_numbered=source.scopes_numbered)
    rules = (
        contracts.builtin_operations,
        contracts.dtypes_inside,
        contracts.no_float_islands,
        contracts.old_runtimes,
        contracts.size,
    )
    return [violation for rule in rules for violation in rule(contract, model, source, ops)]


def _open_sizes(model: TFLiteModel, job: PartsJob, shapes: Any) -> Iterator[Violation]:
    """As the contract's rule of static shapes, for every signature."""
    session = Session(model.content)
    for part in job.parts:
        if "open" in (shapes, (shapes if isinstance(shapes, Mapping) else {}).get(part.name)):
            continue
        batches = part.batch is None and part.source.fixed_batch is None
        for side in session.details(part.name):
            for name, detail in side.items():
                if -1 in list(detail["shape_signature"])[1 if batches else 0 :]:
                    yield Violation(
                        "static shapes",
                        f"signature {part.name!r}: {name!r} has an open shape",
                        mend="Its size depends on the values: pad it to a fixed one in the model, or pass "
                        "shapes='open'",
                    )


@contextlib.contextmanager
def _unchanged(parts: tuple[Part, ...]) -> Iterator[None]:
    """Puts back what a source assigns to its variables."""
    held = {id(variable): variable for part in parts for variable in getattr(part.source.module, "variables", ())}
    before = [(variable, np.array(variable)) for variable in held.values()]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _values(model: TFLiteModel, parts: tuple[Part, ...], rule: Precision) -> Iterator[Violation]:
    """Each signature once, on a fresh file: what one assigns must not be in the answer of another."""
    for part in parts:
        with _unchanged(parts):
            expected = part.source.predict(part.sample)
        found = Session(model.content).call(part.name, part.sample)
        for name, reference in expected.items():
            place = f"signature {part.name!r}, output {name!r}"
            values = np.asarray(found[name], np.float64)
            if values.shape != reference.shape or not np.isfinite(values).all():
                yield Violation("same function", f"{place}: shape {values.shape}, the source {reference.shape}, or NaN")
                continue
            distance = metrics.errors(np.asarray(reference, np.float64), values)
            if distance.rmse > min(0.5, 10 * rule.tolerance) * max(distance.peak, 1e-6):
                yield Violation(
                    "same function",
                    f"{place}: another function than the source: rmse {distance.rmse:.3g} beside a largest |value| of "
                    f"{distance.peak:.3g}",
                )
