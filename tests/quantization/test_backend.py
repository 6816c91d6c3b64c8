"""tf_keras and tfmot: what happens without them, and what they leave behind in the process."""

import os
import subprocess
import sys

import keras
import pytest

from kdopt.quantization import quantize_aware
from kdopt.quantization.tfmot import backend


def test_missing_or_wrong_tf_keras_is_explained(monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    installed = {"tf_keras": None, "tensorflow-model-optimization": "0.8.1"}
    monkeypatch.setattr(backend, "_installed", installed.get)
    monkeypatch.setattr(backend, "load", backend.load.__wrapped__)  # which remembers nothing
    monkeypatch.setattr("tensorflow.__version__", "2.21.0")
    with pytest.raises(ImportError, match=r"needs tf_keras: pip install 'tf_keras==2.21.\*'"):
        backend.load()
    installed["tf_keras"] = "2.20.1"
    with pytest.raises(ImportError, match=r"tf_keras 2.20.1 does not fit TensorFlow 2.21.0: pip install"):
        backend.load()
    installed |= {"tf_keras": "2.21.0", "tensorflow-model-optimization": None}
    monkeypatch.setattr("kdopt.quantization.tfmot.translate.load", backend.load)
    with pytest.raises(ImportError, match="pip install tensorflow-model-optimization"):
        quantize_aware(model)


_TFMOT_FIRST = """
import os
import tensorflow_model_optimization
expected = os.environ.get("TF_USE_LEGACY_KERAS")
import keras, numpy as np
from kdopt.quantization import quantize_aware
x = np.random.rand(16, 3).astype("float32")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
quantize_aware(model, calibration=x).predict(x, verbose=0)
assert os.environ.get("TF_USE_LEGACY_KERAS") == expected == "1"
model.compile("sgd", "mse")
model.fit(x, np.zeros((16, 2)), verbose=0)
"""


@pytest.mark.slow
def test_works_after_the_user_imported_tfmot():
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", _TFMOT_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_the_switch_is_restored(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", before)
    with backend.legacy_switch_restored():
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    assert os.environ.get("TF_USE_LEGACY_KERAS") == before
