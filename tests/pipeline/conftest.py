"""Data of the tests of both recipes."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def digit_images():
    """((x, y) to train, (x, y) to validate)"""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (bunch.images[..., None] / 16).astype("float32"), bunch.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order[:1200]], y[order[:1200]]), (x[order[1200:]], y[order[1200:]])
