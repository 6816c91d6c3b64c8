"""A folder to put into an Android app: the file, how to call it, and a test that it does there what it does here."""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tflite_export.app import golden, kotlin
from tflite_export.app.golden import is_class_number
from tflite_export.runtime.model import TFLiteModel
from tflite_export.tflite import flatbuffer
from tflite_export.tflite.content import TFLite

_PACKAGE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
# LiteRT from these releases on has libraries aligned to 16 KB pages, which Google Play asks for since November 2025.
INTERPRETER = "com.google.ai.edge.litert:litert:1.4.0"
COMPILED = "com.google.ai.edge.litert:litert:2.1.0"


@dataclass(frozen=True)
class AndroidBundle:
    """What was written.

    Attributes:
        folder: Of the bundle.
        files: Paths in it, relative to the folder.
        runs: Number of golden runs.
    """

    folder: Path
    files: tuple[Path, ...]
    runs: int

    def replay(self) -> dict[str, float]:
        """Runs the bundle's file on its golden inputs, here: output name -> difference over what is accepted."""
        return golden.replayed(self.folder / _assets(self.folder), "model.tflite")

    def __str__(self) -> str:
        return "\n".join([f"{self.folder}:", *(f"  {file}" for file in self.files)])


def android_bundle(
    tflite: TFLite,
    path: str | os.PathLike[str],
    *,
    name: str = "Model",
    package: str = "com.example.model",
    labels: Sequence[str] | None = None,
    data: Any = None,
    runs: int = 4,
    overwrite: bool = False,
) -> AndroidBundle:
    """Writes what an Android app needs to run a file, in the folders where Gradle looks for it.

    In `app/src/main/assets/<name>`: the file, labels, golden inputs and outputs. In `app/src/main/java`: a class for
    LiteRT's `CompiledModel` (CPU, GPU, NPU) and one for `Interpreter`. In `app/src/androidTest`: a test that both give
    the golden outputs. Beside them the lines for `build.gradle.kts` and a README. Kotlin and Gradle are not compiled
    here, and say so; the golden vectors are replayed here from the finished folder.

    Args:
        tflite: `TFLiteModel`, path or bytes; with fixed sizes, and tensors of float32, int8, uint8 or int32.
        path: Folder to make.
        name: Of the classes: letters and digits, a capital first. Defaults to `"Model"`.
        package: Of the classes, e.g. `"com.example.app"`.
        labels: Of the classes of the only output, or of the output with as many numbers. Defaults to `None`.
        data: Inputs for the golden runs, as in `TFLiteModel.predict`. Defaults to `None`: seeded random numbers.
        runs: Integer >= 1, golden runs. Defaults to 4.
        overwrite: Whether a bundle that is there is replaced; a folder with other files in it never is. Defaults to
            False.

    Returns: an `AndroidBundle`. The folder is written whole, or not at all.
    Raises: FileExistsError; ValueError for names, labels, or tensors that cannot be; RuntimeError if the golden outputs
        are not what the bundle's file gives.

    Example:
    ```
    bundle = tflite_export.android_bundle("model.tflite", "android", name="Digits", package="com.example.digits")
    ```
    """
    file, folder = TFLiteModel.load(tflite), Path(path)
    _check(file, name, package, labels, runs)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{os.fspath(path)!r} is there already. Choose another folder, or pass overwrite=True.")
    if folder.exists():
        _check_own(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        whole = Path(made) / folder.name
        _write(whole, file, name, package, labels, data, runs)
        worst = golden.replayed(whole / _assets(whole), "model.tflite")
        if max(worst.values()) > 1:
            raise RuntimeError(f"The golden outputs are not what the file gives a second time: {worst}.")
        if folder.exists():  # moved aside, and gone with the temporary folder once the new one is in its place
            os.replace(folder, Path(made) / "before")
        os.replace(whole, folder)
    files = tuple(sorted(found.relative_to(folder) for found in folder.rglob("*") if found.is_file()))
    return AndroidBundle(folder, files, runs)


def _write(
    folder: Path, file: TFLiteModel, name: str, package: str, labels: Sequence[str] | None, data: Any, runs: int
) -> None:
    asset = name.lower()
    main, test = folder / "app/src/main", folder / "app/src/androidTest/java" / package.replace(".", "/")
    assets, sources = main / "assets" / asset, main / "java" / package.replace(".", "/")
    for place in (assets, sources, test):
        place.mkdir(parents=True)
    file.save(assets / "model.tflite")
    golden.write(golden.golden(file, data, runs), file, assets)
    if labels is not None:
        (assets / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    tensors = (file.inputs, file.outputs)
    path = f"{asset}/model.tflite"
    (sources / f"{name}Compiled.kt").write_text(kotlin.compiled_class(package, name, path, *tensors))
    (sources / f"{name}Interpreter.kt").write_text(kotlin.interpreter_class(package, name, path, *tensors))
    (test / f"{name}GoldenTest.kt").write_text(kotlin.golden_test(package, name, asset, *tensors, runs))
    (folder / "build.gradle.kts.lines").write_text(_gradle(package))
    (folder / "README.md").write_text(_readme(file, name, package, asset, labels, runs))


def _check(file: TFLiteModel, name: str, package: str, labels: Sequence[str] | None, runs: int) -> None:
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
        raise ValueError(f"`name` must be letters and digits, a capital first, e.g. 'Digits'; got {name!r}.")
    if not isinstance(package, str) or not _PACKAGE.fullmatch(package) or kotlin.KEYWORDS & {*package.split(".")}:
        raise ValueError(
            f"`package` must be as 'com.example.app', lower case, without keywords of Kotlin; got {package!r}."
        )
    if not isinstance(runs, int) or isinstance(runs, bool) or runs < 1:
        raise ValueError(f"`runs` must be an integer >= 1; got {runs!r}.")
    tensors = (*file.inputs, *file.outputs)
    if any(None in info.shape for info in tensors):
        raise ValueError("The file has open sizes; convert it with `batch=1` and fixed `shapes` for an app.")
    signatures = flatbuffer.signatures(file.content)
    if len(signatures) > 1:
        raise ValueError(
            f"The file has the signatures {', '.join(map(repr, signatures))}, and the Kotlin classes call one alone. "
            "Convert the source of one of them for the app, or write the calls with LiteRT's `runSignature`."
        )
    if not kotlin.fits(tensors):
        kinds = ", ".join(f"{info.name}: {info.dtype}" for info in tensors)
        raise ValueError(f"LiteRT's classes take float32, int8, uint8 and int32; the file has {kinds}.")
    names = [kotlin.identifier(info.name) for info in tensors]
    for own in (names[: len(file.inputs)], names[len(file.inputs) :]):
        if len(set(own)) < len(own):
            raise ValueError(f"Two tensors would have one name in Kotlin: {own}. Rename them in the model.")
    if labels is not None:
        _check_labels(file, labels)


def _check_labels(file: TFLiteModel, labels: Sequence[str]) -> None:
    sizes = {info.name: info.shape[-1] if info.shape else 1 for info in file.outputs}
    ranks = [info for info in file.outputs if is_class_number(info)]  # which tell no number of classes
    if isinstance(labels, str) or (len(labels) not in sizes.values() and not ranks):
        raise ValueError(f"{len(labels)} labels fit no output: {sizes} are the numbers of their classes.")
    if any(not isinstance(label, str) or not label.strip() or "\n" in label for label in labels):
        raise ValueError("Each label must be a line of text that is not empty.")


def _check_own(folder: Path) -> None:
    """Refuses to replace what is no bundle.

    Raises: FileExistsError.
    """
    own = re.compile(r"README\.md|build\.gradle\.kts\.lines|app/src/main/assets/[^/]+/[^/]+|app/src/.*/java/.*\.kt")
    files = [found.relative_to(folder).as_posix() for found in folder.rglob("*") if not found.is_dir()]
    strange = sorted(name for name in files if not own.fullmatch(name))
    if strange or (files and "build.gradle.kts.lines" not in files) or not folder.is_dir():
        named = f", e.g. {strange[0]!r}" if strange else ""
        raise FileExistsError(
            f"{str(folder)!r} holds other files than a bundle{named}, and is left as it is. Choose a folder of its "
            "own, and copy `app/` from there."
        )


def _assets(folder: Path) -> Path:
    (found,) = (folder / "app/src/main/assets").iterdir()
    return found.relative_to(folder)


def _gradle(package: str) -> str:
    return f"""// Lines for app/build.gradle.kts (Android Gradle Plugin 8.5.1 or newer aligns libraries to 16 KB pages).
// Not compiled where they were written.
android {{
    namespace = "{package}"
    compileSdk = 36
    defaultConfig {{
        minSdk = 26
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }}
    androidResources {{
        noCompress += "tflite"   // it is mapped into memory, not read
    }}
}}

dependencies {{
    // One of the two: CompiledModel is in LiteRT 2, Interpreter in LiteRT 1. Both have 16 KB pages.
    implementation("{COMPILED}")
    // implementation("{INTERPRETER}")
    androidTestImplementation("androidx.test.ext:junit:1.2.1")
    androidTestImplementation("androidx.test:runner:1.6.2")
}}
"""


def _readme(file: TFLiteModel, name: str, package: str, asset: str, labels: Sequence[str] | None, runs: int) -> str:
    borders = "\n".join(
        f"| {what} | `{kotlin.identifier(info.name)}` | {info.dtype} | {' x '.join(map(str, info.shape))} | "
        f"{'' if info.scale is None else f'{info.scale!r} * (q - {info.zero_point})'} |"
        for what, infos in (("input", file.inputs), ("output", file.outputs))
        for info in infos
    )
    lines = f"`assets/{asset}/labels.txt` has the {len(labels)} labels, one a line.\n\n" if labels is not None else ""
    return f"""# {name}
A `.tflite` file of {file.size_bytes:,} bytes, precision {file.precision}, for TensorFlow Lite from
{file.min_runtime or "an unknown release"} on.

| | name | type | shape | value |
|---|---|---|---|---|
{borders}

{lines}1. Copy `app/` over that of your project, and the lines of `build.gradle.kts.lines` into `app/build.gradle.kts`.
2. Keep `{name}Compiled.kt` (LiteRT 2: CPU, GPU, NPU) or `{name}Interpreter.kt` (LiteRT 1), with the library it needs,
   and take the other one out of `{name}GoldenTest.kt`. `{name}Output` is in `{name}Interpreter.kt`.
3. `./gradlew connectedAndroidTest` runs `{name}GoldenTest` on a device: {runs} runs with known inputs and outputs.

```kotlin
{name}Compiled(context).use {{ model -> val output = model.run(...) }}
```

The Kotlin and Gradle files are **not compiled here**. The golden vectors were replayed from this folder on
ai_edge_litert when it was made; again, without a device:

```
python -c "from pathlib import Path; from tflite_export.app.golden import replayed; \\
print(replayed(Path('app/src/main/assets/{asset}'), 'model.tflite'))"   # at most 1 for each output is right
```
"""
