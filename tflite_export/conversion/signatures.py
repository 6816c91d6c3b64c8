"""Several functions in one file that share their weights: `embed` and `classify`, `infer` and `train`."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tflite_export import metrics
from tflite_export.conversion import contract as contracts
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.graph import check_weights, save_all, traced
from tflite_export.conversion.job import Feed
from tflite_export.errors import ConversionError, Violation
from tflite_export.precisions import Precision
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.session import Session
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.norms import of_norms
from tflite_export.sources.protocol import Source
from tflite_export.sources.quality import Statistics
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import flatbuffer, records

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_PRECISIONS = ("float32", "float16", "dynamic", "int8", "int8_float_io", "uint8")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """One signature.

    Attributes:
        name: As apps call it.
        source: What it computes.
        batch: Samples of one call; None for any number.
        data: Of the user, or None.
    """

    name: str
    source: Source
    batch: int | None
    data: samples.Stream | None

    @property
    def sample(self) -> Arrays:
        """What file and source are compared on: one call."""
        size = self.source.fixed_batch or self.batch or 1
        data = samples.random_sample(self.source.inputs, size) if self.data is None else self.data.head
        return next(samples.groups(data, size))


def convert_signatures(
    sources: Mapping[str, Any],
    contract: Contract,
    data: Mapping[str, Any] | None,
    *,
    batch: int | None,
    max_samples: int,
    verbose: bool,
) -> TFLiteModel:
    """As `convert`, for a dict signature name -> source.

    Args:
        sources: Functions may read and assign the same variables; sources with a batch size of their own keep it.
        contract: Its precision is one of `"float32"`, `"float16"`, `"dynamic"`, `"int8"`, `"int8_float_io"`, `"uint8"`.
        data: Signature name -> representative data, or None.
        batch: Of sources that have none of their own.
        max_samples: See `convert`.
        verbose: See `convert`.

    Raises: As `convert`.
    """
    rule = contract.precision
    _check(sources, rule, data)
    parts = tuple(_part(name, source, data, batch, max_samples, verbose) for name, source in sources.items())
    with silenced(verbose):
        functions = {part.name: traced(part.source, part.batch) for part in parts}
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as folder:
        with silenced(verbose):
            save_all([part.source for part in parts], functions, folder)
        content = _run(parts, rule, folder, verbose)
    content = flatbuffer.order_signatures(
        content, {part.name: (list(part.source.inputs), list(part.source.outputs)) for part in parts}
    )
    with silenced(verbose):
        model = TFLiteModel.from_content(content, rule.name, trusted=True)
        violations = [*_operations(model, parts, contract), *_values(model, parts, rule)]
    if violations:
        said = "\n".join(f"  {violation}" for violation in dict.fromkeys(map(str, violations)))
        raise ConversionError(f"The {rule.name} file of {', '.join(sources)} is not as it must be:\n{said}", violations)
    return model


def _check(sources: Mapping[str, Any], rule: Precision, data: Mapping[str, Any] | None) -> None:
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


def _part(
    name: str, source: Any, data: Mapping[str, Any] | None, batch: int | None, max_samples: int, verbose: bool
) -> Part:
    with silenced(verbose):
        resolved = resolve(source)
    if resolved.has_ranges or resolved.kernels:
        raise ValueError(
            f"Signature {name!r}: {resolved.label} was trained with quantization, which a file of several signatures "
            "cannot keep. Convert it alone."
        )
    check_weights(resolved)
    given = None if data is None or name not in data else data[name]
    what = f"representative_data[{name!r}]"
    stream = None if given is None else samples.Stream(resolved.inputs, given, limit=max_samples, what=what)
    return Part(name, resolved, resolved.fixed_batch or batch, stream)


def _run(parts: tuple[Part, ...], rule: Precision, folder: str, verbose: bool) -> bytes:
    failure: Exception | None = None
    feeds = _feeds(parts) if rule.integer else {}
    with silenced(verbose) as said:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[part.name for part in parts])
        rule.configure(converter, _together(feeds) if feeds else None)
        converter.experimental_enable_resource_variables = True
        try:
            content = converter.convert()
        except Exception as error:  # ConverterError is a plain Exception
            failure = error
    for feed in feeds.values():
        if feed.error is not None:
            raise feed.error
    if failure is not None:
        first = parts[0]
        raise conversion_error(failure, first.source, rule.name, first.batch, said.text) from failure
    for part in parts:
        if part.name in feeds and part.data is not None:
            found = feeds[part.name].seen.findings(rescales=True)
            if not part.source.processed:
                with silenced(verbose):
                    found += of_norms(part.source.module, part.data.head)
            for finding in found:
                warnings.warn(f"`representative_data[{part.name!r}]`: {finding}", UserWarning, stacklevel=4)
    return content


def _feeds(parts: tuple[Part, ...]) -> dict[str, Feed]:
    feeds = {}
    for part in parts:
        assert part.data is not None
        feeds[part.name] = Feed(part.data, part.source.fixed_batch or part.batch or 1, Statistics())
    return feeds


def _together(feeds: Mapping[str, Feed]) -> Callable[[], Iterator[tuple[str, Arrays]]]:
    """What the converter takes for several signatures."""

    def batches() -> Iterator[tuple[str, Arrays]]:
        for name, feed in feeds.items():
            for batch in feed():
                yield name, batch

    return batches


def _operations(model: TFLiteModel, parts: tuple[Part, ...], contract: Contract) -> list[Violation]:
    layers = frozenset().union(*(part.source.layers for part in parts))
    numbered = any(part.source.scopes_numbered for part in parts)
    whole = replace(parts[0].source, layers=layers, scopes_numbered=numbered)
    ops = records.ops(model.content, layers, scopes_numbered=numbered)
    rules = (
        contracts.builtin_operations,
        contracts.dtypes_inside,
        contracts.no_float_islands,
        contracts.old_runtimes,
        contracts.size,
    )
    return [violation for rule in rules for violation in rule(contract, model, whole, ops)]


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
