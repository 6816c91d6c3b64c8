"""What `import kdopt` costs above `import keras`, and how fast `tflite-export --help` answers.

    python benchmarks/import_time.py

Goals: <= 1.05, and < 0.5 s. Whole processes, interleaved.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from _interleave import compare


def process(*arguments):
    def run():
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return run


def main():
    tool = str(Path(sys.executable).with_name("tflite-export"))
    compare({"import keras": process("-c", "import keras"), "import kdopt": process("-c", "import keras, kdopt")})
    compare({"tflite-export --help": process(tool, "--help"), "python -c pass": process("-c", "pass")})


if __name__ == "__main__":
    main()
