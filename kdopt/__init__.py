"""kdopt: from a Keras model in `model.fit` to the smallest, fastest checked `.tflite`.

    kdopt.schedules      step -> sparsity
    kdopt.regularizers   penalties and proximal steps that make weights zero
    kdopt.criteria       which weights matter
    kdopt.pruning        GradualPruning, RegrowPruning, prune
    kdopt.distillation   Distiller and its losses
    kdopt.quantization   quantize_aware
    kdopt.core           parameters, MACs, sizes; what everything stands on
    kdopt.reports        report.json, report.html
    kdopt.pipeline       the demo: all of it on one data set

Sub-packages load on first use, but for those whose classes can be in a `.keras` file: Keras finds a class only if
it is registered, so `import kdopt` is all that `keras.models.load_model` needs.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

# The command line loads what it needs, so that --help answers at once.
if Path(sys.argv[0]).stem not in ("kdopt", "-m"):
    import kdopt.distillation
    import kdopt.pruning
    import kdopt.quantization
    import kdopt.regularizers  # noqa: F401

__version__ = "0.1.0"

_SUBPACKAGES = (
    *("core", "criteria", "distillation", "pipeline", "pruning", "quantization", "regularizers", "reports"),
    "schedules",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"kdopt.{name}")
    raise AttributeError(f"module 'kdopt' has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
