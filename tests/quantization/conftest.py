import sys
from pathlib import Path

# `qat_nets` and `channel_oracle` are shared by tests; importlib mode puts no test folder on the path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "graph")]
