"""The demo: from real images to small, checked `.tflite` files and a report of what was won."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

from kdopt.core.backend import require_tensorflow
from kdopt.core.optional import require
from kdopt.core.seeding import set_seed
from kdopt.core.validation import check_integer, check_one_of
from kdopt.pipeline import exports, steps
from kdopt.pipeline.datasets import DATASETS, Dataset, load
from kdopt.pipeline.recipes import RECIPES, Recipe
from kdopt.reports.html import write_html
from kdopt.reports.record import Report, write_json
from kdopt.reports.text import table_text

Say = Callable[[str], None]
STAGES = 6
_SAMPLES = 500
_NOTES = (
    "Accuracy is that of the .tflite file itself on the test images, which nothing else has read; corrupted: its "
    "mean on the same images under noise, blur and low contrast, three severities each. gzip is level 9; "
    "zeros do not make the raw file smaller. Latency is the median of one inference of one image on one CPU thread, "
    "the least disturbed of several interleaved rounds. MACs are multiply-accumulates for one image, zeros included.",
)
_QUICK_NOTE = "This was a quick run of very few epochs: it shows that everything works, and nothing about accuracy."


def run(
    output: str | os.PathLike[str],
    dataset: str = "digits",
    *,
    seed: int = 0,
    quick: bool = False,
    say: Say = print,
) -> Report:
    """Trains a teacher, distills and prunes a student, quantizes it, exports, verifies, measures, reports.

    Writes `teacher_float32.tflite`, `student_float32.tflite`, `student_float16.tflite`, `student_int8.tflite`,
    `report.json` and `report.html`. Files of these names are replaced, others are left alone.

    Args:
        output: Folder, made if it is missing.
        dataset: `"digits"` (default; no download) or `"fashion_mnist"`.
        seed: Integer >= 0. The same seed on the same machine and versions trains the same networks.
        quick: A few epochs only. Defaults to `False`.
        say: Called with each line of progress. Defaults to `print`.

    Returns: the `kdopt.reports` record that `report.json` holds.

    Raises: ValueError, OSError, ImportError for bad arguments, an unusable folder or a missing package, before the
        training begins.
    """
    began = time.perf_counter()
    require_tensorflow("The demo")
    check_integer("seed", seed, minimum=0)
    check_one_of("dataset", dataset, DATASETS)
    require("matplotlib", extra="demo")
    folder = usable_folder(output)
    recipe = RECIPES[dataset].quick() if quick else RECIPES[dataset]
    stage = _Stages(say)
    stage(f"data: {dataset}")
    data = load(dataset)
    say(f"  {data.title}: {_sizes(data)}")
    set_seed(seed)
    trained = _train(data, recipe, seed, stage)
    variants = _export(data, trained, folder, stage)
    report = Report(
        title=f"kdopt demo: {data.title}",
        facts=_facts(data, recipe, seed),
        stages=trained.epochs,
        variants=variants,
        reference=variants[0].name,
        seconds=time.perf_counter() - began,
        notes=(*_NOTES, _QUICK_NOTE) if quick else _NOTES,
    )
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")
    say(f"\n{table_text(report)}\n\n{report.seconds:.0f} s in all. Look at {folder / 'report.html'}")
    return report


def usable_folder(output: str | os.PathLike[str]) -> Path:
    """Makes the folder if it is missing and tries a file in it, so that no training is lost to a typing error.

    Raises: OSError that says what is wrong.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else (error.strerror or error)
        raise OSError(
            f"Cannot write into the output folder {str(folder)!r}: {reason}. Give another --output."
        ) from error
    return folder


@dataclass(frozen=True)
class _Trained:
    teacher: keras.Model
    student: keras.Model
    quantized: Any
    epochs: dict[str, steps.Epochs]


class _Stages:
    """Numbered headings, with the time that passed."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.number = 0
        self.began = time.perf_counter()

    def __call__(self, title: str) -> None:
        self.number += 1
        self.say(f"[{self.number}/{STAGES}] {title}  ({time.perf_counter() - self.began:.0f} s)")


def _train(data: Dataset, recipe: Recipe, seed: int, stage: _Stages) -> _Trained:
    say = stage.say
    stage("train the teacher")
    teacher, first = steps.train_teacher(data, recipe, seed, say)
    stage("distill the student from it, while pruning")
    student, second = steps.distill_and_prune(data, recipe, teacher, seed, say)
    stage("quantization-aware training of the sparse student")
    quantized, third = steps.train_quantized(data, recipe, teacher, student, seed, say)
    epochs = {"teacher": first, "distill and prune": second, "quantization-aware": third}
    return _Trained(teacher, student, quantized, epochs)


def _export(data: Dataset, trained: _Trained, folder: Path, stage: _Stages) -> tuple[Any, ...]:
    wanted = (
        exports.Export("teacher float32", trained.teacher, "float32", trained.teacher),
        exports.Export("student float32", trained.student, "float32", trained.student),
        exports.Export("student float16", trained.student, "float16", trained.student),
        exports.Export("student int8", trained.quantized, "int8", trained.quantized.strip()),
    )
    samples = data.validation[0][:_SAMPLES]
    stage("export")
    files = []
    for export in wanted:
        files.append(exports.write(export, folder, samples))
        stage.say(f"  {export.file}: {files[-1].size_bytes:,} bytes")
    stage(f"verify, benchmark, and read the {len(data.test[0]):,} test images once")
    latencies = exports.fastest_rounds(files)
    variants = []
    for export, file, latency in zip(wanted, files, latencies, strict=True):
        variants.append(exports.variant(export, file, latency, data.test, samples))
        found = variants[-1].verification
        stage.say(f"  {export.name}: {'passed' if found['passed'] else 'FAILED'}, {found['why']}")
    return tuple(variants)


def _sizes(data: Dataset) -> str:
    train, validation, test = (len(pair[0]) for pair in (data.train, data.validation, data.test))
    return f"{train:,} images to train, {validation:,} for choices, {test:,} to test"


def _facts(data: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    packages = ("kdopt", "keras", "tensorflow", "tensorflow-model-optimization", "ai-edge-litert")
    return {
        "data": f"{data.title}; {_sizes(data)}",
        "teacher": f"{recipe.teacher_epochs} epochs",
        "student": (
            f"{recipe.student_epochs} epochs, sparsity {recipe.sparsity:g}, temperature {recipe.temperature:g}; "
            f"then {recipe.quantized_epochs} quantization-aware"
        ),
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }
