"""Accuracy of int8 files: plain conversion, post-training, and training with rounding, beside each other.

    python benchmarks/qat_quality.py --data-dir FOLDER --seeds 3
    python benchmarks/qat_quality.py --net ds-cnn --method float int8 native-lsq --seeds 1
    python benchmarks/qat_quality.py --table

Each net is trained in float, a net for each seed (ResNet8 is loaded, its seeds are those of the fine-tuning); all
methods that train do so for the same epochs on the same batches from the same float net with Adam at 1e-4 and cosine
decay, `float-longer` without rounding. What is measured is the exported file, run on the test set: all methods export
int8, `int4-dense` with dense kernels of 4 bits, `3-bits` with kernels of 3. `tfmot` is tfmot's `quantize_model` on the
same net in tf_keras. In the nets called `scaled` channels have sizes that differ by up to 100, which makes no
difference in float; their MobileNet has ReLU in place of ReLU6. Calibration: 256 training samples. Every run adds a
line to `--file`; runs that are there already are left out, so the same command resumes.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

import tflite_export
from kdopt.quantization import post_training, quantize_aware
from kdopt.quantization.weight_grids import LearnedStep

FLOAT_EPOCHS = {"lenet-5": 4, "mobilenet": 10, "resnet8": 0, "ds-cnn": 20, "mobilenet-scaled": 10, "resnet8-scaled": 0}
EPOCHS = {"lenet-5": 2, "mobilenet": 2, "resnet8": 1, "ds-cnn": 4, "mobilenet-scaled": 2, "resnet8-scaled": 1}


def fashion(size, count=20_000):
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    edge = (size - 28) // 2
    pad = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    x, x_test = (np.pad(images[..., None].astype("float32") / 255, pad) for images in (x[:count], x_test))
    return (x, y[:count].astype("int32")), (x_test, y_test.astype("int32"))


def cifar(folder):
    with np.load(folder / "cifar10" / "cifar10_jpeg.npz") as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    return (x.astype("float32"), y.reshape(-1).astype("int32")), (
        x_test.astype("float32"),
        y_test.reshape(-1).astype("int32"),
    )


def digits(folder):
    """Spoken digits as log-mel spectrograms, 49 frames x 10 bands."""
    with np.load(folder / "fsdd" / "fsdd_8k.npz") as file:
        sound, y, test = file["x"].astype("float32") / 32768, file["y"].astype("int32"), file["is_test"]
    spectrum = np.abs(np.asarray(tf.signal.stft(sound, 320, 156, 512, pad_end=True)))[:, :49]
    mel = np.asarray(tf.signal.linear_to_mel_weight_matrix(10, 257, 8000, 60.0, 3800.0))
    x = np.log(spectrum @ mel + 1e-4)[..., None].astype("float32")
    x = (x - x[~test].mean()) / x[~test].std()
    return (x[~test], y[~test]), (x[test], y[test])


def lenet_5(folder):
    parts = [keras.Input((28, 28, 1))]
    for filters in (6, 16):
        parts += [L.Conv2D(filters, 5, activation="relu"), L.MaxPooling2D()]
    parts += [L.Flatten(), L.Dense(120, activation="relu"), L.Dense(84, activation="relu"), L.Dense(10)]
    return keras.Sequential(parts), *fashion(28)


def mobilenet(folder):
    net = keras.applications.MobileNet((32, 32, 1), alpha=0.25, weights=None, classes=10, classifier_activation=None)
    return net, *fashion(32, 10_000)


def resnet8(folder):
    net = keras.models.load_model(folder / "mlperf-tiny" / "resnet8_cifar10.keras", compile=False)
    net.load_weights(folder / "mlperf-tiny" / "resnet8_cifar10_jpeg.h5")
    head = net.layers[-1]
    made = keras.Model(net.inputs, type(head).from_config({**head.get_config(), "activation": "linear"})(head.input))
    made.layers[-1].set_weights(head.get_weights())
    return made, *cifar(folder)


def ds_cnn(folder):
    inputs = keras.Input((49, 10, 1))

    def rest(x):
        return L.ReLU()(L.BatchNormalization(momentum=0.9)(x))

    x = rest(L.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(inputs))
    for _ in range(4):
        x = rest(L.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
        x = rest(L.Conv2D(64, 1, use_bias=False)(x))
    x = L.Dropout(0.4)(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Dense(10)(x)), *digits(folder)


def without_limits(layer):
    config = layer.get_config()
    return type(layer).from_config({**config, "max_value": None} if isinstance(layer, L.ReLU) else config)


def mobilenet_scaled(folder):
    net, *data = mobilenet(folder)
    return keras.models.clone_model(net, clone_function=without_limits), *data


NETS = {
    "lenet-5": lenet_5,
    "mobilenet": mobilenet,
    "resnet8": resnet8,
    "ds-cnn": ds_cnn,
    "mobilenet-scaled": mobilenet_scaled,
    "resnet8-scaled": resnet8,
}


def scale_badly(net, seed):
    """Multiplies channels by 1 - 100 and divides the next kernel by it: the same function, with channels that int8
    leaves few steps of."""
    random = np.random.default_rng(seed)
    for norm in net.layers:
        if not isinstance(norm, L.BatchNormalization):
            continue
        after = norm
        while len(after._outbound_nodes) == 1 and (
            after is norm or isinstance(after, (L.ReLU, L.Activation, L.ZeroPadding2D))
        ):
            after = after._outbound_nodes[0].operation
        if not isinstance(after, (L.Conv2D, L.DepthwiseConv2D)):
            continue
        factors = np.exp(random.uniform(0, np.log(100), norm.gamma.shape)).astype("float32")
        norm.gamma.assign(norm.gamma * factors)
        norm.beta.assign(norm.beta * factors)
        kernel, *bias = after.get_weights()
        after.set_weights([kernel / factors[:, None], *bias])


def fit(model, data, epochs, rate, library=keras):
    steps = max(1, epochs * (len(data[0]) // 64))
    optimizer = library.optimizers.Adam(library.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, library.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, batch_size=64, epochs=epochs, verbose=0)
    return model


def accuracy_of(file, data):
    outputs = file.predict(data[0])
    return float(np.mean(np.argmax(outputs, axis=-1) == data[1]))


class Run:
    """A float net with its data; the methods give files."""

    def __init__(self, net, data, name):
        self.net, self.data, self.epochs = net, data, EPOCHS[name]
        self.sample = data[0][np.random.default_rng(0).permutation(len(data[0]))[:256]]

    def trained(self, **options):
        model = quantize_aware(self.net, calibration=self.sample, **options)
        return tflite_export.convert(fit(model, self.data, self.epochs, 1e-4), "int8")

    def longer(self):
        copy = keras.models.clone_model(self.net)
        copy.set_weights(self.net.get_weights())
        return tflite_export.convert(fit(copy, self.data, self.epochs, 1e-4), "float32")

    def after_training(self, **options):
        return tflite_export.convert(post_training(self.net, self.sample, verbose=0, **options), "int8")

    def tfmot(self):
        from kdopt.quantization.tfmot.backend import load
        from kdopt.quantization.tfmot.bridge import Blueprint, emit

        backend = load()
        model = backend.tfmot.quantization.keras.quantize_model(emit(Blueprint.of(self.net)).model)
        fit(model, self.data, self.epochs, 1e-4, backend.tf_keras)
        return tflite_export.convert(model, "int8", self.sample)


METHODS = {
    "float": lambda run: tflite_export.convert(run.net, "float32"),
    "float-longer": Run.longer,
    "int8": lambda run: tflite_export.convert(run.net, "int8", run.sample),
    "post_training": Run.after_training,
    "post_training-adaptive": lambda run: run.after_training(rounding="adaptive"),
    "post_training-3-bits": lambda run: run.after_training(layers={L.Layer: 3}),
    "post_training-3-bits-adaptive": lambda run: run.after_training(layers={L.Layer: 3}, rounding="adaptive"),
    "tfmot": Run.tfmot,
    "kdopt-tfmot": Run.trained,
    "native-ema": lambda run: run.trained(engine="native"),
    "native-lsq": lambda run: run.trained(engine="native", observer="lsq", layers={L.Layer: "lsq"}),
    "native-lsq_plus": lambda run: run.trained(engine="native", observer="lsq_plus"),
    "int4-dense": lambda run: run.trained(engine="native", scheme="int4_dense"),
    "int4-dense-lsq": lambda run: run.trained(engine="native", layers={L.Dense: LearnedStep(4)}),
}


def measure(name, seed, methods, folder, done, file):
    missing = [method for method in methods if (name, seed, method) not in done]
    if not missing:
        return
    keras.utils.set_random_seed(seed)
    net, data, test = NETS[name](folder)
    if FLOAT_EPOCHS[name]:
        fit(net, data, FLOAT_EPOCHS[name], 2e-3)
    if name.endswith("scaled"):
        scale_badly(net, seed)
    run = Run(net, data, name)
    for method in missing:
        keras.utils.set_random_seed(seed)
        start = time.time()
        try:
            made = METHODS[method](run)
            entry = {"accuracy": accuracy_of(made, test), "size_bytes": made.size_bytes}
        except Exception as error:  # one method that fails must not end the others
            entry = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        entry = {"net": name, "seed": seed, "method": method, **entry, "seconds": round(time.time() - start, 1)}
        print(json.dumps(entry), flush=True)
        with file.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(entries):
    groups = defaultdict(list)
    for entry in entries:
        if "accuracy" in entry:
            groups[entry["net"], entry["method"]].append(100 * entry["accuracy"])
    nets = [name for name in NETS if any(net == name for net, _ in groups)]
    print("| method | " + " | ".join(nets) + " |\n|---|" + "---|" * len(nets))
    for method in METHODS:
        cells = []
        for net in nets:
            values = groups.get((net, method), [])
            spread = f" +- {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "")
        print(f"| {method} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--file", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of --file and end")
    options = parser.parse_args()
    if not options.table:
        done = {(e["net"], e["seed"], e["method"]) for e in read(options.file) if "accuracy" in e}
        for seed in range(options.seeds):
            for name in options.net:
                measure(name, seed, options.method, options.data_dir, done, options.file)
    table(read(options.file))


if __name__ == "__main__":
    main()
