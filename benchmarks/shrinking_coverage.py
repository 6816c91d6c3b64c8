"""Which nets `kdopt.pruning.structural` brings to half their multiply-accumulates, and what these can still do.

    python benchmarks/shrinking_coverage.py run [NET ...] [--data-dir DIR] [--file coverage.jsonl]
    python benchmarks/shrinking_coverage.py table [--data-dir DIR] [--file coverage.jsonl]

`run` appends a record a net and goes on where it was stopped. Every net of keras.applications and of
tests/graph/architectures.py, with random weights; those of MLPerf Tiny, trained, where DIR has them. The oracle is the
old net with zeros where kernels read removed channels; differences and errors are fractions of the largest output. How
far the oracle is from the old net says what its equality proves.
Of each family of keras.applications the smallest net is trained and exported, too.
"""

import argparse
import gc
import json
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "graph"))


def nets(folder):
    """Name -> (function that makes it, whether it is trained and exported)."""
    import architectures
    from channel_oracle import disturbed

    def built(make):
        return lambda: disturbed(make())

    def stored(file):
        return lambda: architectures.mlperf(file, tempfile.mkdtemp())

    def application(name):
        return lambda: architectures.application(name)

    found = {make.__name__: (built(make), True) for make in architectures.NETS}
    for name, file in architectures.MLPERF.items():
        if (folder / "mlperf-tiny" / file).exists():
            found[name] = (stored(folder / "mlperf-tiny" / file), True)
    for name in architectures.APPLICATIONS:
        found[name] = (application(name), name in architectures.SMALLEST)
    return found


def record(make, whole):
    import keras
    from coverage import exported, halved, train_step

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    found = halved(make())
    done = {
        "parameters": found.plan.parameters,
        "macs": found.macs,
        "difference": found.difference,
        "changed": found.changed,
    }
    if whole:
        loss, untouched = train_step(found.small)
        done["train"] = "yes" if 0 < loss < float("inf") and not untouched else f"loss {loss}, left alone: {untouched}"
        for precision in ("float32", "int8"):
            done[precision] = export(exported, found.small, precision)
    return done


def export(exported, model, precision):
    from tflite_export import ConversionError

    try:
        checked, error = exported(model, precision)
    except ConversionError as refusal:
        return f"refused: {refusal}"
    return f"{error:.1e}" if checked.passed else f"{error:.1e}, FAILED: {checked.why}"


def run(options):
    known = nets(options.data_dir)
    done = {json.loads(line)["net"] for line in options.file.read_text().splitlines()} if options.file.exists() else ()
    for name in options.nets or known:
        if name in done:
            continue
        start = time.perf_counter()
        try:
            result = record(*known[name])
        except Exception as error:  # goes into the table
            result = {"failed": f"{type(error).__name__}: {error}"}
        line = json.dumps({"net": name, **result, "seconds": round(time.perf_counter() - start, 1)})
        print(line, flush=True)
        with open(options.file, "a") as file:
            file.write(line + "\n")
        del result
        gc.collect()


def table(options):
    print("| net | parameters | MACs | to the oracle | oracle to the old net | train step | float32 | int8 |")
    print("|---|---|---|---|---|---|---|---|")
    order = list(nets(options.data_dir))
    records = [json.loads(line) for line in options.file.read_text().splitlines()]
    for found in sorted(records, key=lambda found: order.index(found["net"])):
        if "failed" in found:
            print(f"| {found['net']} | **{found['failed']}** | | | | | | |")
            continue
        before, after = found["parameters"]
        ratio = found["macs"][1] / found["macs"][0]
        rest = " | ".join(shortened(found.get(key, "")) for key in ("train", "float32", "int8"))
        near, far = found["difference"], found["changed"]
        print(f"| {found['net']} | {before:,} -> {after:,} | {ratio:.3f} | {near:.1e} | {far:.2g} | {rest} |")


def shortened(text):
    """The reason of a refusal without the model's name and all layers but the first."""
    first = re.sub(r"(, '[^']*')+", ", ...", re.sub(r"Keras model '[^']*':? ", "", text))
    return textwrap.shorten(first, 140, placeholder=" ...")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("nets", nargs="*", help="all by default")
    one.set_defaults(run=run)
    all_ = commands.add_parser("table")
    all_.set_defaults(run=table)
    for command in (one, all_):
        command.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="has mlperf-tiny/ in it")
        command.add_argument("--file", type=Path, default=Path("coverage.jsonl"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
