"""The command `tflite-export`: parse, call, print, exit code.

Exit codes: 0 done; 1 the file does not pass `verify`, or the model does not convert; 2 bad usage or input.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tflite_export import precisions
from tflite_export.errors import ConversionError

_EXAMPLES = """examples:
  tflite-export convert model.keras --precision int8 --calibration data.npz -o model.tflite
  tflite-export convert qat.keras --import kdopt --precision int8 -o model.tflite
  tflite-export verify model.keras model.tflite --data data.npz
  tflite-export benchmark model.tflite --threads 1

A .npz file holds one array (n, ...) for each input of the model, by name; if the model has one input, any name will do.
Exit codes: 0 done; 1 not verified, or not convertible; 2 bad usage or input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Strings without the program's name; None for those of the process.

    Returns: the exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        for module in getattr(options, "modules", ()):
            importlib.import_module(module)
        return options.run(options)
    except ConversionError as error:
        print(f"tflite-export: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"tflite-export: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="tflite-export",
        description="Checked .tflite files of Keras models.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    summaries = "\n".join(f"  {name:14} {precisions.get(name).summary}" for name in precisions.names())
    convert = commands.add_parser(
        "convert", help="model -> .tflite", epilog=f"precisions:\n{summaries}", formatter_class=raw
    )
    convert.add_argument("model", help=".keras file or SavedModel folder")
    convert.add_argument("--precision", required=True, choices=precisions.names())
    convert.add_argument("--calibration", metavar="NPZ", help="representative inputs; int8 needs them")
    convert.add_argument("-o", "--output", required=True, metavar="TFLITE", help="file to write")
    convert.add_argument("--batch", type=_batch, default=1, metavar="N", help="samples a run, or 'any' (default 1)")
    _add_import(convert)
    convert.add_argument("--verbose", action="store_true", help="show what the converter says")
    convert.set_defaults(run=_convert)
    verify = commands.add_parser("verify", help="compare a .tflite with its model")
    verify.add_argument("model", help=".keras file or SavedModel folder")
    verify.add_argument("tflite", help=".tflite file")
    verify.add_argument("--data", required=True, metavar="NPZ", help="inputs to compare on")
    verify.add_argument("--tolerance", type=float, help="largest error, as a fraction of the output's peak")
    _add_import(verify)
    verify.set_defaults(run=_verify)
    benchmark = commands.add_parser("benchmark", help="time one inference of a .tflite")
    benchmark.add_argument("tflite", help=".tflite file")
    benchmark.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    benchmark.add_argument("--seconds", type=float, default=1.0, help="time to spend (default 1)")
    benchmark.set_defaults(run=_benchmark)
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import it first, for the custom classes in the .keras file: kdopt for a QAT model",
    )


def _batch(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1 or 'any'; got {text!r}")
    return int(text)


def _convert(options: argparse.Namespace) -> int:
    output = Path(options.output)
    if output.is_dir():
        raise ValueError(f"--output {str(output)!r} is a folder; give a file name.")
    data = None if options.calibration is None else read_npz(options.calibration)
    from tflite_export.conversion.convert import convert
    from tflite_export.silence import silenced
    from tflite_export.sources.resolve import resolve

    with silenced(options.verbose):
        source = resolve(options.model)
    if data is None and precisions.get(options.precision).integer and not source.has_ranges:
        raise ValueError(f"--precision {options.precision} needs --calibration: an .npz of 100-500 inputs as in use.")
    model = convert(source, options.precision, _fit(data, source), batch=options.batch, verbose=options.verbose)
    model.save(output)
    print(f"{output}: {model}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    data = read_npz(options.data)
    from tflite_export.proof.verification import verify
    from tflite_export.runtime.model import TFLiteModel
    from tflite_export.silence import silenced
    from tflite_export.sources.resolve import resolve

    file = TFLiteModel.load(options.tflite)
    with silenced():
        source = resolve(options.model)
    result = verify(source, file, _fit(data, source), options.tolerance)
    print(result)
    return 0 if result.passed else 1


def _benchmark(options: argparse.Namespace) -> int:
    from tflite_export.proof.latency import benchmark

    print(benchmark(options.tflite, options.threads, seconds=options.seconds))
    return 0


def read_npz(path: str) -> dict[str, Any]:
    """The arrays of a `.npz` file, by name.

    Raises: FileNotFoundError, ValueError.
    """
    import numpy as np

    if not Path(path).is_file():
        raise FileNotFoundError(f"No such file: {path!r}.")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it is a .npy file; save it with np.savez(path, array)")
        with stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"{path!r} is not a readable .npz file: {error}") from error


def _fit(data: dict[str, Any] | None, source: Any) -> Any:
    """A single array stands for the single input, whatever its name."""
    if data is not None and len(data) == 1 and len(source.inputs) == 1:
        return next(iter(data.values()))
    return data
