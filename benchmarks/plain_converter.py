"""`tflite_export.convert` beside the plain `tf.lite.TFLiteConverter` and Keras' own export.

    python benchmarks/plain_converter.py time [--net NET ...] [--precision float32 int8] [--rounds 20]
    python benchmarks/plain_converter.py memory [--net NET ...] [--precision float32 int8]
    python benchmarks/plain_converter.py files [--net NET ...]

`time`: seconds of a conversion, in turns in one process, and how much of ours is the check of the finished file.
`memory`: peak of resident memory that a conversion adds, each in a process of its own. `files`: time of an inference
on our files beside the plain converter's of the same precision and Keras' `export(format="litert")`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SAMPLES = 100


def nets():
    import keras
    from keras import layers as L

    def resnet8():
        image = keras.Input((32, 32, 3))
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same")(image)))
        for width, strides in ((16, 1), (32, 2), (64, 2)):
            y = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, strides, padding="same")(x)))
            y = L.BatchNormalization()(L.Conv2D(width, 3, padding="same")(y))
            x = L.ReLU()(L.Add()([y, x if strides == 1 else L.Conv2D(width, 1, strides)(x)]))
        return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))

    applications = {
        name: partial(getattr(keras.applications, name), weights=None, input_shape=(96, 96, 3), classes=10)
        for name in ("MobileNetV2", "EfficientNetB0", "ResNet50")
    }
    return {"resnet8": resnet8, **applications}


def data_of(model):
    import numpy as np

    return np.random.default_rng(0).random((SAMPLES, *model.input_shape[1:]), "float32")


def ours(model, precision, data):
    import tflite_export

    return tflite_export.convert(model, precision, data if precision == "int8" else None).content


def plain(model, precision, data):
    """As the guides write it, with the same data and types as ours."""
    import tensorflow as tf

    from tflite_export.silence import silenced

    with silenced():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: ([sample[None]] for sample in data)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def exported(model):
    """Keras' own: float32 only."""
    from tflite_export.silence import silenced

    with tempfile.TemporaryDirectory() as folder, silenced():
        path = Path(folder, "model.tflite")
        model.export(path, format="litert", verbose=False)
        return path.read_bytes()


SIDES = {"plain": plain, "ours": ours}


def built(name):
    import keras

    keras.utils.set_random_seed(0)
    model = nets()[name]()
    return model, data_of(model)


def times(options):
    from _interleave import compare

    from tflite_export.conversion import convert as module

    spent = []
    for name, owner in (("differences", module), ("check", module.Contract)):
        setattr(owner, name, measured(getattr(owner, name), spent))
    for name in options.net:
        model, data = built(name)
        for precision in options.precision:
            print(f"\n{name}, {precision}")
            spent.clear()
            blocks = {side: partial(run, model, precision, data) for side, run in SIDES.items()}
            compare(blocks, rounds=options.rounds)
            print(f"of ours, the check of the file: {1000 * sum(spent) / (options.rounds + 1):.0f} ms")


def measured(function, spent):
    def timed(*arguments):
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent.append(time.perf_counter() - start)

    return timed


def memory(options):
    print("| net | precision | plain, MB | ours, MB | ratio |\n|---|---|---|---|---|")
    for name in options.net:
        for precision in options.precision:
            least = {side: min(apart(name, precision, side) for _ in range(3)) for side in SIDES}
            ratio = least["ours"] / least["plain"]
            print(f"| {name} | {precision} | {least['plain']:.0f} | {least['ours']:.0f} | {ratio:.2f} |", flush=True)


def apart(name, precision, side):
    command = [sys.executable, __file__, "one", "--net", name, "--precision", precision, "--side", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def one(options):
    """The peak of resident memory with a conversion, less what is held before it: model, data and TensorFlow."""
    from tflite_export.runtime.runner import Runner

    model, data = built(options.net[0])
    small, few = built("resnet8")
    Runner(SIDES[options.side](small, options.precision[0], few))  # whatever is loaded once
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    SIDES[options.side](model, options.precision[0], data)
    print(resident("VmHWM") - before)


def resident(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def files(options):
    import tflite_export

    for name in options.net:
        model, data = built(name)
        for precision in ("float32", "float16", "dynamic", "int8"):
            made = {"plain": plain(model, precision, data), "ours": ours(model, precision, data)}
            if precision == "float32":
                made["keras export"] = exported(model)
            print(f"\n{name}, {precision}: {', '.join(f'{side} {len(made[side]):,} bytes' for side in made)}")
            print(tflite_export.compare(made), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("time", times), ("memory", memory), ("files", files), ("one", one)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        command.add_argument("--net", nargs="+", default=["resnet8", "MobileNetV2"])
        command.add_argument("--precision", nargs="+", default=["float32", "int8"])
        command.add_argument("--rounds", type=int, default=20)
        command.add_argument("--side", choices=list(SIDES), default="ours")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
