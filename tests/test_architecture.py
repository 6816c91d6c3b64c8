"""The plan of the house, kept. Each rule is a function of (path, source) and is proven on a planted fault."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 350
FLOORS = {
    "core": 0,
    "graph": 1,
    "schedules": 2,
    "regularizers": 2,
    "criteria": 2,
    "pruning": 3,
    "clustering": 3,
    "quantization": 3,
    "distillation": 3,
    "search": 4,
    "reports": 4,
    "pipeline": 5,
    "cli": 6,
    "__main__": 7,
}
EXPORT_FLOORS = {
    "errors": 0,
    "files": 0,
    "progress": 0,
    "silence": 0,
    "precisions": 0,
    "metrics": 0,
    "tflite": 1,
    "sources": 2,
    "runtime": 3,
    "hardware": 4,
    "conversion": 5,
    "proof": 6,
    "app": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 10,
}
HEAVY = ("tf_keras", "tensorflow_model_optimization", "optuna", "ray", "matplotlib")
LEGACY = ("kdopt/quantization/tfmot/", "tflite_export/sources/legacy_keras.py")
LIVE_ATTRIBUTES = ("train_function", "make_train_function", "constraint", "regularizer")


def imports(tree):
    """(module, names, line, at the top level) of every import."""
    top = set(ast.iter_child_nodes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), node.lineno, node in top
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), tuple(a.name for a in node.names), node.lineno, node in top


def floor_of(module):
    """(part, floor) of a dotted module of kdopt or tflite_export."""
    package, _, rest = module.partition(".")
    part = rest.split(".")[0] or "__init__"
    return part, (EXPORT_FLOORS if package == "tflite_export" else FLOORS).get(part)


def imports_go_down(path, tree):
    parts = Path(path).with_suffix("").parts
    package = parts[0]
    here, floor = floor_of(".".join(parts[:2])) if len(parts) > 1 else ("__init__", None)
    if here == "__init__":
        return
    if floor is None:
        yield f"{path}: {here!r} has no floor"
        return
    for module, names, line, _ in imports(tree):
        if module.split(".")[0] == "kdopt" and package == "tflite_export":
            yield f"{path}:{line}: tflite_export must not import {module}"
        if module.split(".")[0] == "tflite_export" and package == "kdopt" and here != "pipeline":
            yield f"{path}:{line}: only kdopt/pipeline may import tflite_export"
        if module.split(".")[0] != package:
            continue
        if module == package:
            others = [floor_of(f"{package}.{name}") for name in names]
            if package == "tflite_export" and any(other is not None and other > floor for _, other in others):
                yield f"{path}:{line}: {here} (floor {floor}) must not import {', '.join(names)} of {package}"
            continue
        there, other = floor_of(module)
        if other is None or other > floor or (other == floor and there != here):
            yield f"{path}:{line}: {here} (floor {floor}) must not import {module} (floor {other})"


def no_relative_imports(path, tree):
    for module, _, line, _ in imports(tree):
        if module.startswith("."):
            yield f"{path}:{line}: relative import"


def imports_from_the_defining_module(path, tree):
    """A package's `__init__` is for users; inside, names come from where they are defined."""
    for module, names, line, _ in imports(tree):
        folder = ROOT / Path(*module.split("."))
        if module.split(".")[0] not in ("kdopt", "tflite_export") or Path(path).name == "__init__.py":
            continue
        if module == "kdopt" and set(names) <= {"__version__"}:
            continue
        for name in names:
            is_module = (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
            if (folder / "__init__.py").exists() and not is_module:
                yield f"{path}:{line}: imports {name} from the package {module}, not from the module that defines it"


def no_tf_keras_attribute(path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("tf.keras", "tensorflow.keras"):
            yield f"{path}:{node.lineno}: tf.keras"
    for module, names, line, _ in imports(tree):
        if module.startswith("tensorflow.keras") or (module == "tensorflow" and "keras" in names):
            yield f"{path}:{line}: tf.keras"


def foreign_keras_in_one_folder(path, tree):
    for module, _, line, top in imports(tree):
        if module.split(".")[0] in ("tf_keras", "tensorflow_model_optimization"):
            if not path.startswith(LEGACY) or (path.startswith("tflite_export") and module != "tf_keras"):
                yield f"{path}:{line}: {module} outside kdopt/quantization/tfmot"
            elif top:
                yield f"{path}:{line}: {module} must be imported inside a function"


def live_alone_touches_a_running_fit(path, tree):
    if path == "kdopt/core/live.py" or not path.startswith("kdopt/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LIVE_ATTRIBUTES:
            yield f"{path}:{node.lineno}: .{node.attr} outside kdopt/core/live.py"
        by_name = isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "getattr")
        if by_name and any(isinstance(a, ast.Constant) and a.value in LIVE_ATTRIBUTES for a in node.args):
            yield f"{path}:{node.lineno}: {ast.unparse(node.func)} outside kdopt/core/live.py"


def short_enough(path, source):
    lines = source.count("\n")
    if lines > MAX_LINES:
        yield f"{path}: {lines} lines, more than {MAX_LINES}"


RULES = [
    imports_go_down,
    no_relative_imports,
    imports_from_the_defining_module,
    no_tf_keras_attribute,
    foreign_keras_in_one_folder,
    live_alone_touches_a_running_fit,
]


def files():
    for folder in ("kdopt", "tflite_export"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def faults(path, source):
    tree = ast.parse(source)
    return [fault for rule in RULES for fault in rule(path, tree)] + list(short_enough(path, source))


def test_the_house_stands():
    found = [f for file in files() for f in faults(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert found == [], "\n".join(found)


def test_tests_and_benchmarks_are_short_enough():
    found = [
        fault
        for folder in ("tests", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for fault in short_enough(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert found == [], "\n".join(found)


PLANTED = {
    "upward": (
        "kdopt/core/measure.py",
        "from kdopt.pruning.masks import lowest",
        "must not import kdopt.pruning.masks",
    ),
    "upward, inside a function": (
        "kdopt/core/a.py",
        "def f():\n    import kdopt.schedules",
        "core (floor 0) must not import kdopt.schedules",
    ),
    "sibling": (
        "kdopt/pruning/a.py",
        "from kdopt.distillation.distiller import Distiller",
        "pruning (floor 3) must not import kdopt.distillation",
    ),
    "sibling below": ("kdopt/criteria/a.py", "import kdopt.schedules", "must not import kdopt.schedules"),
    "no floor": ("kdopt/newfolder/a.py", "x = 1", "'newfolder' has no floor"),
    "exporter": ("kdopt/reports/a.py", "import tflite_export", "only kdopt/pipeline may import tflite_export"),
    "exporter from the command line": (
        "kdopt/cli.py",
        "from tflite_export.convert import convert",
        "only kdopt/pipeline",
    ),
    "exporter upward": (
        "tflite_export/tflite/a.py",
        "from tflite_export.runtime.model import TFLiteModel",
        "tflite (floor 1) must not import tflite_export.runtime.model (floor 3)",
    ),
    "exporter upward by name": (
        "tflite_export/sources/a.py",
        "from tflite_export import cli",
        "must not import cli of",
    ),
    "exporter without a floor": ("tflite_export/stuff/a.py", "x = 1", "'stuff' has no floor"),
    "exporter imports us": ("tflite_export/app/a.py", "import kdopt.core.files", "tflite_export must not import kdopt"),
    "relative": ("kdopt/core/a.py", "from . import files", "relative import"),
    "from a package": (
        "kdopt/pipeline/a.py",
        "from kdopt.pruning import GradualPruning",
        "imports GradualPruning from the package kdopt.pruning",
    ),
    "tf.keras": ("kdopt/core/a.py", "import tensorflow as tf\nx = tf.keras.Model", "tf.keras"),
    "from tf.keras": ("tflite_export/a.py", "def f():\n    from tensorflow.keras import layers", "tf.keras"),
    "from tf import keras": ("tflite_export/a.py", "from tensorflow import keras", "tf.keras"),
    "tf_keras elsewhere": ("kdopt/core/a.py", "def f():\n    import tf_keras", "outside kdopt/quantization/tfmot"),
    "tfmot in the exporter": (
        "tflite_export/sources/legacy_keras.py",
        "def f():\n    import tensorflow_model_optimization",
        "outside kdopt/quantization/tfmot",
    ),
    "tfmot at the top": (
        "kdopt/quantization/tfmot/a.py",
        "import tensorflow_model_optimization as tfmot",
        "must be imported inside a function",
    ),
    "constraint": ("kdopt/pruning/a.py", "v.constraint = f", ".constraint outside kdopt/core/live.py"),
    "regularizer by name": ("kdopt/pruning/a.py", "setattr(v, 'regularizer', f)", "setattr outside kdopt/core/live.py"),
    "train_function": ("kdopt/pruning/a.py", "model.train_function = None", ".train_function outside"),
    "rebuild": ("kdopt/pruning/a.py", "model.make_train_function(force=True)", ".make_train_function outside"),
    "too long": ("kdopt/core/a.py", "x = 1\n" * (MAX_LINES + 1), "351 lines, more than 350"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    path, source, message = PLANTED[name]
    found = faults(path, source)
    assert any(message in fault for fault in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kdopt/pruning/a.py", "from kdopt.core.files import write_atomic\nfrom kdopt.criteria.base import CRITERIA"),
        ("kdopt/pipeline/a.py", "from tflite_export.convert import convert"),
        ("kdopt/quantization/tfmot/a.py", "def f():\n    import tf_keras"),
        ("kdopt/cli.py", "from kdopt.pipeline.demo import run"),
        ("kdopt/core/a.py", "import tensorflow as tf\nx = tf.Module"),
    ],
)
def test_what_is_allowed_is_not_found(path, source):
    assert faults(path, source) == []


def loaded_by(statement, first=None):
    """Packages that are loaded after it, without those that were after `first`."""
    before = f"{first}; print(*sys.modules)" if first else "print()"
    code = f"import sys; {before}\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    then, now = ({name.split(".")[0] for name in line.split()} for line in done.stdout.splitlines()[-2:])
    return now - then


def test_import_kdopt_is_light():
    everything = "import kdopt, kdopt.core, kdopt.schedules, kdopt.criteria, kdopt.regularizers, kdopt.pruning"
    everything += ", kdopt.distillation, kdopt.quantization, kdopt.reports, kdopt.pipeline, kdopt.cli"
    loaded = loaded_by(everything, first="import keras")  # Keras itself loads matplotlib where it is
    assert "kdopt" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_import_tflite_export_is_light():
    loaded = loaded_by("import tflite_export, tflite_export.cli")
    assert loaded.isdisjoint({*HEAVY, "tensorflow", "keras", "numpy", "kdopt"})
