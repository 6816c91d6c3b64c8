"""Which nets become which files, and how near each file is to its net.

    python benchmarks/export_coverage.py run [--net NET ...] [--data-dir DIR] [--file export.jsonl]
    python benchmarks/export_coverage.py table [--file export.jsonl]

`run` appends a record a net and precision, each net in a process of its own, and goes on where it was stopped: the
nets of tests/tflite_export/export_nets.py, those of MLPerf Tiny (trained, as files, where DIR has them), and the
smallest of each family of keras.applications on small images; but for MLPerf's with the weights that Keras gives new
nets, and statistics of BatchNormalization taken from data. `table` shows for each file which share of the tolerance of
`verify` its error takes, or what stands in the way.
"""

import argparse
import json
import os
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("tflite_export", "graph", "quantization")]
MINUTES = 40


def nets(folder):
    """Name -> function that gives the model, or the path of a file."""
    import architectures
    import keras
    import qat_nets
    from export_nets import SMALL

    def built(make):
        return make if make is architectures.subclassed else lambda: qat_nets.alive(make())

    def application(name):
        side = 96 if name.startswith(("Inception", "Xception", "NASNet")) else 64
        options = {"weights": None, "input_shape": (side, side, 3), "classes": 10, "classifier_activation": None}
        return lambda: qat_nets.alive(getattr(keras.applications, name)(**options))

    found = {make.__name__: built(make) for make in SMALL}
    for name, file in architectures.MLPERF.items():
        path = folder / "mlperf-tiny" / file
        if path.exists():
            found[name] = lambda path=path: path
    return found | {name: application(name) for name in architectures.SMALLEST}


def one(options):
    """Prints a record for each precision of one net."""
    import keras
    from export_nets import PRECISIONS, data_of, export

    from tflite_export.sources.resolve import resolve

    keras.utils.set_random_seed(0)
    source = nets(options.data_dir)[options.net[0]]()
    model = resolve(source).module if isinstance(source, Path) else source
    given, held = data_of(model, 1, 32), data_of(model, 3, 8)
    if "esnet" in options.net[0].lower() and isinstance(source, Path):
        given, held = (photographs(options.data_dir, given, rows) for rows in (slice(0, 32), slice(32, 40)))
    elif options.net[0].startswith("vww"):
        given, held = ({name: np.clip(x / 4 + 0.5, 0, 1) for name, x in part.items()} for part in (given, held))
    for precision in PRECISIONS:
        print(json.dumps(export(source, precision, given, held)), flush=True)


def photographs(folder, like, rows):
    """Of CIFAR-10, as the nets of MLPerf Tiny were trained on: numbers of 0 to 255."""
    images = np.load(folder / "cifar10" / "cifar10_lossless_train4k.npz")["x"][rows]
    return {name: images.astype("float32") for name in like}


def run(options):
    done = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.exists() else []
    names = {found["net"] for found in done}
    for name in options.net or nets(options.data_dir):
        if name in names:
            continue
        lines = [json.dumps({"net": name, **found}) for found in apart(name, options.data_dir)]
        print(name, len(lines), flush=True)
        with open(options.file, "a") as file:
            file.writelines(f"{line}\n" for line in lines)


def apart(name, folder):
    """The records, made in another process: whatever ends it, the table goes on."""
    command = [sys.executable, __file__, "one", "--net", name, "--data-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, errors = process.communicate(timeout=60 * MINUTES)
            why = f"ended with {process.returncode}: {(errors.strip().splitlines() or ['no message'])[-1]}"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            why = f"not done in {MINUTES} minutes"
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return records if records and process.returncode == 0 else [*records, {"precision": "?", "failed": why}]


def table(options):
    records = [json.loads(line) for line in options.file.read_text().splitlines()]
    precisions = list(dict.fromkeys(found["precision"] for found in records))
    by = defaultdict(dict)
    for found in records:
        by[found["net"]][found["precision"]] = found
    print(f"| net | {' | '.join(precisions)} |\n|---{'|---' * len(precisions)}|")
    refusals = {}
    for name, row in by.items():
        print(f"| {name} | {' | '.join(cell(row.get(precision), refusals) for precision in precisions)} |")
    for text, number in refusals.items():
        print(f"\n{number}. {text}")


def cell(found, refusals):
    if found is None:
        return ""
    if "failed" in found:
        text = textwrap.shorten(found["failed"].replace("|", "/"), 400, placeholder=" ...")
        return f"({refusals.setdefault(text, len(refusals) + 1)})"
    return f"{found['error'] / tolerance(found):.2f}" if found["passed"] else f"**fails, {found['snr_db']:.0f} dB**"


def tolerance(found):
    from tflite_export.precisions import get

    return get(found["precision"]).tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("one", one), ("table", table)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        command.add_argument("--net", nargs="+", help="all by default")
        command.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="has mlperf-tiny/ in it")
        command.add_argument("--file", type=Path, default=Path("export.jsonl"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
