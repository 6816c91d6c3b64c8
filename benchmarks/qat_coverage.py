"""Which nets both engines of `quantize_aware` build, train and export as int8, and how near the file is.

    python benchmarks/qat_coverage.py run [--net NET ...] [--engine native tfmot] [--data-dir DIR] [--file qat.jsonl]
    python benchmarks/qat_coverage.py table [--data-dir DIR] [--file qat.jsonl]
    python benchmarks/qat_coverage.py speed [--net NET ...]
    python benchmarks/qat_coverage.py bridge

`run` appends a record a net and engine, each net in a process of its own, and goes on where it was stopped. The
smallest net of each family of keras.applications, the nets of tests/graph/architectures.py and of
tests/quantization/qat_nets.py, with random weights and statistics of BatchNormalization taken from data; those of
MLPerf Tiny, trained, where DIR has them. `speed`: the files of both engines beside the plain converter's. `bridge`:
seconds that engine "tfmot" takes to rebuild ResNet50 (224 x 224).
"""

import argparse
import json
import os
import re
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

from _apart import records_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "graph"), str(ROOT / "tests" / "quantization")]
ENGINES = ("native", "tfmot")
MINUTES = 30


def nets(folder):
    """Name -> function that makes it."""
    import architectures
    import qat_nets
    from channel_oracle import disturbed

    def built(make):
        return lambda: qat_nets.alive(disturbed(make()))

    def stored(file):
        return lambda: architectures.mlperf(file, tempfile.mkdtemp())

    def application(name):
        return lambda: qat_nets.alive(architectures.application(name))

    found = {name: application(name) for name in architectures.SMALLEST}
    for name, file in architectures.MLPERF.items():
        if (folder / "mlperf-tiny" / file).exists():
            found[name] = stored(folder / "mlperf-tiny" / file)
    # One of theirs is subclassed and cannot be made again from its config.
    others = [make for make in architectures.NETS if make is not architectures.subclassed]
    return found | {make.__name__: built(make) for make in (*others, *qat_nets.NETS)}


def one(options):
    """Prints a record for each engine of one net."""
    import keras
    from qat_record import plain_operations, record

    keras.utils.set_random_seed(0)
    model = nets(options.data_dir)[options.net[0]]()
    plain = plain_operations(model)
    for engine in options.engine:
        print(json.dumps({"engine": engine, **record(model, engine, plain)}), flush=True)


def run(options):
    done = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.exists() else []
    rows = {(found["net"], found["engine"]) for found in done}
    for name in options.net or nets(options.data_dir):
        engines = [engine for engine in options.engine if (name, engine) not in rows]
        for found in apart(name, engines, options.data_dir) if engines else ():
            line = json.dumps({"net": name, **found})
            print(line, flush=True)
            with open(options.file, "a") as file:
                file.write(line + "\n")


def apart(name, engines, folder):
    """The records, made in another process."""
    given = ["one", "--net", name, "--data-dir", str(folder), "--engine", *engines]
    records, why = records_of(__file__, given, MINUTES)
    missing = [engine for engine in engines if engine not in {found["engine"] for found in records}]
    return [*records, *({"engine": engine, "failed": why or "no record"} for engine in missing)]


def table(options):
    print("| net | engine | build, s | export, s | float operations | calibrated | model - file: mean | max "
          "| same class, % | kernels apart: mean | max | steps spanned | operations | more | less |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    order = {name: place for place, name in enumerate(nets(options.data_dir))}
    records = [json.loads(line) for line in options.file.read_text().splitlines()]
    for found in sorted(records, key=lambda found: (order[found["net"]], found["engine"])):
        print(f"| {found['net']} | {found['engine']} | {row(found)} |")


def row(found):
    if "failed" in found:
        return f"{seconds(found, 'build')} | {shortened(found['failed'])}" + " |" * 11
    step = [] if not found["untouched"] and abs(found["loss"]) < float("inf") else [f"**loss {found['loss']}**"]
    cells = [seconds(found, "build"), seconds(found, "export"), found["float"], len(found["calibrated"])]
    cells += [f"{found['mean']:.3f}", f"{found['max']:.0f}", f"{100 * found['same']:.1f}"]
    cells += [f"{found['kernels mean']:.3f}", f"{found['kernels max']:.0f}", f"{found['spread']:.0f}", *step]
    if "more" not in found:
        return " | ".join(map(str, [*cells, found["operations"]])) + " | the plain converter refuses | "
    counts = [", ".join(f"{count} {name}" for name, count in found[key].items()) for key in ("more", "less")]
    return " | ".join(map(str, [*cells, found["operations"], *counts]))


def seconds(found, key):
    return f"{found[key]:.1f}" if key in found else ""


def shortened(text):
    """The reason of a refusal without the model's name and all layers but the first."""
    first = re.sub(r"(, '[^']*')+", ", ...", re.sub(r"Keras model '[^']*':? ", "", text)).replace("|", "/")
    return textwrap.shorten(first, 160, placeholder=" ...")


def bridge(options):
    import keras
    import numpy as np

    from kdopt.quantization import quantize_aware
    from kdopt.quantization.tfmot.backend import load

    load()
    model = keras.applications.ResNet50(weights=None)
    for what, data in (("", None), (", calibrated on 32 images", np.random.rand(32, 224, 224, 3).astype("float32"))):
        wall, work = time.perf_counter(), time.process_time()
        quantize_aware(model, engine="tfmot", calibration=data)
        wall, work = time.perf_counter() - wall, time.process_time() - work
        print(f"ResNet50 rebuilt, proven equal and fake-quantized{what}: {wall:.1f} s ({work:.1f} s of processors)")


def speed(options):
    """Milliseconds of the files of both engines over those of the plain converter's, in turn."""
    import keras
    from _interleave import compare
    from qat_record import dict_of, inputs_of

    import tflite_export
    from kdopt.quantization import quantize_aware
    from tflite_export.runtime.runner import Runner

    for name in options.net or ("MobileNetV2", "MobileNetV3Small", "unet"):
        keras.utils.set_random_seed(0)
        model = nets(options.data_dir)[name]()
        data = inputs_of(model, 1, 32)
        files = {"plain": tflite_export.convert(model, "int8", dict_of(model, data))}
        for engine in options.engine:
            files[engine] = tflite_export.convert(quantize_aware(model, engine=engine, calibration=data), "int8")
        runners = {kind: Runner(file.content) for kind, file in files.items()}
        print(name)
        compare({kind: partial(again, runner.invoke) for kind, runner in runners.items()}, rounds=30)


def again(function, times=50):
    for _ in range(times):
        function()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("one", one), ("table", table), ("bridge", bridge), ("speed", speed)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        command.add_argument("--net", nargs="+", help="all by default")
        command.add_argument("--engine", nargs="+", default=list(ENGINES), choices=ENGINES)
        command.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="has mlperf-tiny/ in it")
        command.add_argument("--file", type=Path, default=Path("qat.jsonl"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
