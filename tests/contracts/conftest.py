import sys
from pathlib import Path

# Helpers of this folder, and of the tests of distillation; importlib mode puts no test folder on the path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "distillation")]
