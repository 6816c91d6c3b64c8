"""What each precision costs on this machine, and which targets run the files: the table of the README.

    python benchmarks/targets.py [--net NET ...] [--rounds 30]

One thread, XNNPACK, random weights, files of a net in turns; ratios below 1 are smaller or faster than float32.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from keras import layers as L
from plain_converter import nets
from precisions import mlp

import tflite_export
from tflite_export.errors import ConversionError

PRECISIONS = ("float32", "float16", "weight_int8", "dynamic", "int8_float_io", "int8", "uint8", "int8_int4")
TARGETS = ("gpu", "nnapi", "edgetpu", "micro")


def transformer():
    tokens = keras.Input((64, 128))
    h = L.LayerNormalization()(L.Add()([tokens, L.MultiHeadAttention(4, 32)(tokens, tokens)]))
    h = L.LayerNormalization()(L.Add()([h, L.Dense(128)(L.Dense(512, activation="relu")(h))]))
    return keras.Model(tokens, L.Dense(10)(L.GlobalAveragePooling1D()(h)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"mlp": lambda: mlp(keras), "transformer": transformer, **nets()}
    parser.add_argument("--net", nargs="+", choices=known, default=["mlp", "resnet8", "MobileNetV2", "transformer"])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print(f"| net | precision | size | time of the minima | median of pairs (95 %) | {' | '.join(TARGETS)} |")
    print(f"|---|---|---|---|---|{'---|' * len(TARGETS)}")
    for name in options.net:
        keras.utils.set_random_seed(0)
        model = known[name]()
        data = np.random.default_rng(0).normal(size=(100, *model.input_shape[1:])).astype("float32")
        files = {}
        for precision in PRECISIONS:
            try:
                files[precision] = tflite_export.convert(model, precision, data)
            except ConversionError as error:
                print(f"| {name} | {precision} | {str(error).splitlines()[0]} |")
        times = {one.name: one for one in tflite_export.compare(files, rounds=options.rounds).files}
        for precision, file in files.items():
            time, size = times[precision], file.size_bytes / files["float32"].size_bytes
            verdicts = " | ".join(str(tflite_export.delegates(file, target)[target].verdict) for target in TARGETS)
            spread = f"{time.median_ratio:.2f} ({time.low:.2f} - {time.high:.2f})"
            print(f"| {name} | {precision} | {size:.2f} | {time.ratio:.2f} | {spread} | {verdicts} |", flush=True)


if __name__ == "__main__":
    main()
