"""Pruning, quantization-aware training and distillation in one `fit`, and what comes out of it as a file.

    python benchmarks/distill_in_one_fit.py [--sparsity 0.6] [--epochs 30] [--data-dir FOLDER]

A ResNet8 of MLPerf Tiny (84.7 % of 5,000 JPEG images of CIFAR-10 in the folder) teaches a student of half its channels,
which was trained in float before, on 8,500 images. One `fit` of a `Distiller` then does all: soft targets and the
teacher's attention, kernels to zero by `GradualPruning`, int8 rounding by `quantize_aware`, with both engines. `plain`
is the same `fit` without the teacher. The last columns are of the int8 file.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

import tflite_export
from kdopt.distillation import Distiller, SoftTargets, losses, make_student
from kdopt.pruning import GradualPruning
from kdopt.quantization import quantize_aware
from kdopt.schedules import Epochs, Polynomial


def images(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    data = np.load(folder / "cifar10" / "cifar10_jpeg.npz")
    x, x_test = (data[name].astype("float32") for name in ("x_train", "x_test"))
    return x[:8500], data["y_train"][:8500], x_test, data["y_test"]


def compiled(model: keras.Model, rate: float, steps: int) -> keras.Model:
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"])
    return model


def row(name: str, qat: keras.Model, x: np.ndarray, test: tuple[np.ndarray, np.ndarray]) -> None:
    model_accuracy = np.mean(np.argmax(qat.predict(test[0], verbose=0), -1) == test[1])
    file = tflite_export.convert(qat, "int8")
    said = np.argmax(file.predict(test[0]), -1)
    weights = [weight for weight in qat.strip().get_weights() if weight.ndim > 1]
    zeros = [np.mean(weight == 0) for weight in weights]
    print(
        f"| {name} | {100 * model_accuracy:.2f} | {100 * np.mean(zeros):.0f} % | "
        f"{100 * np.mean(said == test[1]):.2f} | {file.size_bytes:,} | {file.gzip_bytes:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    x, y, *test = images(options.data_dir)
    teacher = keras.saving.load_model(options.data_dir / "mlperf-tiny" / "resnet8_cifar10_jpeg.h5", compile=False)
    steps = options.epochs * -(-len(x) // 64)
    start = make_student(teacher, width=0.5, round_to=8, initialize="teacher")
    compiled(start, 2e-3, steps).fit(x, y, batch_size=64, epochs=options.epochs, verbose=0)
    print(f"student in float: {100 * start.evaluate(*test, verbose=0)[1]:.2f} %\n")
    print("| one fit | accuracy, % | zeros | of the file, % | bytes | gzip |\n|---|---|---|---|---|---|")
    for engine in ("native", "tfmot"):
        for teach in (True, False):
            keras.utils.set_random_seed(0)
            qat = quantize_aware(start, engine=engine, calibration=x[:256])
            model: keras.Model = qat
            if teach:
                given = [SoftTargets(4.0), losses.AttentionTransfer("stages")]
                model = Distiller(student=qat, teacher=teacher, distillation_losses=given, student_loss_weight=0.2)
            end = Epochs(options.epochs * 0.6)
            pruning = GradualPruning(Polynomial(options.sparsity, end_step=end, frequency=50))
            compiled(model, 1e-3, steps)
            model.fit(x, y, batch_size=64, epochs=options.epochs, callbacks=[pruning], verbose=0)
            row(f"{engine}, {'distilled' if teach else 'plain'}", qat, x, (test[0], test[1]))


if __name__ == "__main__":
    main()
