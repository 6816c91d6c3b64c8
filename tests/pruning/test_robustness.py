import dataclasses
import math

import numpy as np
import pytest

from kdopt.core.corruptions import corruptions
from kdopt.pruning.robustness import Robustness, robustness

X = np.random.default_rng(0).random((6, 36, 32, 3)).astype("float32")
EVERY = corruptions()


def test_robustness_measures_every_pair():
    seen = []

    def deviation(images):
        seen.append(images)
        return np.float32(images.std())

    table = robustness(deviation, X, severities=(1, 4))
    assert len(seen) == 7
    pairs = [(name, severity) for name in ("gaussian_noise", "blur", "contrast") for severity in (1, 4)]
    assert [row[:2] for row in table.rows] == pairs
    assert table.clean == pytest.approx(X.std())
    for name, severity in pairs:
        assert table.value(name, severity) == pytest.approx(EVERY[name](X, severity).std())
    assert table.mean == pytest.approx(np.mean([value for *_, value in table.rows]))
    assert all(type(value) is float for *_, value in table.rows)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.clean = 1.0
    with pytest.raises(KeyError, match="was not measured"):
        table.value("blur", 2)


def test_own_corruptions_and_the_table_as_text():
    table = robustness(
        lambda x: float(x.max()), X / X.max(), (1, 2.5), {"darker": lambda x, severity: x / (1 + severity)}
    )
    assert table == Robustness(1.0, (("darker", 1.0, 0.5), ("darker", 2.5, pytest.approx(1 / 3.5))))
    assert str(table).splitlines() == [
        "corruption    severity 1  severity 2.5",
        "none              1.0000",
        "darker            0.5000        0.2857",
        "mean over all rows but the first: 0.3929",
    ]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`metric` gave nan on unchanged images"):
        robustness(lambda x: math.nan, X)
    with pytest.raises(TypeError, match="`metric` must be a function from images to a float; got 0.5"):
        robustness(0.5, X)
    with pytest.raises(ValueError, match="`severity` must be a number > 0; got 0"):
        robustness(np.mean, X, severities=(0, 1))
    for severities in ((), (1, 1.0)):
        with pytest.raises(ValueError, match="Expected corruptions and different severities"):
            robustness(np.mean, X, severities=severities)
    with pytest.raises(TypeError, match="must be a float NumPy array.*got list"):
        robustness(np.mean, X.tolist())
