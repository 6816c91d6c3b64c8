"""The command `tflite-export`: parse, call, exit code.

Exit codes: 0 done; 1 the file does not pass `verify`, or the model does not convert; 2 bad usage or input.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from tflite_export import precisions
from tflite_export.commands import COMMANDS
from tflite_export.errors import ConversionError

_EXAMPLES = """examples:
  tflite-export convert model.keras --precision int8 --calibration data.npz -o model.tflite
  tflite-export convert qat.keras --import kdopt --precision int8 -o model.tflite
  tflite-export best model.keras --calibration data.npz --validation held_out.npz -o model.tflite
  tflite-export verify model.keras model.tflite --data data.npz
  tflite-export benchmark model.tflite --sustained 60 --profile
  tflite-export benchmark float32.tflite int8.tflite --threads 1,2,4
  tflite-export inspect model.tflite --picture model.png
  tflite-export delegates model.tflite --name gpu
  tflite-export bundle model.tflite -o android --name Digits --package com.example.digits
  tflite-export c-array model.tflite -o firmware/model

A .npz file holds one array (n, ...) for each input of the model, by name; if the model has one input, any name will do.
Exit codes: 0 done; 1 not verified, or not convertible; 2 bad usage or input."""
TARGETS = ("xnnpack", "gpu", "edgetpu", "nnapi", "micro")
KERNELS = ("xnnpack", "builtin", "reference")
_RAW = argparse.RawDescriptionHelpFormatter
# How messages of the library call an argument -> the option that it is here.
_ARGUMENTS = {
    "`layers={name: 'float32'}`": "--layer NAME=float32",
    "`layers`": "--layer",
    "`representative_data`": "--calibration",
    "representative_data": "--calibration",
    "overwrite=True": "--overwrite",
    "verbose=True": "--verbose",
    "`custom_ops`": "--custom-op",
    "custom_ops=": "--custom-op ",
    'shapes="open"': 'shapes="open" (in Python)',
    "batch=None": "--batch none",
    "batch=1": "--batch 1",
}


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
        return COMMANDS[options.command](options)
    except (ConversionError, ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"tflite-export: {_with_options(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, ConversionError) else 2


def _with_options(message: str) -> str:
    for argument, option in _ARGUMENTS.items():
        message = message.replace(argument, option)
    return re.sub(r"`?shapes=\{'([^']+)': \(([\d, ]+)\)\}`?", _shape_option, message)


def _shape_option(found: re.Match[str]) -> str:
    return f"--shape {found[1]}={found[2].replace(' ', '').strip(',')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tflite-export",
        description="Checked .tflite files of Keras models.",
        epilog=_EXAMPLES,
        formatter_class=_RAW,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for add in (_convert, _best, _verify, _benchmark, _inspect, _delegates, _update, _bundle, _c_array):
        command = add(commands)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _convert(commands: Any) -> argparse.ArgumentParser:
    summaries = "\n".join(f"  {name:14} {precisions.get(name).summary}" for name in precisions.names())
    command = commands.add_parser(
        "convert", help="model -> .tflite", epilog=f"precisions:\n{summaries}", formatter_class=_RAW
    )
    _add_model(command)
    command.add_argument("--precision", choices=precisions.names(), help="needed unless --target chooses it")
    command.add_argument("--target", choices=TARGETS, help="where it is to run: chooses the precision, says why")
    command.add_argument("--calibration", metavar="NPZ", help="representative inputs; int8 needs them")
    _add_output(command, "TFLITE", "file to write")
    _add_sizes(command)
    command.add_argument(
        "--layer",
        dest="layers",
        action="append",
        default=[],
        type=_layer,
        metavar="NAME=PRECISION",
        help="float32, int8 or int4 for one layer of an integer file; may be repeated",
    )
    command.add_argument("--max-samples", type=int, default=512, metavar="N", help="of the inputs (default 512)")
    command.add_argument("--sparse", action="store_true", help="store kernels without their zeros")
    command.add_argument(
        "--custom-op",
        dest="custom_ops",
        action="append",
        default=[],
        metavar="NAME",
        help="operation that is not builtin and that the app has, e.g. FlexErf; may be repeated",
    )
    _add_processing(command)
    command.add_argument("--min-runtime", metavar="RELEASE", help="TensorFlow Lite release that must run it, e.g. 2.9")
    command.add_argument("--max-bytes", type=int, metavar="N", help="largest size of the file")
    command.add_argument("--verbose", action="store_true", help="show what the converter says")
    return command


def _best(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("best", help="the fastest file that keeps the accuracy")
    _add_model(command)
    command.add_argument("--calibration", required=True, metavar="NPZ", help="representative inputs")
    command.add_argument("--validation", required=True, metavar="NPZ", help="inputs, and their classes as 'y'")
    command.add_argument("--max-drop", type=float, default=0.01, metavar="SHARE", help="of the accuracy (default 0.01)")
    command.add_argument("--prefer", choices=("latency", "size"), default="latency")
    _add_sizes(command)
    _add_processing(command)
    _add_output(command, "TFLITE", "file to write")
    return command


def _verify(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("verify", help="compare a .tflite with its model, or with another .tflite")
    _add_model(command, "; or .tflite file")
    command.add_argument("tflite", help=".tflite file")
    command.add_argument("--data", required=True, metavar="NPZ", help="inputs to compare on")
    command.add_argument("--tolerance", type=float, help="largest error, as a fraction of the output's peak")
    command.add_argument("--layers", action="store_true", help="measure every layer, also of a file that passes")
    command.add_argument("--save", action="store_true", help="write model.verify.json beside model.tflite")
    _add_processing(command)
    return command


def _benchmark(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("benchmark", help="time one inference of a .tflite; several are timed in turns")
    command.add_argument("tflite", nargs="+", help=".tflite file; of several, the ratios to the first")
    command.add_argument(
        "--threads", type=_counts, default=(1,), metavar="N[,N...]", help="CPU threads; several: in turns (default 1)"
    )
    command.add_argument("--seconds", type=float, default=1.0, help="time to spend on each (default 1)")
    command.add_argument("--kernels", choices=KERNELS, default="xnnpack", help="of the runtime (default xnnpack)")
    command.add_argument(
        "--sustained", type=float, metavar="SECONDS", help="also inferences per second over this time; 60 for video"
    )
    command.add_argument("--profile", action="store_true", help="also the time of each operation")
    return command


def _inspect(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("inspect", help="what is in a .tflite")
    command.add_argument("tflite", help=".tflite file")
    command.add_argument("--picture", metavar="PNG", help="bytes and work by layer; .png, .svg or .pdf")
    return command


def _delegates(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("delegates", help="which accelerator runs which operation, and why not")
    command.add_argument("tflite", help=".tflite file")
    command.add_argument("--name", dest="names", action="append", metavar="NAME", help="only this one; may be repeated")
    return command


def _update(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("update", help="a patch from one version of a .tflite to the next")
    command.add_argument("old", help=".tflite file that devices have")
    command.add_argument("new", help=".tflite file that they are to have")
    _add_output(command, "PATCH", "file to write")
    return command


def _bundle(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("bundle", help="a folder for an Android app")
    command.add_argument("tflite", help=".tflite file")
    command.add_argument("--name", default="Model", help="of the Kotlin classes (default Model)")
    command.add_argument("--package", default="com.example.model", help="of the Kotlin classes")
    command.add_argument("--labels", metavar="TXT", help="one label a line")
    command.add_argument("--data", metavar="NPZ", help="inputs of the golden runs")
    command.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    _add_output(command, "FOLDER", "folder to make")
    return command


def _c_array(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("c-array", help="a .tflite as an array in C")
    command.add_argument("tflite", help=".tflite file")
    command.add_argument("--name", help="of the array (default: that of the file)")
    _add_output(command, "PATH", "firmware/model gives model.h and model.c")
    return command


def _add_model(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument("model", help=f".keras or .h5 file, or SavedModel folder{more}")
    command.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import it first, for the custom classes in the .keras file: kdopt for a QAT model",
    )


def _add_sizes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch", type=_batch, default=1, metavar="N", help="samples a run, or 'any' (default 1)")
    command.add_argument(
        "--shape",
        dest="shapes",
        action="append",
        default=[],
        type=_shape,
        metavar="NAME=N,N,...",
        help="of one sample, for an input with open sizes: image=224,224,3; may be repeated",
    )


def _add_processing(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("inside the file, around the model")
    group.add_argument("--rescale", type=_pair, metavar="SCALE,OFFSET", help="the model gets input * SCALE + OFFSET")
    group.add_argument("--uint8-input", action="store_true", help="the input is uint8 pixels")
    group.add_argument(
        "--append",
        dest="steps",
        action="append",
        default=[],
        choices=("softmax", "sigmoid", "argmax", "top_k"),
        help="to the output; may be repeated",
    )
    group.add_argument("-k", type=int, default=5, help="of --append top_k (default 5)")


def _add_output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("-o", "--output", required=True, metavar=metavar, help=text)


def _batch(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1 or 'any'; got {text!r}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, or several as 1,2,4; got {text!r}")
    return tuple(map(int, parts))


def _layer(text: str) -> tuple[str, str]:
    name, equals, precision = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=PRECISION, e.g. logits=float32; got {text!r}")
    return name, precision


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    parts = sizes.split(",")
    if not equals or not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected NAME=N,N,..., e.g. image=224,224,3; got {text!r}")
    return name, tuple(int(part) for part in parts)


def _pair(text: str) -> tuple[float, float]:
    try:
        scale, offset = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected SCALE,OFFSET, e.g. 0.00392157,0; got {text!r}") from None
    return scale, offset
