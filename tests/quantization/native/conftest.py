import os
import sys
import tempfile
from pathlib import Path

# `channel_oracle` is shared by the tests of this folder; importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
# What hypothesis remembers between runs has no place in the checkout.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "kdopt-hypothesis"))
