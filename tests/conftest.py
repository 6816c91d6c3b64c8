import gc
import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The suite runs in two processes on two cores: more threads than that only wait for each other.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import pytest

_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    # Its collection of garbage walks through all that TensorFlow keeps, a second and more late in the suite.
    keras.backend.clear_session(free_memory=False)
    if next(_TESTS) % 20 == 0:
        gc.collect()
        gc.freeze()
