"""The command `kdopt`: parse, call, print, exit code.

Exit codes: 0 done; 1 a file of the demo is not equal to its source; 2 bad usage or input.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from kdopt import __version__

DATASETS = ("digits", "fashion_mnist")  # as in kdopt.pipeline.datasets, which would load Keras

_EXAMPLES = """examples:
  kdopt demo --output out
  kdopt demo --output out --dataset fashion_mnist --seed 1
  kdopt measure model.keras --input-shape 224,224,3"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Strings without the program's name; None for those of the process.

    Returns: the exit code.
    """
    options = _parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"kdopt: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="kdopt",
        description="From a Keras model to the smallest, fastest checked .tflite.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"kdopt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="teacher -> sparse distilled student -> int8 .tflite, with a report")
    demo.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where files and report go")
    demo.add_argument("--dataset", default="digits", choices=DATASETS, help="default digits (needs no download)")
    demo.add_argument("--seed", type=int, default=0, help="integer >= 0 (default 0)")
    demo.add_argument("--quick", action="store_true", help="very few epochs: to try it, not for its numbers")
    demo.set_defaults(run=_demo)
    measure = commands.add_parser("measure", help="parameters, zeros, multiply-accumulates of a .keras file")
    measure.add_argument("model", help=".keras file")
    measure.add_argument("--input-shape", type=_shape, metavar="H,W,C", help="of a sample, if the model leaves it open")
    measure.set_defaults(run=_measure)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected positive integers with commas, e.g. 224,224,3; got {text!r}")
    return tuple(map(int, sizes))


def _demo(options: argparse.Namespace) -> int:
    _say("Loading TensorFlow ...")
    from kdopt.pipeline.demo import run

    report = run(options.output, options.dataset, seed=options.seed, quick=options.quick, say=_say)
    return 0 if all(variant.verification["passed"] for variant in report.variants) else 1


def _measure(options: argparse.Namespace) -> int:
    import keras

    from kdopt.core import measure

    model = keras.models.load_model(options.model)
    for line in measure.by_layer(model, options.input_shape):
        macs = f"unknown, {line.why}" if line.macs is None else f"{line.macs:,}"
        print(f"{line.path} ({line.kind}): {line.parameters:,} parameters, {line.nonzero:,} not zero, MACs {macs}")
    print(
        f"{model.name}: {measure.parameters(model):,} parameters, {measure.nonzero(model):,} not zero, "
        f"{measure.size_bytes(model):,} bytes of weights, MACs {measure.macs(model, options.input_shape):,}"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
