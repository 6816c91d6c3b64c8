"""Optional packages: imported at the call that needs them, with the pip line in the error."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Imports `module`, or says which extra of kdopt brings it.

    Args:
        module: Dotted module name, e.g. `"matplotlib.pyplot"`.
        extra: Extra of kdopt that installs it, e.g. `"report"`.

    Raises: ImportError with the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This needs {module.split('.')[0]}: pip install 'kdopt[{extra}]'") from error
