"""What each command of `tflite-export` does with its options; the parser is in `cli`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tflite_export import precisions

Options = argparse.Namespace


def convert(options: Options) -> int:
    """A model to a file."""
    output = _file_to_write(options.output)
    data = None if options.calibration is None else read_npz(options.calibration)
    from tflite_export.conversion.convert import convert as run

    if options.precision is None and options.target is None:
        raise ValueError("Pass --precision, or --target, which chooses one.")
    source = _processed(_source(options.model, options.verbose), options)
    integer = options.precision is not None and precisions.get(options.precision).integer
    if data is None and integer and not source.has_ranges:
        raise ValueError(f"--precision {options.precision} needs --calibration: an .npz of 100-500 inputs as in use.")
    model = run(
        source,
        options.precision,
        _fit(data, source),
        target=options.target,
        batch=options.batch,
        shapes=dict(options.shapes) or None,
        layers=dict(options.layers) or None,
        sparse=options.sparse,
        custom_ops=options.custom_ops,
        max_samples=options.max_samples,
        min_runtime=options.min_runtime,
        max_bytes=options.max_bytes,
        verbose=options.verbose,
    )
    model.save(output)
    _say(options, model, f"{output}: {model}")
    return 0


def best(options: Options) -> int:
    """The fastest file that keeps the accuracy on labeled inputs."""
    import numpy as np

    output = _file_to_write(options.output)
    data, held = read_npz(options.calibration), read_npz(options.validation)
    if "y" not in held:
        raise ValueError(f"--validation {options.validation!r} must hold the labels as 'y'; it holds {sorted(held)}.")
    labels = held.pop("y").ravel()
    from tflite_export.proof.best import convert_best

    source = _processed(_source(options.model, False), options)

    def accuracy(file: Any) -> float:
        found = file.predict(_fit(held, source))
        if isinstance(found, dict):
            raise ValueError("`best` needs a classifier with one output; use convert_best in Python for others.")
        return float(np.mean(np.argmax(found, axis=-1).ravel() == labels))

    chosen = convert_best(
        source,
        _fit(data, source),
        accuracy,
        max_drop=options.max_drop,
        prefer=options.prefer,
        batch=options.batch,
        shapes=dict(options.shapes) or None,
        verbose=0 if options.json else 1,
    )
    chosen.file.save(output)
    _say(options, chosen, f"{output}: {chosen}")
    return 0


def verify(options: Options) -> int:
    """A file beside its source: exit code 1 if it does not pass."""
    data = read_npz(options.data)
    from tflite_export.proof.file_source import file_source
    from tflite_export.proof.verification import verify as run
    from tflite_export.runtime.model import TFLiteModel

    file = TFLiteModel.load(options.tflite)
    source: Any = file_source(options.model)
    if source is not None and _has_processing(options):
        raise ValueError("--rescale, --uint8-input and --append go with a model, not with a .tflite file.")
    if source is None:
        source = _processed(_source(options.model, False), options)
    result = run(source, file, _fit(data, source), options.tolerance, layers=options.layers)
    if options.save:
        result.save(options.tflite)
    rows = "".join(f"\n  {layer}" for layer in result.layers) if options.layers else ""
    _say(options, result, f"{result}{rows}")
    return 0 if result.passed else 1


def benchmark(options: Options) -> int:
    """What an inference costs; of several files or numbers of threads, which is faster, in turns."""
    result = _compared(options) if len(options.tflite) * len(options.threads) > 1 else _benchmarked(options)
    _say(options, result, str(result))
    return 0


def _benchmarked(options: Options) -> Any:
    from tflite_export.proof.latency import benchmark as run

    return run(
        options.tflite[0],
        options.threads[0],
        seconds=options.seconds,
        kernels=options.kernels,
        sustained=options.sustained,
        profile=options.profile,
        verbose=int(sys.stderr.isatty()),
    )


def _compared(options: Options) -> Any:
    if options.sustained is not None or options.profile:
        raise ValueError("--sustained and --profile are for one file and one number of threads.")
    from tflite_export.proof.comparison import compare

    rounds = 20
    return compare(
        {path: path for path in options.tflite},
        threads=options.threads,
        rounds=rounds,
        block_ms=1e3 * options.seconds / rounds,
        kernels=options.kernels,
    )


def inspect(options: Options) -> int:
    """What is in a file."""
    from tflite_export.tflite.inspection import inspect as run

    found = run(options.tflite)
    if options.picture is not None:
        found.save(options.picture)
    _say(options, found, str(found))
    return 0


def delegates(options: Options) -> int:
    """Who runs a file."""
    from tflite_export.hardware.assessment import delegates as run

    report = run(options.tflite, options.names)
    _say(options, report, str(report))
    return 0


def update(options: Options) -> int:
    """A patch from one version of a file to the next."""
    output = _file_to_write(options.output)
    from tflite_export.files import write_atomic
    from tflite_export.tflite.update import update as run

    made = run(options.old, options.new)
    write_atomic(output, made.patch)
    _say(options, made, f"{output}: {made}")
    return 0


def bundle(options: Options) -> int:
    """A folder for an Android app."""
    data: Any = None if options.data is None else read_npz(options.data)
    labels = None if options.labels is None else _lines(options.labels)
    from tflite_export.app.android import android_bundle
    from tflite_export.runtime.model import TFLiteModel

    file = TFLiteModel.load(options.tflite)
    if data is not None and len(data) == len(file.inputs) == 1:
        data = next(iter(data.values()))
    made = android_bundle(
        file,
        options.output,
        name=options.name,
        package=options.package,
        labels=labels,
        data=data,
        overwrite=options.overwrite,
    )
    _say(options, made, str(made))
    return 0


def c_array(options: Options) -> int:
    """A file as an array in C."""
    from tflite_export.app.c_source import c_array as run

    folder = Path(options.output).is_dir() or options.output.endswith(("/", "\\"))
    output = Path(options.output) / Path(options.tflite).stem if folder else options.output
    made = run(options.tflite, output, name=options.name)
    _say(options, made, str(made))
    return 0


def _lines(path: str) -> list[str]:
    """The lines of a text file.

    Raises: FileNotFoundError, ValueError.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path!r} is no text file with one label a line.") from None


def read_npz(path: str) -> dict[str, Any]:
    """The arrays of a `.npz` file, by name.

    Raises: FileNotFoundError, ValueError.
    """
    import numpy as np

    if not Path(path).is_file():
        raise FileNotFoundError(f"No such file: {path!r}.")
    if Path(path).read_bytes()[:2] != b"PK" and Path(path).suffix != ".npy":
        raise ValueError(f"{path!r} is not a readable .npz file: make one by np.savez(path, name=array).")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it is a .npy file; save it with np.savez(path, array)")
        with stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"{path!r} is not a readable .npz file: {error}") from error


def _source(path: str, verbose: bool) -> Any:
    from tflite_export.silence import silenced
    from tflite_export.sources.resolve import resolve

    with silenced(verbose):
        return resolve(path)


def _has_processing(options: Options) -> bool:
    return options.rescale is not None or options.uint8_input or bool(options.steps)


def _processed(source: Any, options: Options) -> Any:
    """The source with what is to be folded in."""
    if not _has_processing(options):
        return source
    from tflite_export.sources.processing import fold_processing

    return fold_processing(
        source,
        rescale=options.rescale,
        uint8_input=options.uint8_input,
        output=options.steps or None,
        k=options.k,
    )


def _file_to_write(path: str) -> Path:
    if Path(path).is_dir():
        raise ValueError(f"--output {str(path)!r} is a folder; give a file name.")
    there = next(one for one in Path(path).absolute().parents if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--output {str(path)!r} cannot be written: {str(there)!r} is no folder, or write-protected.")
    return Path(path)


def _fit(data: dict[str, Any] | None, source: Any) -> Any:
    """A single array stands for the single input, whatever its name."""
    if data is not None and len(data) == 1 and len(source.inputs) == 1:
        return next(iter(data.values()))
    return data


def _say(options: Options, result: Any, text: str) -> None:
    print(json.dumps(_plain(result), indent=1) if options.json else text)


def _plain(value: Any) -> Any:
    """For JSON: records without bytes, paths and numbers that it cannot hold as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


COMMANDS: dict[str, Callable[[Options], int]] = {
    "convert": convert,
    "best": best,
    "verify": verify,
    "benchmark": benchmark,
    "inspect": inspect,
    "delegates": delegates,
    "update": update,
    "bundle": bundle,
    "c-array": c_array,
}
