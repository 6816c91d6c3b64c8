"""Step time of quantization-aware training over plain training, on each side's own Keras.

    python benchmarks/qat_step.py

kdopt's QAT over plain Keras 3, tfmot's QAT over plain tf_keras, and one QAT over the other; each pair interleaved.
ResNet8 on 32x32x3, batch 64; a block is one `fit` of 20 steps. kdopt's QAT runs tfmot's own fake quantization, so the
second ratio is what the first can hope for.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from _interleave import compare
from pruning_step import BATCH, X, Y, make, resnet8

from kdopt.quantization import quantize_aware
from kdopt.quantization.tfmot.backend import load

ROUNDS = 20


def main():
    backend = load()
    models = {
        "plain Keras 3": make(keras, resnet8(keras)),
        "kdopt QAT": make(keras, quantize_aware(resnet8(keras), calibration=X[:256])),
        "plain tf_keras": make(backend.tf_keras, resnet8(backend.tf_keras)),
        "tfmot QAT": make(backend.tf_keras, _tfmot(backend)),
    }

    def block(name):
        return lambda: models[name].fit(X, Y, batch_size=BATCH, verbose=0)

    compare({name: block(name) for name in ("plain Keras 3", "kdopt QAT")}, rounds=ROUNDS)
    compare({name: block(name) for name in ("plain tf_keras", "tfmot QAT")}, rounds=ROUNDS)
    compare({name: block(name) for name in ("tfmot QAT", "kdopt QAT")}, rounds=ROUNDS)


def _tfmot(backend):
    return backend.tfmot.quantization.keras.quantize_model(resnet8(backend.tf_keras))


if __name__ == "__main__":
    main()
