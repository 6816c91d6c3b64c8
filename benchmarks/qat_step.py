"""Step time of quantization-aware training over plain training, on each side's own Keras.

    python benchmarks/qat_step.py
    python benchmarks/qat_step.py --net mobilenetv2
    python benchmarks/qat_step.py --observers

Both engines of kdopt over plain Keras 3, tfmot's own QAT over plain tf_keras, and the engines over tfmot's; each group
interleaved. Goal: native <= 1.25 of plain, and faster than tfmot's step. ResNet8 on 32x32x3, batch 64; MobileNetV2
(alpha 0.35) on 96x96x3, batch 16; a block is ten times `train_on_batch`. The engine tfmot runs tfmot's own fake
quantization, so the ratio of tfmot's is what it can hope for. `--observers`: engine native with each of its observers.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from _interleave import compare
from pruning_step import BATCH, X, Y, make, resnet8

from kdopt.quantization import quantize_aware
from kdopt.quantization.observers import OBSERVERS
from kdopt.quantization.tfmot.backend import load

ROUNDS, STEPS = 20, 10


def mobilenetv2(keras):
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None)


NETS = {
    "resnet8": (resnet8, X, Y, BATCH),
    "mobilenetv2": (mobilenetv2, np.random.default_rng(0).normal(size=(80, 96, 96, 3)).astype("float32"), Y[:80], 16),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet8", choices=NETS)
    parser.add_argument("--observers", action="store_true")
    options = parser.parse_args()
    build, x, y, batch = NETS[options.net]

    def block(model):
        return lambda: [model.train_on_batch(x[:batch], y[:batch]) for _ in range(STEPS)]

    if options.observers:
        kinds = {name: {"engine": "native", "observer": name} for name in OBSERVERS.names()}
        made = {name: quantize_aware(build(keras), calibration=x[:64], **kind) for name, kind in kinds.items()}
        models = {"plain Keras 3": build(keras), **made}
        compare({name: block(make(keras, model)) for name, model in models.items()}, rounds=ROUNDS)
        return
    backend = load()
    engines = ("native", "tfmot")
    sources = {engine: quantize_aware(build(keras), engine=engine, calibration=x[:64]) for engine in engines}
    models = {
        "plain Keras 3": make(keras, build(keras)),
        **{f"kdopt {engine}": make(keras, sources[engine]) for engine in engines},
        "plain tf_keras": make(backend.tf_keras, build(backend.tf_keras)),
        "tfmot QAT": make(backend.tf_keras, backend.tfmot.quantization.keras.quantize_model(build(backend.tf_keras))),
    }

    for names in (
        ("plain Keras 3", "kdopt native", "kdopt tfmot"),
        ("plain tf_keras", "tfmot QAT"),
        ("tfmot QAT", "kdopt native", "kdopt tfmot"),
    ):
        compare({name: block(models[name]) for name in names}, rounds=ROUNDS)


if __name__ == "__main__":
    main()
