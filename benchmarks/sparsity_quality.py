"""Accuracy at high sparsity on Fashion-MNIST: kdopt's ways of pruning beside tfmot's `prune_low_magnitude`.

    python benchmarks/sparsity_quality.py run l1-layer --sparsity 0.9 0.95 --seeds 5
    python benchmarks/sparsity_quality.py run tfmot --sparsity 0.9 0.95 --seeds 5
    python benchmarks/sparsity_quality.py table

LeNet-300-100, or `--net lenet-5`, or `--net resnet8 --data-dir FOLDER`: a trained ResNet8 of MLPerf Tiny on CIFAR-10
images of the folder, 8,500 to train, 1,500 to validate, 5,000 to test, mirrored at random. Adam 1e-3 with cosine decay,
batch 128, 15 epochs; sparsity grows by the cubic schedule from 10 % to 70 % of the updates, every 50. Of Fashion-MNIST
55,000 images train, 5,000 validate; the 10,000 test images are read once a run. The same seed gives every method the
same initial weights and order of batches. Every run adds a line to `quality.jsonl`; `table` prints means and standard
deviations over seeds. tfmot runs in a process of its own: it switches TensorFlow to tf_keras.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

BATCH, FREQUENCY, RATE = 128, 50, 1e-3
# Strengths of the proximal step, chosen on the validation images of seed 100 to end near the sparsity.
PROXIMAL = {0.8: 1e-2, 0.9: 1e-2, 0.95: 7e-2, 0.98: 1e-1}


def lenet_300_100(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(300, activation="relu"),
            layers.Dense(100, activation="relu"),
            layers.Dense(10),
        ]
    )


def lenet_5(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(20, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def resnet8(keras):
    """The trained net, from a file that both Keras read; probabilities."""
    return keras.models.load_model(FOLDER / "mlperf-tiny" / "resnet8_cifar10_jpeg.h5", compile=False)


NETS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5, "resnet8": resnet8}
FOLDER = Path("../shared/data")


def data(net):
    import keras

    if net == "resnet8":
        with np.load(FOLDER / "cifar10" / "cifar10_jpeg.npz") as file:
            x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        x, x_test, y, y_test = x.astype("float32"), x_test.astype("float32"), y.reshape(-1), y_test.reshape(-1)
        return (x[:-1500], y[:-1500]), (x[-1500:], y[-1500:]), (x_test, y_test)
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (images[..., None].astype("float32") / 255 for images in (x, x_test))
    return (x[:-5000], y[:-5000]), (x[-5000:], y[-5000:]), (x_test, y_test)


def initial_weights(net, seed):
    """Glorot uniform by NumPy, the same for both Keras; those of the file for a trained net."""
    import keras

    if net == "resnet8":
        return NETS[net](keras).get_weights()
    rng = np.random.default_rng(seed)
    weights = []
    for weight in NETS[net](keras).get_weights():
        if weight.ndim == 1:
            weights.append(np.zeros_like(weight))
        else:
            window = int(np.prod(weight.shape[:-2]))
            limit = np.sqrt(6 / (window * (weight.shape[-2] + weight.shape[-1])))
            weights.append(rng.uniform(-limit, limit, weight.shape).astype("float32"))
    return weights


def batches(x, y, seed, epochs, mirror=False):
    """The same batches in the same order for every method."""
    import tensorflow as tf

    steps = len(x) // BATCH
    order = np.concatenate(
        [np.random.default_rng([seed, e]).permutation(len(x))[: steps * BATCH] for e in range(epochs)]
    )
    images, labels = tf.constant(x), tf.constant(y.astype("int32"))
    flips = np.random.default_rng([seed, epochs]).random(len(order)) < (0.5 if mirror else 0)
    indices = tf.data.Dataset.from_tensor_slices((order.astype("int32"), flips)).batch(BATCH)

    def batch(i, flip):
        chosen = tf.gather(images, i)
        if mirror:
            chosen = tf.where(flip[:, None, None, None], tf.reverse(chosen, [2]), chosen)
        return chosen, tf.gather(labels, i)

    return indices.map(batch).prefetch(4), steps


def callbacks_of(method, sparsity, total, strength):
    from kdopt.pruning import GradualPruning, RegrowPruning
    from kdopt.regularizers import L1, Proximal
    from kdopt.schedules import OneShot, Polynomial

    course = Polynomial(sparsity, begin_step=total // 10, end_step=total * 7 // 10, frequency=FREQUENCY)
    if method == "rigl":
        return [RegrowPruning(sparsity, total * 3 // 4, "rigl", frequency=100)]
    if method == "set":
        return [RegrowPruning(sparsity, total * 3 // 4, "set", frequency=100)]
    if method == "proximal-l1":  # the rest, exact to the sparsity, at 70 % of the updates
        finish = GradualPruning(OneShot(sparsity, total * 7 // 10), scope="global")
        return [Proximal(L1(PROXIMAL[sparsity] if strength is None else strength)), finish]
    kinds = {
        "l1-layer": {},
        "l1-global": {"scope": "global"},
        "lamp": {"criterion": "lamp", "scope": "global"},
        "taylor": {"criterion": "taylor"},
        "erdos-renyi": {"allocation": "erdos_renyi"},
        "splicing": {"splicing": True},
        "splicing-global": {"scope": "global", "splicing": True},
    }
    return [GradualPruning(course, **kinds[method])]


def train_kdopt(method, net, sparsity, seed, epochs, sets, strength=None):
    import keras

    (x, y), validation, test = sets
    model = NETS[net](keras)
    model.set_weights(initial_weights(net, seed))
    stream, steps = batches(x, y, seed, epochs, mirror=net == "resnet8")
    total = steps * epochs
    rate = keras.optimizers.schedules.CosineDecay(RATE, total)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=net != "resnet8")
    model.compile(
        keras.optimizers.Adam(rate), loss, metrics=["accuracy"], steps_per_execution=FREQUENCY, jit_compile=False
    )
    extra = [] if method == "dense" else callbacks_of(method, sparsity, total, strength)
    model.fit(stream, epochs=1, verbose=0, callbacks=extra)
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    return model, kernels, validation, test


def train_tfmot(net, sparsity, seed, epochs, sets):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    (x, y), validation, test = sets
    model = NETS[net](tf_keras)
    model.set_weights(initial_weights(net, seed))
    stream, steps = batches(x, y, seed, epochs, mirror=net == "resnet8")
    total = steps * epochs
    kind = tfmot.sparsity.keras
    course = kind.PolynomialDecay(0.0, sparsity, begin_step=total // 10, end_step=total * 7 // 10, frequency=FREQUENCY)
    pruned = kind.prune_low_magnitude(model, pruning_schedule=course)
    rate = tf_keras.optimizers.schedules.CosineDecay(RATE, total)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=net != "resnet8")
    pruned.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    pruned.fit(stream, epochs=1, verbose=0, callbacks=[kind.UpdatePruningStep()])
    model = kind.strip_pruning(pruned)
    model.compile(loss=loss, metrics=["accuracy"])
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    return model, kernels, validation, test


def run(options):
    global FOLDER
    FOLDER = options.data_dir
    if options.method == "tfmot":
        import tensorflow_model_optimization  # noqa: F401  first: it switches TensorFlow to tf_keras
    sets = data(options.net)
    for sparsity in options.sparsity:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            start = time.perf_counter()
            if options.method == "tfmot":
                found = train_tfmot(options.net, sparsity, seed, options.epochs, sets)
            else:
                found = train_kdopt(options.method, options.net, sparsity, seed, options.epochs, sets, options.strength)
            model, kernels, validation, test = found
            zeros = sum(int((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)
            record = {
                "net": options.net,
                "method": options.method,
                "sparsity": sparsity,
                "seed": seed,
                "epochs": options.epochs,
                "zeros": round(zeros, 4),
                "validation": model.evaluate(*validation, verbose=0)[1],
                "test": model.evaluate(*test, verbose=0)[1],
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(json.dumps(record), flush=True)
            with open(options.file, "a") as file:
                file.write(json.dumps(record) + "\n")


def table(options):
    groups = defaultdict(dict)
    for line in Path(options.file).read_text().splitlines():
        record = json.loads(line)
        groups[record["net"], record["sparsity"], record["method"]][record["seed"]] = record
    print("| net | sparsity | method | test accuracy | validation | zeros | seeds |")
    print("|---|---|---|---|---|---|---|")
    for (net, sparsity, method), runs in sorted(groups.items()):
        test, validation, zeros = (np.array([r[k] for r in runs.values()]) for k in ("test", "validation", "zeros"))
        spread = f"{100 * test.std(ddof=1):.2f}" if len(test) > 1 else "-"
        print(
            f"| {net} | {sparsity} | {method} | {100 * test.mean():.2f} +- {spread} % | "
            f"{100 * validation.mean():.2f} % | {zeros.mean():.4f} | {len(test)} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("method")
    one.add_argument("--net", default="lenet-300-100", choices=NETS)
    one.add_argument("--data-dir", type=Path, default=FOLDER, help="of the images and the trained net of resnet8")
    one.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.98])
    one.add_argument("--seeds", type=int, default=5)
    one.add_argument("--first-seed", type=int, default=0)
    one.add_argument("--epochs", type=int, default=15)
    one.add_argument("--strength", type=float, help="of proximal-l1, instead of the one chosen for the sparsity")
    one.set_defaults(run=run)
    all_ = commands.add_parser("table")
    all_.set_defaults(run=table)
    for command in (one, all_):
        command.add_argument("--file", default="quality.jsonl")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
