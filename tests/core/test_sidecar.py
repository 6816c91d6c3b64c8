import numpy as np
import pytest

from kdopt.core.sidecar import Entry, Sidecar


def entry(step, seed=0):
    rng = np.random.default_rng(seed)
    return Entry(step, {"begin": 3}, [rng.random((3, 3, 2)) > 0.5, rng.random((7,)) > 0.5])


def test_round_trip_and_steps(tmp_path):
    sidecar = Sidecar(tmp_path / "backup", "test")
    assert sidecar.steps() == []
    for step in (10, 2, 300):
        sidecar.write(entry(step, seed=step))
    assert sidecar.steps() == [2, 10, 300]
    read = sidecar.read(300)
    assert (read.step, read.meta) == (300, {"begin": 3})
    for got, expected in zip(read.masks, entry(300, seed=300).masks, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_forget_and_neighbours(tmp_path):
    sidecar, other = Sidecar(tmp_path, "test"), Sidecar(tmp_path, "other")
    other.write(entry(7))
    for step in (1, 2, 3, 4):
        sidecar.write(entry(step))
    sidecar.forget(before=2)
    sidecar.forget(after=3)
    assert sidecar.steps() == [2, 3]
    assert other.steps() == [7]


def test_a_damaged_file_is_refused_by_name(tmp_path):
    sidecar = Sidecar(tmp_path, "test")
    sidecar.write(entry(5))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=path.name):
        sidecar.read(5)
