"""Size and latency of the precisions of a file, and of dense kernels of 4 bits, beside float32.

    python benchmarks/precisions.py
    python benchmarks/precisions.py --layer-normalization

One thread, random weights; each net's files run interleaved, a block is 400 inferences of the MLP, 40 and 10 of the
others. Ratios below 1 are faster or smaller than float32. `--layer-normalization`: that
layer alone, 64 x 128, in an int8 file as int8 operations, left float in an int8 file, and in a float file.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from _interleave import compare
from keras import layers as L
from pruning_step import resnet8

import tflite_export
from kdopt.quantization import post_training
from tflite_export.runtime.runner import Runner

ROUNDS = 20


def mlp(keras):
    units = (300, 100)
    layers = [L.Dense(count, activation="relu", bias_initializer="random_normal") for count in units]
    return keras.Sequential([keras.Input((784,)), *layers, L.Dense(10)])


def mobilenetv2(keras):
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None)


NETS = {"MLP 784-300-100-10": (mlp, 400), "ResNet8": (resnet8, 40), "MobileNetV2 0.35, 96 x 96": (mobilenetv2, 10)}


def layer_normalization():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 64, 128)).astype("float32")
    inputs = keras.Input((64, 128))
    norm = keras.Model(inputs, L.LayerNormalization()(inputs))
    plain = {"equalize": False, "bias_correction": False, "verbose": 0}
    files = {
        "int8 operations": tflite_export.convert(post_training(norm, x, **plain), "int8"),
        "left float": tflite_export.convert(post_training(norm, x, layers={L.Layer: "float"}, **plain), "int8"),
        "float file": tflite_export.convert(norm, "float32"),
    }
    compare({kind: block(file, x, 400) for kind, file in files.items()}, rounds=ROUNDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer-normalization", action="store_true")
    if parser.parse_args().layer_normalization:
        layer_normalization()
        return
    for name, (build, runs) in NETS.items():
        keras.utils.set_random_seed(0)
        net = build(keras)
        x = np.random.default_rng(0).normal(size=(64, *net.input_shape[1:])).astype("float32")
        files = {
            precision: tflite_export.convert(net, precision, x)
            for precision in ("float32", "float16", "dynamic", "weight_int8", "int8")
        }
        small = {"scheme": "int4_dense", "bias_correction": False, "equalize": False}
        files["int8, dense 4 bits"] = tflite_export.convert(post_training(net, x, **small), "int8")
        print(f"\n## {name}\n| file | bytes | of float32 |\n|---|---|---|")
        for precision, file in files.items():
            print(f"| {precision} | {file.size_bytes:,} | {file.size_bytes / files['float32'].size_bytes:.2f} |")
        compare({precision: block(file, x, runs) for precision, file in files.items()}, rounds=ROUNDS)


def block(file, x, runs):
    runner = Runner(file.content)
    runner.set_inputs({file.inputs[0].name: x[:1].astype(file.inputs[0].dtype)})

    def run():
        for _ in range(runs):
            runner.invoke()

    return run


if __name__ == "__main__":
    main()
