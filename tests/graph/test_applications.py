"""Every architecture of keras.applications at half its multiply-accumulates, equal to the oracle."""

import keras
import pytest
from architectures import APPLICATIONS, SMALLEST, application
from coverage import exported, halved, train_step

FAST = ["MobileNetV3Small"]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in APPLICATIONS])
def test_half_the_multiply_accumulates(name):
    found = halved(application(name))
    assert found.macs[1] <= 0.5 * found.macs[0]
    assert found.plan.macs == pytest.approx(found.macs, rel=1e-6)
    assert found.difference < min(1e-5, 0.1 * found.changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_of_a_family_trains_and_can_be_exported(name):
    small = halved(application(name)).small
    loss, untouched = train_step(small)
    assert 0 < loss < float("inf")
    assert untouched == []
    assert exported(small, "float32")[1] < 1e-3


def test_every_family_is_known():
    """A new architecture of Keras is of a family, or needs one."""
    assert {name for name in APPLICATIONS if not name.startswith(tuple(SMALLEST.values()))} == set()
    assert set(SMALLEST) <= {n for n in dir(keras.applications) if n[0].isupper()}
