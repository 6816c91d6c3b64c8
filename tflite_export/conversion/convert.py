"""From a source to a checked `TFLiteModel`."""

import re
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tflite_export import precisions
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.custom import check_custom_ops, not_run
from tflite_export.conversion.graph import LOOPS, check_weights, operations_in, save, traced
from tflite_export.conversion.job import Job
from tflite_export.conversion.lowering import lowered, lowered_again
from tflite_export.conversion.plan import check_numbers, plan
from tflite_export.conversion.sameness import differences
from tflite_export.conversion.signatures import convert_signatures
from tflite_export.conversion.targets import Target, assess
from tflite_export.conversion.unchanged import ranges, unchanged
from tflite_export.errors import ConversionError
from tflite_export.runtime.model import TFLiteModel
from tflite_export.silence import silenced
from tflite_export.sources.norms import of_norms
from tflite_export.sources.protocol import Source
from tflite_export.tflite import records


def convert(
    source: Any,
    precision: str | None = None,
    representative_data: Any = None,
    *,
    target: str | None = None,
    batch: int | None = 1,
    shapes: Mapping[str, Sequence[int]] | str | None = None,
    layers: Mapping[str, str] | None = None,
    sparse: bool = False,
    custom_ops: Collection[str] = (),
    min_runtime: str | None = None,
    max_bytes: int | None = None,
    max_samples: int = 512,
    verbose: bool = False,
) -> TFLiteModel:
    """Converts a model to a `.tflite` file, and returns it only if it is right.

    Every file is loaded, allocated and run on ai_edge_litert; it has builtin operations only, the source's inputs and
    outputs by name and in order, and outputs close to the source's on a few samples (of `representative_data`, else
    seeded random numbers).

    | precision | what it is |
    |---|---|
    | `"float32"` | the reference |
    | `"float16"` | weights float16: half the size |
    | `"dynamic"` | weights int8, activations quantized at run time |
    | `"weight_int8"` | kernels and tables int8, computes in float32 |
    | `"int16x8"` | weights int8, activations int16, inputs and outputs too |
    | `"int8"` | everything int8, inputs and outputs too |
    | `"uint8"` | as `"int8"`, inputs and outputs uint8 |
    | `"int4"` | as `"dynamic"`, kernels of dense layers int4 |
    | `"int8_int4"` | as `"int8_float_io"`, kernels of dense layers int4 |
    | `"int8_float_io"` | everything int8 but inputs and outputs |

    Args:
        source: Keras 3 model (Functional, Sequential, or subclassed and called once; one of policy `mixed_float16`
            computes in float32), tf_keras model, concrete function or `tf.function` with an input signature, path of a
            `.keras` or `.h5` file or of a SavedModel folder, or an object with `__tflite_source__()`. A QAT source
            keeps the ranges it was trained with; only tensors without a range are calibrated
            (`TFLiteModel.calibrated`). Or a dict signature name -> source, for one file with several signatures that
            share their weights, e.g. `{"embed": encoder, "classify": model}`; its `representative_data` is a dict
            signature name -> data (`TFLiteModel.session` calls them).
        precision: String, see the table. Defaults to `None`: what fits the target.
        representative_data: Inputs as in use (100-500 samples), from which int8 learns the ranges of a float source:
            array (n, ...), dict input name -> array, list with one array for each input, `tf.data.Dataset`, generator
            or function that gives batches x or (x, y), of which memory holds one at a time. For the other precisions
            it is optional and only used to check the file.
        target: Where the file is to run: `"xnnpack"` (CPU), `"gpu"`, `"edgetpu"`, `"nnapi"`, `"micro"`. It chooses a
            precision, says why and what stays on the CPU (`TFLiteModel.notes`), and refuses a file that does not run
            there. Defaults to `None`.
        batch: Integer >= 1, samples of one run; or None for any number, which costs extra operations, and is refused
            by some runtimes. Defaults to `1`.
        shapes: Sizes of inputs that the source leaves open, beside the batch: dict input name -> shape of one sample,
            e.g. `{"image": (224, 224, 3)}`; or `"open"`, which keeps them open: the interpreter must resize then, and
            GPU delegates and browsers refuse the file. Of several signatures: a dict signature name -> one of these,
            or `"open"`. Defaults to `None`: there must be none.
        layers: Layers with another precision than the rest of an integer file, dict layer name -> `"float32"`,
            `"int8"`, or `"int4"` (dense layers): e.g. `{"logits": "float32"}`. Defaults to `None`.
        sparse: Whether to store kernels without their zeros, which helps from about half of zeros on: a file of 0.3 of
            the size with 80 % zeros, not a faster one on most processors. With precisions `"float32"`, `"float16"`,
            `"weight_int8"`, and for convolutions in int8 files; kernels that runtimes get wrong so stay whole
            (`TFLiteModel.notes`), and a file that gains nothing is refused. Defaults to `False`.
        custom_ops: Names of operations that are not builtin and that the app's runtime has, e.g. `["FlexErf"]` (errors
            name them). A file with one is not loaded and not compared here, and says so (`TFLiteModel.notes`). Defaults
            to none.
        min_runtime: Oldest TensorFlow Lite release that must have every operation, e.g. `"2.9"`. Defaults to `None`.
        max_bytes: Integer >= 1, largest size of the file. Defaults to `None`.
        max_samples: Integer >= 1, no more samples than this are used: evenly spaced ones of arrays, the first of
            batches. Defaults to `512`.
        verbose: Let the converter talk. Defaults to `False`.

    Returns: a `TFLiteModel`.
    Raises: TypeError, ValueError, FileNotFoundError for bad arguments, before anything is converted; RuntimeError for
        Keras on another backend than TensorFlow; ConversionError, with the layer, if the source cannot become such a
        file.

    Example:
    ```
    file = tflite_export.convert(model, "int8", x_train[:500])
    file.save("model.tflite")
    ```
    """
    if isinstance(source, Mapping):
        check_numbers(precision, target, batch, min_runtime, max_bytes, max_samples)
        if layers is not None or target is not None or sparse or check_custom_ops(custom_ops):
            raise ValueError(
                "`layers`, `sparse`, `custom_ops` and `target` are for one source, not several signatures."
            )
        rule = precisions.get(str(precision))
        contract = Contract(rule, batch is None, min_runtime=min_runtime, max_bytes=max_bytes)
        return convert_signatures(
            source,
            contract,
            representative_data,
            batch=batch,
            shapes=shapes,
            max_samples=max_samples,
            verbose=verbose,
        )
    job, place = plan(
        source,
        precision,
        representative_data,
        target=target,
        batch=batch,
        shapes=shapes,
        layers=layers,
        sparse=sparse,
        custom_ops=custom_ops,
        min_runtime=min_runtime,
        max_bytes=max_bytes,
        max_samples=max_samples,
        verbose=verbose,
    )
    try:
        return carry_out(job, place)
    finally:
        warn_of(job)


def _loaded(job: Job, content: bytes, calibrated: tuple[str, ...]) -> TFLiteModel:
    """The file on the runtime.

    Raises: ConversionError if the runtime refuses what the converter has made.
    """
    try:
        return TFLiteModel.from_content(content, job.precision.name, calibrated, trusted=True)
    except ValueError as error:
        raise ConversionError(
            f"The {job.precision.name} file of {job.source.label} does not load: {error}\nChoose another precision, "
            "keep layers float in an integer file (`layers={name: 'float32'}`), or convert parts of the model to find "
            "what it is about."
        ) from error


def warn_of(job: Job) -> None:
    """Tells what is strange about data that ranges were learned from."""
    if job.data is None or job.source.has_ranges or not job.seen.count:
        return
    with silenced():
        found = job.seen.findings(rescales=True)
        if not job.source.processed:  # else the data are not those of the module
            found += of_norms(job.source.module, job.data.head)
    for finding in (*job.remarks, *found):
        warnings.warn(f"`representative_data`: {finding}", UserWarning, stacklevel=3)


def _advice(source: Source, message: str) -> str:
    """What the source says about the layers that an error names; about all it has doubts about if none is named."""
    named = {
        layer: text for layer, text in source.advice.items() if re.search(rf"(?<![\w.]){re.escape(layer)}\b", message)
    }
    return " ".join(f"Layer {layer!r}: {text}." for layer, text in (named or source.advice).items())


def carry_out(job: Job, target: Target | None) -> TFLiteModel:
    """Makes the file, and returns it only if it is right. Of a job that was carried out before with other `layers`, the
    ranges of its tensors are still there.

    Raises: As `convert`.
    """
    try:
        return _checked(job, target, *_made(job))
    except ConversionError as error:
        advice = _advice(job.source, str(error)) if job.precision.integer else ""
        if not advice:
            raise
        raise ConversionError(f"{error} {advice}", error.violations) from error


def _made(job: Job) -> tuple[bytes, tuple[str, ...], frozenset[str]]:
    """As `lowered`."""
    if job.ranges:
        return lowered_again(job)
    check_weights(job.source)
    with silenced(job.verbose):
        function = traced(job.source, job.batch)
    kinds = operations_in(function)
    ranged = job.source.has_ranges or any(kind.startswith("FakeQuantWithMinMax") for kind in kinds)
    job.check_ranges(ranged)
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as folder:
        with silenced(job.verbose):
            save(job.source, function, folder)
        return lowered(job, folder, ranged=ranged, loops=bool(kinds & LOOPS))


def _checked(
    job: Job, target: Target | None, content: bytes, calibrated: tuple[str, ...], floats: frozenset[str]
) -> TFLiteModel:
    with silenced(job.verbose):
        custom = {op.name for op in records.ops(content) if op.custom}
        if custom:
            model = TFLiteModel.unloaded(content, job.precision.name, calibrated)
        else:
            model = _loaded(job, content, calibrated)
        violations = replace(job.contract, floats=floats).check(model, job.source)
        notes = (
            *([not_run(custom)] if custom else []),
            *unchanged(model, job.source),
            *ranges(job.unseen, job.masked),
            *job.whole,
        )
        if not violations and not custom:
            remarks: list[str] = []
            violations = differences(model, job.source, job.precision, job.sample, remarks)
            job.remarks.extend(remarks)
            notes = (*notes, *remarks)
        if target is not None and not violations:
            fit, violations = assess(target, model)
            notes = (*notes, *fit)
    if violations:
        said = "\n".join(f"  {violation}" for violation in dict.fromkeys(map(str, violations)))
        raise ConversionError(
            f"The {job.precision.name} file of {job.source.label} is not as it must be:\n{said}", violations
        )
    return replace(model, notes=notes)
