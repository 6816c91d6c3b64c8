"""Accuracy of nets with channels removed for good: criteria of `prune_channels` beside each other.

    python benchmarks/shrinking_quality.py --net resnet8 --data-dir FOLDER --macs 0.5 0.333 --seeds 3
    python benchmarks/shrinking_quality.py --net lenet-5 mobilenet --seeds 3
    python benchmarks/shrinking_quality.py --table

A trained net is shrunk in a few rounds and trained on after each by distillation from itself, the unpruned net, with
the same batches and augmentation (mirrored, shifted) for every criterion. `unpruned` is the control: the whole
net, trained on by the same recipe; `loaded` the net as it was; `scratch` the widths of `l1` with new weights. `resnet8`
is a trained ResNet8 of MLPerf Tiny on CIFAR-10 images of the folder, 8,500 to train, 1,500 to validate, 5,000 to test.
LeNet-5 and a small MobileNet are trained here on Fashion-MNIST, a net for each seed, 55,000 images to train, 5,000 to
validate, 10,000 to test. The recipe of ResNet8 and the strength of its group lasso were chosen on the validation images
of seed 100, those of the others beforehand; test images are read once a run, and not at all with `--validate`. Every
run adds a line to `--file`; runs that are there already are left out, so the same command resumes.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

from kdopt.core.copying import copy_model
from kdopt.core.measure import macs as macs_of
from kdopt.criteria import Random
from kdopt.distillation import Distiller, SoftTargets
from kdopt.pruning.structural import prune_channels
from kdopt.regularizers import GroupLasso, Proximal

layers = keras.layers
Images = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How a net is trained on: Adam with cosine decay, against the soft targets of the teacher at a temperature.

    `hard` is the weight of the labels beside them. The channels go in `rounds`, each time the same share of the
    multiply-accumulates, with the same share of the epochs after each. With `mixed` each image is blended with another
    of its batch, by a share drawn evenly from [0, 1], which is for `hard=0` (Beyer et al., CVPR 2022, section 3).
    """

    epochs: int
    rate: float
    shift: int
    batch: int = 64
    hard: float = 0.1
    temperature: float = 4.0
    rounds: int = 3
    mixed: bool = False


@dataclass(frozen=True)
class Method:
    """How channels are chosen: arguments of `prune_channels`, what comes before, and whether weights are new after."""

    arguments: Callable[[int, Images], dict[str, Any]] = lambda seed, train: {}
    before: Callable[["Task", keras.Model], None] = lambda task, model: None
    fresh: bool = False
    nets: tuple[str, ...] = ("resnet8", "lenet-5", "mobilenet")


@dataclass
class Task:
    """A net, its data, and how it is trained."""

    net: str
    recipe: Recipe
    seed: int
    folder: Path
    train: Images = field(init=False)
    validation: Images = field(init=False)
    test: Images = field(init=False)

    def __post_init__(self) -> None:
        if self.net == "resnet8":
            with np.load(self.folder / "cifar10" / "cifar10_jpeg.npz") as file:
                x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
            held, scale = 1500, 1.0
        else:
            (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
            x, x_test, held, scale = x[..., None], x_test[..., None], 5000, 255.0
        x, x_test = (images.astype("float32") / np.float32(scale) for images in (x, x_test))
        y, y_test = (labels.reshape(-1).astype("int32") for labels in (y, y_test))
        self.train, self.validation, self.test = (x[:-held], y[:-held]), (x[-held:], y[-held:]), (x_test, y_test)

    def compile(self, model: keras.Model, steps: int = 1) -> None:
        rate = keras.optimizers.schedules.CosineDecay(self.recipe.rate, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=self.net != "resnet8")
        model.compile(
            keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False, steps_per_execution=11
        )

    def fit(self, model: keras.Model, epochs: int, part: int = 0, callbacks: Any = None) -> None:
        """Trains a net or a Distiller; the same batches for the same seed and part."""
        stream, steps = self._batches(epochs, part)
        self.compile(model, steps)
        model.fit(stream, verbose=0, callbacks=callbacks)

    def distill(self, student: keras.Model, teacher: keras.Model, epochs: int, part: int = 0) -> None:
        soft = SoftTargets(temperature=self.recipe.temperature)
        both = Distiller(
            student=student, teacher=teacher, distillation_losses=[soft], student_loss_weight=self.recipe.hard
        )
        self.fit(both, epochs, part)

    def accuracy(self, model: keras.Model, images: Images) -> float:
        self.compile(model)
        return float(model.evaluate(*images, batch_size=250, verbose=0)[1])

    def _batches(self, epochs: int, part: int) -> tuple[tf.data.Dataset, int]:
        """All batches of a `fit`: images mirrored with probability 1/2, moved by up to `shift` places each way."""
        batch, shift, (height, width) = self.recipe.batch, self.recipe.shift, self.train[0].shape[1:3]
        images, labels = tf.constant(self.train[0]), tf.constant(self.train[1])
        rng, count = np.random.default_rng([self.seed, part]), len(labels) // batch * batch
        order = np.concatenate([rng.permutation(len(labels))[:count] for _ in range(epochs)]).astype("int32")
        flips, moves = rng.random(len(order)) < 0.5, rng.integers(0, 2 * shift + 1, (len(order), 2)).astype("int32")
        shares = rng.random(len(order)).astype("float32") if self.recipe.mixed else np.ones(len(order), "float32")

        def made(index: Any, flip: Any, move: Any, share: Any) -> tuple[Any, Any]:
            chosen = tf.gather(images, index)
            chosen = tf.where(flip[:, None, None, None], tf.reverse(chosen, [2]), chosen)
            chosen = tf.pad(chosen, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
            chosen = tf.gather(chosen, move[:, :1] + tf.range(height), axis=1, batch_dims=1)
            chosen = tf.gather(chosen, move[:, 1:] + tf.range(width), axis=2, batch_dims=1)
            share = share[:, None, None, None]
            return share * chosen + (1 - share) * tf.roll(chosen, 1, 0), tf.gather(labels, index)

        stream = tf.data.Dataset.from_tensor_slices((order, flips, moves, shares)).batch(batch)
        return stream.map(made).prefetch(4), len(order) // batch


def lenet_5() -> keras.Model:
    conv = [
        layer for filters in (20, 50) for layer in (layers.Conv2D(filters, 5, activation="relu"), layers.MaxPooling2D())
    ]
    dense = [layers.Flatten(), layers.Dense(500, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *conv, *dense])


def mobilenet() -> keras.Model:
    """Depthwise-separable, 0.9 M multiply-accumulates."""

    def unit(x: Any, layer: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layer(x)))

    inputs = keras.Input((28, 28, 1))
    x = unit(inputs, layers.Conv2D(16, 3, 2, padding="same", use_bias=False))
    for filters, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        x = unit(x, layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False))
        x = unit(x, layers.Conv2D(filters, 1, use_bias=False))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


NETS = {"lenet-5": lenet_5, "mobilenet": mobilenet}
RECIPES = {
    "resnet8": Recipe(epochs=15, rate=3e-3, shift=3),
    "lenet-5": Recipe(epochs=3, rate=1e-3, shift=1, batch=128),
    "mobilenet": Recipe(epochs=3, rate=2e-3, shift=1, batch=128),
}
TRAINED = 6  # epochs of the nets that are trained here
LASSO = {"resnet8": 5e-2, "lenet-5": 1e-2, "mobilenet": 1e-2}  # strengths


def trained(task: Task, file: Path) -> keras.Model:
    """The whole net of a task; one that is trained here is kept beside the file of results."""
    if task.net == "resnet8":
        return keras.models.load_model(task.folder / "mlperf-tiny" / "resnet8_cifar10_jpeg.h5", compile=False)
    path = file.with_name(f"{file.stem}-{task.net}-{task.seed}.keras")
    if not path.exists():
        model = NETS[task.net]()
        task.fit(model, TRAINED)
        model.save(path)
    return keras.models.load_model(path, compile=False)


def by(criterion: str, **options: Any) -> Method:
    """A criterion by name, defaults otherwise."""
    return Method(lambda seed, train: {"criterion": criterion}, **options)


def has_norm(view: Any) -> bool:
    return view.norm is not None


def some(images: Images, seed: int) -> Images:
    """A thousand of them, for a criterion that looks at data."""
    chosen = np.random.default_rng(seed).permutation(len(images[1]))[:1024]
    return images[0][chosen], images[1][chosen]


def sparse(task: Task, model: keras.Model) -> None:
    """Trains on the labels, a third of the recipe's epochs, while what makes a channel shrinks together."""
    penalty = GroupLasso(LASSO[task.net], groups="coupled")
    task.fit(model, task.recipe.epochs // 3, task.recipe.rounds, callbacks=[Proximal(penalty)])


METHODS = {
    "l1": by("l1"),
    "fpgm": by("fpgm"),
    "bn_scale": Method(  # shortcuts without a BatchNormalization, and all that is added to them, stay
        lambda seed, train: {"criterion": "bn_scale", "layers": has_norm}, nets=("resnet8", "mobilenet")
    ),
    "taylor": Method(lambda seed, train: {"criterion": "taylor", "data": some(train, seed)}),
    "random": Method(lambda seed, train: {"criterion": Random(seed)}),
    "group_lasso": by("l2", before=sparse),
    "scratch": by("l1", fresh=True),
}
WHOLE = ("loaded", "unpruned")


def run(task: Task, method: str, macs: float, whole: keras.Model, options: Any) -> dict[str, Any]:
    """One net, shrunk and trained on."""
    start = time.perf_counter()
    keras.utils.set_random_seed(task.seed)
    model, facts = copy_model(whole), {}
    if method == "unpruned":
        task.distill(model, whole, task.recipe.epochs)
    elif method in METHODS:
        kind = METHODS[method]
        kind.before(task, model)
        rounds = 1 if kind.fresh else task.recipe.rounds
        for part in range(rounds):
            left = macs ** ((part + 1) / rounds)
            task.compile(model)
            arguments = {"scope": options.scope, **kind.arguments(task.seed, task.train)}
            model, plan = prune_channels(model, macs=int(left * macs_of(whole)), **arguments)
            facts = {"widths": [layer.after for layer in plan.layers], "at_once": task.accuracy(model, task.validation)}
            model = keras.models.clone_model(model) if kind.fresh else model
            task.distill(model, whole, task.recipe.epochs // rounds, part)
    record = {
        "parameters_left": model.count_params() / whole.count_params(),
        "macs_left": macs_of(model) / macs_of(whole),
        **facts,
        "validation": task.accuracy(model, task.validation),
        "test": None if options.validate else task.accuracy(model, task.test),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}


def work(options: Any) -> None:
    options.file.parent.mkdir(parents=True, exist_ok=True)
    done = [{k: r.get(k) for k in ("net", "method", "macs", "seed", "recipe", "scope")} for r in lines(options.file)]
    done = [{**record, "recipe": {"mixed": False, **record["recipe"]}} for record in done]
    asked = {name: getattr(options, name) for name in ("epochs", "rate", "hard", "rounds", "mixed")}
    changed = {name: value for name, value in asked.items() if value is not None}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for net in options.net:
            task = Task(net, replace(RECIPES[net], **changed), seed, options.data_dir)
            whole = trained(task, options.file)
            for method in options.method:
                if method in METHODS and net not in METHODS[method].nets:
                    continue
                for macs in options.macs if method in METHODS else [1.0]:
                    key = {"net": net, "method": method, "macs": macs, "seed": seed}
                    key |= {"recipe": asdict(task.recipe), "scope": options.scope}
                    if key in done:
                        continue
                    record = {**key, **run(task, method, macs, whole, options)}
                    print(json.dumps(record), flush=True)
                    with open(options.file, "a") as file:
                        file.write(json.dumps(record) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(options: Any) -> None:
    groups: dict[Any, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in lines(options.file):
        epochs = str(record["recipe"]["epochs"]) + (" mixed" if record["recipe"].get("mixed") else "")
        key = record["net"], -record["macs"], epochs, record["method"], record["scope"]
        groups[key][record["seed"]] = record
    print("| net | method | epochs | MACs left | parameters left | validation at once | validation | test | seeds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (net, _, epochs, method, _), runs in sorted(groups.items()):
        cells = [f"{np.mean([r[name] for r in runs.values()]):.3f}" for name in ("macs_left", "parameters_left")]
        for name in ("at_once", "validation", "test"):
            found = 100 * np.array([r[name] for r in runs.values() if r.get(name) is not None])
            spread = f" +- {found.std(ddof=1):.2f}" if len(found) > 1 else ""
            cells.append(f"{found.mean():.2f}{spread}" if len(found) else "-")
        print(f"| {net} | {method} | {epochs} | {' | '.join(cells)} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--method", nargs="+", default=[*WHOLE, *METHODS], choices=[*WHOLE, *METHODS])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5], help="fraction left")
    parser.add_argument("--scope", default="layer", choices=("global", "layer"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="images and net of resnet8")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--validate", action="store_true", help="leave the test images alone")
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    for name, kind in (("epochs", int), ("rate", float), ("hard", float), ("rounds", int)):
        parser.add_argument(f"--{name}", type=kind, help="instead of the recipe's")
    parser.add_argument("--mixed", action="store_const", const=True, help="blend images; give --hard 0 with it")
    options = parser.parse_args()
    (table if options.table else work)(options)


if __name__ == "__main__":
    main()
