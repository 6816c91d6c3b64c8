"""From a source to a checked `TFLiteModel`."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_export import precisions
from tflite_export.conversion import contract
from tflite_export.conversion.explain import conversion_error
from tflite_export.errors import ConversionError
from tflite_export.precisions import Precision
from tflite_export.proof.model import TFLiteModel
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import flatbuffer, kernels, records

Arrays = Mapping[str, np.ndarray]
_ATTEMPTS = 4
_LOOPS = {"While", "StatelessWhile", "If", "StatelessIf"}


def convert(
    source: Any,
    precision: str,
    representative_data: Any = None,
    *,
    batch: int | None = 1,
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
    | `"int8_weights"` | kernels of convolutions and dense layers int8, computes in float32 |
    | `"int16x8"` | weights int8, activations int16, inputs and outputs too |
    | `"int8"` | everything int8, inputs and outputs too |
    | `"int8_float_io"` | everything int8 but inputs and outputs |

    Args:
        source: Keras 3 model (Functional, Sequential, or subclassed and called once), tf_keras model, path of a
            `.keras` file or of a SavedModel folder, or an object with `__tflite_source__()`. A QAT source keeps the
            ranges it was trained with; only tensors without a range are calibrated (`TFLiteModel.calibrated`).
        precision: String, see the table.
        representative_data: Inputs as in use (100-500 samples), from which int8 learns the ranges of a float source:
            array (n, ...), dict input name -> array, list with one array for each input, `tf.data.Dataset`, generator
            or function that gives batches x or (x, y). For the other precisions it is optional and only used to check
            the file.
        batch: Integer >= 1, samples of one run; or None for any number, which costs extra operations, and is refused
            by some runtimes. Defaults to `1`.
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
    rule = precisions.get(precision)
    _check_integer("batch", batch, optional=True)
    _check_integer("max_samples", max_samples)
    with silenced(verbose):
        resolved = resolve(source)
    _check_batch(resolved, batch)
    data = None
    if representative_data is not None:
        data = samples.read(resolved.inputs, representative_data, limit=max_samples)
    try:
        return _converted(resolved, rule, data, batch, verbose)
    except ConversionError as error:
        advice = _advice(resolved, str(error)) if rule.integer else ""
        if not advice:
            raise
        raise ConversionError(f"{error} {advice}") from error


def _advice(source: Source, message: str) -> str:
    """What the source says about the layers that an error names; about all it has doubts about if none is named."""
    named = {
        layer: text for layer, text in source.advice.items() if re.search(rf"(?<![\w.]){re.escape(layer)}\b", message)
    }
    return " ".join(f"Layer {layer!r}: {text}." for layer, text in (named or source.advice).items())


def _converted(source: Source, rule: Precision, data: Arrays | None, batch: int | None, verbose: bool) -> TFLiteModel:
    _check_weights(source)
    with silenced(verbose):
        function = _traced(source, batch)
    kinds = _operations(function)
    ranged = source.has_ranges or any(kind.startswith("FakeQuantWithMinMax") for kind in kinds)
    _check_ranges(source, rule, ranged, data)
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as folder:
        with silenced(verbose):
            _save(source, function, folder)
        run = _converter(source, rule, folder, batch, verbose)
        if rule.integer and kinds & _LOOPS:
            _refuse_loops(source, rule, _converter(source, precisions.get("float32"), folder, batch, verbose)(None))
        content, calibrated = _lower(source, rule, run, data, ranged)
    content, floats = kernels.patch(content, _kernels(source, rule, content), rule.integer)
    if rule.name == "int16x8":
        content = kernels.widen_biases(content)
    sample = _sample(source, data, batch)
    with silenced(verbose):
        model = TFLiteModel.from_content(content, rule.name, calibrated)
        contract.check(model, source, rule, sample, floats)
    return model


def _traced(source: Source, batch: int | None) -> Any:
    """The source as a concrete function."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec((batch if source.fixed_batch is None else source.fixed_batch, *spec.shape[1:]), spec.dtype, name)
        for name, spec in source.inputs.items()
    ]
    try:
        return tf.function(source.call, input_signature=specs, autograph=False).get_concrete_function()
    except Exception as error:
        raise ConversionError(f"{source.label} cannot be traced into a TensorFlow graph: {error}") from error


def _operations(function: Any) -> set[str]:
    """Kinds of TensorFlow operations in a concrete function, inner functions included."""
    graph = function.graph.as_graph_def()
    return {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}


def _save(source: Source, function: Any, folder: str) -> None:
    """Writes a SavedModel: `from_concrete_functions` silently drops the weights of a Keras 3 model."""
    import tensorflow as tf

    holder = tf.Module()
    # The variables alone: saving a tf_keras model itself would trace every layer of it again.
    holder.tracked = [*_variables(source.module), *function.graph.variables]
    if not hasattr(source.module, "variables"):
        holder.module = source.module
    try:
        tf.saved_model.save(holder, folder, signatures={"serving_default": function})
    except (AssertionError, ValueError) as error:  # a table of a lookup layer, a name TensorFlow cannot store
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{source.label} cannot be saved for the converter: {reason} Do look-ups (StringLookup, IntegerLookup) "
            "before the model, and give model and layers plain names."
        ) from error


def _check_weights(source: Source) -> None:
    """Refuses weights that are no numbers, of which the converter says something else."""
    for variable in getattr(source.module, "variables", ()):
        values = np.asarray(variable) if "float" in str(variable.dtype) else np.zeros(())
        if not np.isfinite(values.astype(np.float32)).all():
            raise ConversionError(
                f"{source.label}: {getattr(variable, 'path', variable.name)!r} holds NaN or infinity. Its training has "
                "diverged: start again from weights before that, with a smaller learning rate or clipped gradients."
            )


def _variables(module: Any) -> list[Any]:
    """The tf.Variables of a module; those of Keras 3 hold one."""
    import tensorflow as tf

    held = [getattr(variable, "value", variable) for variable in getattr(module, "variables", ())]
    return [variable for variable in held if isinstance(variable, tf.Variable)]


def _lower(
    source: Source, rule: Precision, run: Callable[[Arrays | None], bytes], data: Arrays | None, ranged: bool
) -> tuple[bytes, tuple[str, ...]]:
    """The file, and the layers whose ranges were calibrated though the source was trained with ranges."""
    if not rule.integer:
        return run(None), ()
    if not ranged:
        return _calibrated(source, run, data), ()
    content = run(None)
    left = contract.float_layers(content, source)
    if not left:
        return content, ()
    if data is None and source.calibration is not None:
        data = samples.read(source.inputs, source.calibration, what="calibration of the source")
    if data is None or rule.name == "int16x8":
        raise ConversionError(
            f"{source.label} has no range for: {', '.join(left)}. They would stay float in the {rule.name} file. Pass "
            "`representative_data`, from which only these ranges are taken, or train them."
        )
    return _calibrated(source, run, data), left


def _kernels(source: Source, rule: Precision, content: bytes) -> Any:
    """Kernels that the file is to have."""
    if rule.name == "int8_weights" and not source.kernels:
        return kernels.of_float_file(content)
    return source.kernels


def _calibrated(source: Source, run: Callable[[Arrays | None], bytes], data: Arrays | None) -> bytes:
    """The file with ranges from `data`.

    TensorFlow's quantizer is not deterministic: of one unrolled LSTM, two of twelve runs on the same input left the
    operation with several outputs (SPLIT) float. So a file with float operations is made again a few times; the
    contract refuses what is still there.
    """
    for _ in range(_ATTEMPTS):
        content = run(data)
        if not contract.float_layers(content, source):
            break
    return content


def _refuse_loops(source: Source, rule: Precision, content: bytes) -> None:
    """TensorFlow's calibrator ends the whole process (segmentation fault) on a file with a loop."""
    found = records.ops(content, source.layers, scopes_numbered=source.scopes_numbered)
    loops = dict.fromkeys(op.layer or op.outputs[0].name for op in found if op.name in ("WHILE", "IF"))
    if loops:
        raise ConversionError(
            f"{source.label} does not convert to {rule.name}: layer {', '.join(map(repr, loops))} is a loop, which the "
            "converter cannot calibrate. Rebuild a recurrent layer with `unroll=True` and copy the weights, or choose "
            f"'dynamic' or 'float16'{' for the model without fake-quantization' if source.has_ranges else ''}."
        )


def _converter(
    source: Source, rule: Precision, folder: str, batch: int | None, verbose: bool
) -> Callable[[Arrays | None], bytes]:
    """Callable(samples or None) -> file."""

    def run(given: Arrays | None) -> bytes:
        size = source.fixed_batch or batch or 1
        representative = None if given is None else lambda: samples.groups(given, size)
        return _run_converter(source, rule, folder, representative, batch, verbose)

    return run


def _run_converter(
    source: Source,
    rule: Precision,
    folder: str,
    representative: Callable[[], Iterator[Arrays]] | None,
    batch: int | None,
    verbose: bool,
) -> bytes:
    failure: Exception | None = None
    with silenced(verbose) as said:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        rule.configure(converter, representative)
        try:
            content = flatbuffer.order(converter.convert(), list(source.inputs), list(source.outputs))
        except Exception as error:  # ConverterError is a plain Exception
            failure = error
    if failure is not None:
        raise conversion_error(failure, source, rule.name, batch, said.text) from failure
    return content


def _sample(source: Source, data: Arrays | None, batch: int | None) -> Arrays:
    if data is None and source.calibration is not None:
        data = samples.read(source.inputs, source.calibration, what="calibration of the source")
    if data is None:
        return samples.random_sample(source.inputs, max(batch or 1, 4))
    return {name: array[: contract.SAMPLES] for name, array in data.items()}


def _check_integer(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1{' or None' if optional else ''}; got {value!r}.")


def _check_batch(source: Source, batch: int | None) -> None:
    fixed = source.fixed_batch
    if fixed is not None and fixed != batch:
        raise ValueError(f"{source.label} was built with batch size {fixed}: pass `batch={fixed}`; got {batch}.")


_TAKE_OUT = (
    "take the fake-quantization out first: `model.strip()` for kdopt's models, `to_plain()` for a layer in `Quantized`"
)


def _check_ranges(source: Source, rule: Precision, ranged: bool, data: Arrays | None) -> None:
    if source.precisions is not None and rule.name not in source.precisions and (ranged or source.kernels):
        raise ValueError(
            f"{source.label} was quantized for {' or '.join(map(repr, source.precisions))}; got {rule.name!r}. Choose "
            f"one of those, or {_TAKE_OUT}."
        )
    if ranged and not rule.integer:
        raise ValueError(
            f"{source.label} holds fake-quantization (QAT): as {rule.name!r} it would be a float net with rounding "
            f"inside. Convert it to 'int8' or 'int8_float_io', or {_TAKE_OUT}."
        )
    if rule.integer and not ranged and data is None:
        raise ValueError(
            f"{rule.name!r} needs `representative_data` for a float source: 100-500 samples as in use, e.g. "
            f"convert(model, {rule.name!r}, x_train[:500]). Without data: 'dynamic' or 'float16', or train with "
            "quantization (QAT)."
        )
