"""Which nets become which files, and how near each file is to its net.

    python benchmarks/export_coverage.py run [--net NET ...] [--data-dir DIR] [--file export.jsonl]
    python benchmarks/export_coverage.py table [--file export.jsonl]

`run` appends a record a net and precision, each net in a process of its own, and goes on where it was stopped: the
nets of tests/tflite_export/export_nets.py (with the weights that Keras gives new nets, and statistics of
BatchNormalization taken from data), those of MLPerf Tiny (trained, as files) and the smallest of each family of
keras.applications, which DIR is needed for: those are trained for some steps on small images of CIFAR-10. With new
weights they are chaotic, since each BatchNormalization amplifies what is not common to all samples (Yang et al. 2019):
the rounding of float16 alone then changes the classes of EfficientNet and ResNet50. Also trained, on made-up tasks:
the taggers, whose new embeddings move the gates by less than a step of 8 bits, and the net with two towers, which
subtracts what is nearly equal as long as it tells nothing apart. `table` shows for each file which share of the
tolerance of `verify` its error takes, or what stands in the way.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from _apart import records_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("tflite_export", "graph", "quantization")]
MINUTES = 40
BATCH = 32


def nets(folder, steps):
    """Name -> function that gives the model, or the path of a file."""
    import architectures
    import keras
    import qat_nets
    from export_nets import SMALL

    def built(make):
        return make if make is architectures.subclassed else lambda: qat_nets.alive(make())

    def application(name):
        side = 80 if name.startswith(("Inception", "Xception")) else 32  # nearly the smallest they take
        options = {"weights": None, "input_shape": (side, side, 3), "classes": 10, "classifier_activation": None}
        return lambda: trained(getattr(keras.applications, name)(**options), folder, steps)

    found = {make.__name__: built(make) for make in SMALL}
    for name, file in architectures.MLPERF.items():
        path = folder / "mlperf-tiny" / file
        if path.exists():
            found[name] = lambda path=path: path
    return found | {name: application(name) for name in architectures.SMALLEST}


def one(options):
    """Prints a record for each precision of one net."""
    import architectures
    import keras
    from export_nets import PRECISIONS, data_of, export

    from tflite_export.sources.resolve import resolve

    keras.utils.set_random_seed(0)
    source = nets(options.data_dir, options.steps)[options.net[0]]()
    model = resolve(source).module if isinstance(source, Path) else source
    if options.net[0] in TASKS:
        task = TASKS[options.net[0]]
        learn(model, *task(0, 4000))
        (given, _), (held, _) = task(1, 128), task(3, 16)
    else:
        given, held = data_of(model, 1, 128), data_of(model, 3, 16)
    pixels = {"vww": (0, 1), "res": (0, 255), "pre": (0, 255)}.get(options.net[0][:3])
    if options.net[0] in architectures.SMALLEST:
        pixels = pixels_of(model)
    if pixels:
        ((name, like),) = given.items()
        images = photographs(options.data_dir, range(132), like.shape[1:3], pixels)
        given, held = {name: images[:100]}, {name: images[100:]}
    for precision in PRECISIONS:
        print(json.dumps(export(source, precision, given, held)), flush=True)


def sentences(seed, count):
    """Words and letters; the tag of a word depends on it, and on how many odd first letters there were so far."""
    random = np.random.default_rng(seed)
    words, letters = random.integers(0, 200, (count, 10)), random.integers(0, 30, (count, 10, 6))
    tags = (words + np.cumsum(letters[..., 0] % 2, axis=1)) % 5
    return {"words": words.astype("int32"), "letters": letters.astype("int32")}, tags


def pairs(seed, count):
    """Two noisy pictures of seven; whether they are of the same one, and which each is."""
    pictures, random = np.random.default_rng(5).random((7, 24, 24, 3)), np.random.default_rng(seed)
    one, other = random.integers(0, 7, (2, count))
    other = np.where(random.random(count) < 0.5, one, other)
    shown = (pictures[kinds] + random.normal(0, 0.2, (count, 24, 24, 3)) for kinds in (one, other))
    images = dict(zip(("one", "other"), (values.astype("float32") for values in shown), strict=True))
    return images, [(one == other).astype("float32")[:, None], one, other]


TASKS = {"tagger": sentences, "tagger_unrolled": sentences, "siamese": pairs}


def learn(model, inputs, labels):
    import keras

    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    same = keras.losses.BinaryCrossentropy(from_logits=True)
    loss = [same, classes, classes] if isinstance(labels, list) else classes
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    model.fit(inputs, labels, epochs=15, batch_size=64, verbose=0)


def trained(model, folder, steps):
    """After some steps on images of CIFAR-10, from where signals pass: with most units behind BatchNormalization on."""
    import keras

    from kdopt.core.norms import reestimate_batch_norm

    norms = [one for one in model._flatten_layers() if isinstance(one, keras.layers.BatchNormalization)]
    for layer in norms:
        if layer.center:
            layer.beta.assign_add(keras.ops.ones_like(layer.beta))
    size, pixels = model.input_shape[1:3], pixels_of(model)
    labels = cifar10(folder)["y_train"].ravel()
    optimizer = keras.optimizers.Adam(1e-3 if norms else 2e-4, clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    random = np.random.default_rng(0)
    for _ in range(steps):
        rows = random.integers(1000, len(labels), BATCH)
        model.train_on_batch(photographs(folder, rows, size, pixels), labels[rows])
    reestimate_batch_norm(model, iter([photographs(folder, range(1000, 1256), size, pixels)]))
    return model


def pixels_of(model):
    """Smallest and largest number in the images that a net of keras.applications wants."""
    import keras

    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    return (0, 255) if any(isinstance(one, kinds) for one in model._flatten_layers()) else (-1, 1)


def photographs(folder, rows, size, pixels):
    """Of CIFAR-10, (height, width) in size."""
    import keras

    images = cifar10(folder)["x_train"][np.asarray(rows)].astype("float32")
    images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, size))
    return images / 255 * (pixels[1] - pixels[0]) + pixels[0]


@cache
def cifar10(folder):
    return dict(np.load(folder / "cifar10" / "cifar10_jpeg.npz"))


def run(options):
    done = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.exists() else []
    names = {found["net"] for found in done}
    for name in options.net or nets(options.data_dir, options.steps):
        if name in names:
            continue
        given = ["one", "--net", name, "--data-dir", str(options.data_dir), "--steps", str(options.steps)]
        records, why = records_of(__file__, given, MINUTES)
        records += [] if why is None else [{"precision": "?", "failed": why}]
        lines = [json.dumps({"net": name, **found}) for found in records]
        print(name, len(lines), flush=True)
        with open(options.file, "a") as file:
            file.writelines(f"{line}\n" for line in lines)


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
        text = re.sub(r"(?<=convert to )\w+|(?<=The )\w+(?= file)", "...", found["failed"].replace("|", "/"))
        text = textwrap.shorten(text.split(": ", 1)[1], 400, placeholder=" ...")
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
        command.add_argument("--steps", type=int, default=100, help="of training, a batch of 32 each")
        command.add_argument("--file", type=Path, default=Path("export.jsonl"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
