"""Accuracy of small nets taught by larger ones: kdopt's losses beside no teacher and beside keras.distillation.

    python benchmarks/distillation_quality.py --task fashion_mnist cifar10 --tune
    python benchmarks/distillation_quality.py --task fashion_mnist cifar10 --seeds 5
    python benchmarks/distillation_quality.py --table

A student with a third (a sixth) of the teacher's channels learns from labels and teacher with equal epochs, batches,
images and rates for every method; the teacher is trained once a task. `--tune` trains each method with a few weights on
the split of seed 100 and keeps what is best on its validation images, for keras.distillation too (cifar10 and digits
take what fashion_mnist found); the runs with seeds 0, 1, ... take these and read the test images once, and with them
the two or three losses together that were best on the validation images, and what `recommend` proposes.
Every run adds a line to `--file`; runs that are there already are left out, so the same command resumes.

fashion_mnist   ResNet8 of widths 24 and 8, its stem with strides of 2; 6,000 of its images to train, 5,000 to
                validate, 10,000 to test
cifar10         the same nets, mirrored CIFAR-10 images (JPEG) of `--data-dir`: 8,500, 1,500, 5,000
digits          DS-CNN of widths 48 and 8, log-mel spectra of spoken digits of `--data-dir`: 2,400, 300, 300
sequence        transformers of 4 layers, 64 wide, and of 2, 32 wide: first to appear twice in a sequence of 24 letters;
                8,000, 2,000, 5,000, and 32,000 others for the teacher
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

from kdopt.distillation import Distiller, SoftTargets, losses, recommend

TUNING, TEACHERS, layers = 100, 1000, keras.layers  # seeds of their own
Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        data: Function (folder, seed) -> train, validation and test split.
        net: Function (size) -> model with class logits; size "teacher" or "student".
        epochs: Of the student; the teacher has twice as many.
        mirror: Whether images are mirrored at random.
        batch, rate: Size of a batch; Adam's learning rate at the start, chosen on the validation split without teacher.
        compiled: Whether XLA compiles the step: faster for transformers, slower for convolutions on a CPU.
        tap: Of the last stage of both models.
        tuned_on: Another task whose weights and pair it takes; None: its own.
    """

    data: Callable[[Path, int], tuple[Split, Split, Split]]
    net: Callable[[str], keras.Model]
    epochs: int
    mirror: bool = False
    batch: int = 128
    rate: float = 2e-3
    compiled: bool = False
    tap: str = "stage_2"
    tuned_on: str | None = None


def resnet8(shape: tuple[int, ...]) -> Callable[[str], keras.Model]:
    def net(size: str) -> keras.Model:
        width = {"teacher": 24, "student": 8}[size]
        inputs = keras.Input(shape)
        x = conv(inputs, width, 2)
        for stage, filters in enumerate((width, 2 * width, 4 * width)):
            strides = 2 if stage else 1
            shortcut = layers.Conv2D(filters, 1, strides)(x) if stage else x
            x = conv(x, filters, strides)
            x = layers.BatchNormalization(name=f"norm_{stage}")(
                layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            )
            x = layers.ReLU(name=f"stage_{stage}")(layers.Add()([x, shortcut]))
        return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    return net


def conv(x: Any, filters: int, strides: int) -> Any:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def ds_cnn(size: str) -> keras.Model:
    width = {"teacher": 48, "student": 8}[size]
    inputs = keras.Input((49, 20, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, (10, 4), 2, "same", use_bias=False)(inputs)))
    for block in range(4):
        x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
        x = layers.BatchNormalization(name=f"norm_{block}")(layers.Conv2D(width, 1, use_bias=False)(x))
        x = layers.ReLU(name="stage_2" if block == 3 else None)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def transformer(size: str) -> keras.Model:
    width, depth = {"teacher": (64, 4), "student": (32, 2)}[size]
    inputs = keras.Input((24,), dtype="int32")
    x = layers.Embedding(10, width)(inputs)
    x = x + layers.Embedding(24, width)(keras.ops.arange(24))
    for block in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, width // 4)(y, y)
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add(name="stage_2" if block == depth - 1 else None)([x, layers.Dense(width)(y)])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def split(x: np.ndarray, y: np.ndarray, seed: int, train: int, validation: int) -> tuple[Split, Split]:
    order = np.random.default_rng(seed).permutation(len(x))
    first, second = order[:train], order[train : train + validation]
    return (x[first], y[first]), (x[second], y[second])


def fashion_mnist(folder: Path, seed: int) -> tuple[Split, Split, Split]:
    del folder
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (values[..., None].astype("float32") / 255 for values in (x, x_test))
    return *split(x, y, seed, 6000, 5000), (x_test, y_test)


def cifar10(folder: Path, seed: int) -> tuple[Split, Split, Split]:
    data = np.load(folder / "cifar10" / "cifar10_jpeg.npz")
    x, x_test = (data[name].astype("float32") / 255 for name in ("x_train", "x_test"))
    return *split(x, data["y_train"], seed, 8500, 1500), (x_test, data["y_test"])


def digits(folder: Path, seed: int) -> tuple[Split, Split, Split]:
    data = np.load(folder / "fsdd" / "fsdd_8k.npz")
    spectra = layers.MelSpectrogram(512, 160, 320, sampling_rate=8000, num_mel_bins=20)(data["x"] / np.float32(32768))
    x = np.transpose(np.asarray(spectra), (0, 2, 1))[:, :49, :, None] / 20
    test = data["is_test"]
    return *split(x[~test], data["y"][~test], seed, 2400, 300), (x[test], data["y"][test])


def sequence(folder: Path, seed: int) -> tuple[Split, Split, Split]:
    del folder

    def drawn(count: int, own: int) -> Split:
        x = np.random.default_rng(own).integers(0, 10, (count, 24))
        y = np.array([next(c for i, c in enumerate(row) if c in row[:i]) for row in x])
        return x.astype("int32"), y

    return drawn(8000 if seed != TEACHERS else 32000, 10 + seed), drawn(2000, 1000), drawn(5000, 2000)


TASKS = {
    "fashion_mnist": Task(fashion_mnist, resnet8((28, 28, 1)), 12),
    "cifar10": Task(cifar10, resnet8((32, 32, 3)), 8, mirror=True, rate=1e-2, tuned_on="fashion_mnist"),
    "digits": Task(digits, ds_cnn, 20, batch=32, rate=1e-2, tuned_on="fashion_mnist"),
    "sequence": Task(sequence, transformer, 12, compiled=True),
}


# Method -> (weights of the teacher's part beside labels of weight 1, function of the weight -> losses, their weights)
Made = tuple[list[Any], list[float]]
METHODS: dict[str, tuple[list[float], Callable[[float, Task], Made]]] = {
    "none": ([0.0], lambda w, task: ([SoftTargets()], [0.0])),
    "soft_targets": ([1.0, 4.0], lambda w, task: ([SoftTargets(4.0)], [w])),
    "decoupled_kd": ([0.5, 2.0], lambda w, task: ([losses.DecoupledKD(1.0, 4.0)], [w])),
    "logit_standardization": ([2.0, 8.0], lambda w, task: ([losses.LogitStandardization()], [w])),
    "attention_transfer": ([3.0, 30.0], lambda w, task: ([losses.AttentionTransfer()], [w])),
    "relational": (
        [5.0, 25.0],
        lambda w, task: ([losses.RelationalDistance(), losses.RelationalAngle()], [w, 2 * w]),
    ),
    "similarity": ([500.0, 3000.0], lambda w, task: ([losses.SimilarityPreserving(task.tap)], [w])),
    "crd": ([0.1, 0.8], lambda w, task: ([losses.CRD()], [w])),
    "hint": ([1.0, 10.0], lambda w, task: ([losses.Hint(task.tap)], [w])),
    "adversarial": (
        [0.02, 0.1],
        lambda w, task: ([losses.AdversarialFeature(task.tap, optimizer=keras.optimizers.Adam(2e-4))], [w]),
    ),
    "attention_maps": ([0.1, 1.0, 10.0], lambda w, task: ([losses.AttentionMapsKL(relation_heads=4)], [w])),
}
PAIRS = ("attention_transfer", "relational", "similarity", "crd", "hint", "attention_maps")
OF_TASK = {
    "sequence": ("none", "soft_targets", "attention_maps"),
    "digits": ("none", "soft_targets", "decoupled_kd", "attention_transfer", "hint"),
}


def methods_of(name: str) -> dict[str, tuple[list[float], Callable[[float, Task], Made]]]:
    return {method: METHODS[method] for method in OF_TASK.get(name, [*METHODS][:-1])}


def train(model: keras.Model, data: Split, task: Task, epochs: int, seed: int) -> None:
    """Adam with cosine decay."""
    x, y = data
    keras.utils.set_random_seed(seed)
    batches = (
        tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).batch(task.batch, drop_remainder=True)
    )
    if task.mirror:
        flips = tf.random.Generator.from_seed(seed)

        def mirrored(images: Any, labels: Any) -> Any:
            flip = flips.uniform([tf.shape(images)[0], 1, 1, 1]) < 0.5
            return tf.where(flip, images[:, :, ::-1], images), labels

        batches = batches.map(mirrored)
    rate = keras.optimizers.schedules.CosineDecay(task.rate, epochs * (len(x) // task.batch))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"], jit_compile=task.compiled)
    model.fit(batches.prefetch(2), epochs=epochs, shuffle=False, verbose=0)


def accuracy(model: keras.Model, data: Split) -> float:
    said = np.concatenate([np.argmax(model(data[0][i : i + 500]), -1) for i in range(0, len(data[0]), 500)])
    return float(np.mean(said == data[1]))


def teacher_of(name: str, task: Task, options: Any) -> keras.Model:
    """Trained on the student's images, on the sequences of a seed of its own; kept beside the results."""
    path = Path(options.file).with_name(f"teacher_{name}.keras")
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(1000)
    model = task.net("teacher")
    seed = TEACHERS if name == "sequence" else TUNING
    train(model, task.data(options.data_dir, seed)[0], task, 2 * task.epochs, 1000)
    model.save(path)
    return model


def taught(name: str, method: str, weight: float, second: float, seed: int, options: Any) -> dict[str, Any]:
    """One run: a student, and how good it became."""
    task = TASKS[name]
    # The teacher's images in every run; seeds are of weights and batches.
    data, validation, test = task.data(options.data_dir, TUNING)
    teacher = teacher_of(name, task, options)
    keras.utils.set_random_seed(seed)
    student, start = task.net("student"), time.perf_counter()
    if method == "none":
        model: keras.Model = student
    elif method.startswith("keras"):
        loss = keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())
        model = keras.distillation.Distiller(
            teacher, student, distillation_losses=[loss], student_loss_weight=1 / (1 + weight)
        )
    else:
        proposed = recommend(teacher, student) if method == "recommend" else None
        made, weights = ([], []) if proposed is None else (proposed.losses, proposed.weights)
        for place, part in enumerate([] if proposed else method.split("+")):
            own = (weight, second)[place] if place < 2 else tuned(options, name, part)
            more, more_weights = METHODS[part][1](own, task)
            made, weights = [*made, *more], [*weights, *more_weights]
        model = Distiller(student=student, teacher=teacher, distillation_losses=made, distillation_loss_weights=weights)
    train(model, data, task, task.epochs, seed)
    result = {"task": name, "method": method, "weight": weight, "second": second, "seed": seed}
    result |= {"validation": accuracy(student, validation), "seconds": round(time.perf_counter() - start)}
    return result if seed == TUNING else {**result, "test": accuracy(student, test), "teacher": accuracy(teacher, test)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(options: Any, *what: Any) -> dict[str, Any]:
    name, method, weight, second, seed = what
    path = Path(options.file)
    for line in lines(path):
        if (line["task"], line["method"], line["weight"], line["second"], line["seed"]) == what:
            return line
    result = taught(name, method, weight, second, seed, options)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(result, flush=True)
    return result


def tuned(options: Any, name: str, method: str) -> float:
    """The weight that was best on the validation images of the tuning seed."""
    name = TASKS[name].tuned_on or name
    weights = {"keras": [1.0, 4.0], "recommend": [1.0]}.get(method) or methods_of(name)[method][0]
    found = [(run(options, name, method, weight, 0.0, TUNING)["validation"], weight) for weight in weights]
    return max(found)[1]


def best_combination(options: Any, name: str) -> tuple[str, float, float]:
    """Which one or two losses beside soft targets were best on the validation images; weights of the first two."""
    name = TASKS[name].tuned_on or name
    first = tuned(options, name, "soft_targets")
    others = [method for method in PAIRS if method in methods_of(name)]
    found = [(f"soft_targets+{other}", first, tuned(options, name, other)) for other in others]
    pair = max(found, key=lambda one: run(options, name, *one, TUNING)["validation"])
    found += [(f"{pair[0]}+{other}", *pair[1:]) for other in others if other not in pair[0]]
    return max(found, key=lambda one: run(options, name, *one, TUNING)["validation"])


def work(options: Any) -> None:
    for name in options.task:
        names = [*methods_of(name), "keras", "recommend"] if options.method is None else options.method
        weights = {method: tuned(options, name, method) for method in names}
        best = best_combination(options, name)
        for seed in range(0 if options.tune else options.seeds):
            for method in names:
                run(options, name, method, weights[method], 0.0, seed)
            run(options, name, *best, seed)


def table(options: Any) -> None:
    """Mean and standard deviation of each method, and how far it is above no teacher and above keras.distillation."""
    rows = [line for line in lines(Path(options.file)) if "test" in line]
    for name in dict.fromkeys(line["task"] for line in rows):
        own = [line for line in rows if line["task"] == name]
        by: dict[str, dict[int, float]] = {line["method"]: {} for line in own}
        for line in own:
            by[line["method"]][line["seed"]] = 100 * line["test"]
        print(f"\n{name}: teacher {100 * own[0]['teacher']:.2f} %\n")
        print("| method | weight | seeds | test accuracy, % | above none | above keras |\n|---|---|---|---|---|---|")
        for method, values in sorted(by.items(), key=lambda item: np.mean([*item[1].values()])):
            weight = next(r["weight"] for r in own if r["method"] == method)
            mean, spread = np.mean([*values.values()]), np.std([*values.values()], ddof=len(values) > 1)
            print(
                f"| {method} | {weight:g} | {len(values)} | {mean:.2f} +- {spread:.2f} | "
                f"{above(values, by.get('none'))} | {above(values, by.get('keras'))} |"
            )


def above(values: dict[int, float], base: dict[int, float] | None) -> str:
    """Mean difference of runs from the same weights with the same batches, and its spread 2 s / sqrt(n)."""
    differences = [values[seed] - base[seed] for seed in values if seed in base] if base else []
    if len(differences) < 2 or values is base:
        return ""
    mean, spread = np.mean(differences), 2 * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return f"{mean:+.2f} ({'more than' if abs(mean) > spread else 'within'} the spread {spread:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["fashion_mnist"])
    parser.add_argument("--method", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="choose weights only")
    parser.add_argument("--table", action="store_true", help="print what is in the file")
    parser.add_argument("--file", default=str(Path(__file__).with_suffix(".jsonl")))
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    table(options) if options.table else work(options)


if __name__ == "__main__":
    main()
