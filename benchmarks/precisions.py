"""Size and latency of the precisions of a file, and of dense kernels of 4 bits, beside float32.

    python benchmarks/precisions.py

One thread, random weights; each net's files run interleaved, a block is 400 inferences of the MLP, 40 and 10 of the
others. Ratios below 1 are faster or smaller than float32.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from _interleave import compare
from keras import layers as L
from pruning_step import resnet8

import tflite_export
from kdopt.quantization import post_training
from tflite_export.runtime import Runner

ROUNDS = 20


def mlp(keras):
    units = (300, 100)
    layers = [L.Dense(count, activation="relu", bias_initializer="random_normal") for count in units]
    return keras.Sequential([keras.Input((784,)), *layers, L.Dense(10)])


def mobilenetv2(keras):
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None)


NETS = {"MLP 784-300-100-10": (mlp, 400), "ResNet8": (resnet8, 40), "MobileNetV2 0.35, 96 x 96": (mobilenetv2, 10)}


def main():
    for name, (build, runs) in NETS.items():
        keras.utils.set_random_seed(0)
        net = build(keras)
        x = np.random.default_rng(0).normal(size=(64, *net.input_shape[1:])).astype("float32")
        files = {
            precision: tflite_export.convert(net, precision, x)
            for precision in ("float32", "float16", "dynamic", "int8_weights", "int8")
        }
        small = {"scheme": "int4_dense", "bias_correction": False, "equalize": False}
        files["int8, dense 4 bits"] = tflite_export.convert(post_training(net, x, **small), "int8")
        print(f"\n## {name}\n| file | bytes | of float32 |\n|---|---|---|")
        for precision, file in files.items():
            print(f"| {precision} | {file.size_bytes:,} | {file.size_bytes / files['float32'].size_bytes:.2f} |")
        compare({precision: block(file, x, runs) for precision, file in files.items()}, rounds=ROUNDS)


def block(file, x, runs):
    runner = Runner(file.content)
    runner.set_inputs({file.inputs[0].name: x[:1]})

    def run():
        for _ in range(runs):
            runner.invoke()

    return run


if __name__ == "__main__":
    main()
