"""Registry, optional imports, validation, files, seeding."""

import gzip
import os
import random

import keras
import numpy as np
import pytest

from kdopt.core import backend, files, optional, seeding, validation
from kdopt.core.ordering import ascending, kth_smallest, place_of
from kdopt.core.registry import Registry


class Shape:
    def __init__(self, size=1):
        self.size = size

    def get_config(self):
        return {"size": self.size}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def make_registry():
    registry = Registry("shape", Shape)

    @registry.register("square")
    class Square(Shape):
        pass

    return registry, Square


def test_registry_by_name_config_and_instance():
    registry, square = make_registry()
    assert registry.names() == ("square",)
    assert type(registry.get("square")) is square
    instance = square(5)
    assert registry.get(instance) is instance
    assert registry.get(keras.saving.serialize_keras_object(instance)).size == 5


def test_registry_errors():
    registry, _ = make_registry()
    with pytest.raises(ValueError, match="Unknown shape 'sqare'. Did you mean 'square'"):
        registry.get("sqare")
    for wrong in (3, None, {"a": 1}, object()):
        with pytest.raises(TypeError, match="A shape must be one of 'square'"):
            registry.get(wrong)
    with pytest.raises(ValueError, match="'square' is already taken by"):
        registry.register("square")(Shape)


def test_optional():
    assert optional.require("json", extra="x").dumps(1) == "1"
    with pytest.raises(ImportError, match=r"This needs nowhere: pip install 'kdopt\[search\]'"):
        optional.require("nowhere.to.be", extra="search")


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.5, float("nan"), "0.5", None, True])
def test_check_fraction(wrong):
    assert validation.check_fraction("sparsity", 0.25) == 0.25
    assert validation.check_fraction("kept", 1, one=True) == 1
    with pytest.raises(ValueError, match="`sparsity` must be a fraction in"):
        validation.check_fraction("sparsity", wrong)


def test_other_checks():
    assert validation.check_positive("x", np.float32(2)) == 2
    assert validation.check_positive("x", 0, zero=True) == 0
    assert validation.check_integer("n", np.int64(3)) == 3
    assert validation.check_one_of("scope", "layer", ("layer", "global")) == "layer"
    for wrong in (0, -1, float("inf"), "a", False):
        with pytest.raises(ValueError, match="`x` must be a number > 0"):
            validation.check_positive("x", wrong)
    for wrong in (0, 1.0, "1", True):
        with pytest.raises(ValueError, match="`n` must be an integer >= 1"):
            validation.check_integer("n", wrong)
    with pytest.raises(ValueError, match="`scope` must be one of 'layer', 'global'; got 'lyer'. Did you mean 'layer'"):
        validation.check_one_of("scope", "lyer", ("layer", "global"))


def test_write_atomic(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.bin"
    assert files.write_atomic(path, b"one") == path
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            files.write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    files.write_atomic(path, b"three")
    assert path.read_bytes() == b"three"
    assert files.gzip_bytes(b"a" * 1000) == len(gzip.compress(b"a" * 1000, 9))


def test_set_seed():
    drawn = []
    for _ in range(2):
        seeding.set_seed(3)
        drawn.append((random.random(), np.random.rand(), float(keras.random.uniform(()))))
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        seeding.set_seed(-1)


def test_another_backend_is_refused_with_the_line_that_switches(monkeypatch):
    backend.require_tensorflow("convert")
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r'convert needs .*\["KERAS_BACKEND"\] = "tensorflow"'):
        backend.require_tensorflow("convert")


def test_ascending_equals_a_stable_sort():
    rng = np.random.default_rng(0)
    for values in (rng.random(1000), rng.integers(0, 5, 1000) / 4, np.array([0.0, -0.0, 1e-45, np.inf, 0.0])):
        for dtype in ("float32", "float64"):
            array = values.astype(dtype)
            np.testing.assert_array_equal(ascending(array), np.argsort(array, kind="stable"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("kind", ["spread", "ties", "zeros", "negative", "tiny", "infinite"])
def test_kth_smallest(dtype, kind):
    values = np.random.default_rng(0).random(201) * 100
    changes = {
        "spread": values,
        "ties": np.round(values / 20),
        "zeros": np.where(values < 60, -0.0, values),
        "negative": values - 30,
        "tiny": np.where(values < 50, values * 1e-44, values),
        "infinite": np.where((values > 90) & (dtype != "int32"), np.inf, values),
    }
    values = changes[kind].astype(dtype)
    ordered = np.sort(values)
    for k in (1, 2, 100, 150, 201):
        assert kth_smallest(values, k) == ordered[k - 1]
    strided = values[::2]
    assert kth_smallest(strided, 30) == np.sort(strided)[29]


def test_place_of():
    wanted = np.array([False, True, True, False, True])
    assert [place_of(wanted, k) for k in range(4)] == [0, 2, 3, 5]
