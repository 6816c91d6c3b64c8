"""Which multiple of channels a device computes at a time."""

import keras
import numpy as np
import pytest

from kdopt.pruning.structural import measure_round_to, plan_channels
from kdopt.pruning.structural.widths import best_multiple


@pytest.mark.parametrize("multiple", [1, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(multiple):
    """A device whose every call is disturbed by up to 20 %, upwards; the first of five is not the shortest."""
    random = np.random.default_rng(0)

    def latency_of(model):
        width = model.get_layer("narrow").filters
        return (0.3 + 0.01 * multiple * np.ceil(width / multiple)) * (1 + 0.2 * random.random() ** 4)

    assert measure_round_to(latency_of, widths=range(3, 131, 3), shape=(4, 4, 2)) == multiple


def test_a_device_without_steps_or_without_any_dependence_has_one():
    widths = np.arange(4, 133, 4)
    assert best_multiple(widths, np.full(widths.size, 2.0)) == 1
    assert best_multiple(np.arange(1, 65), 1 + 0.5 * np.arange(1, 65)) == 1


def test_targets_have_names_and_others_are_refused():
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, name="wide"), keras.layers.Dense(2)])
    assert plan_channels(net, macs=0.6, round_to="avx512").layers[0].after == 32
    assert plan_channels(net, macs=0.6, round_to="arm").layers[0].after == 32
    assert plan_channels(net, macs=0.7, round_to="arm").layers[0].after == 40
    for wrong in ("gpu", 0, 2.5):
        with pytest.raises((ValueError, TypeError), match="round_to"):
            plan_channels(net, macs=0.5, round_to=wrong)
    with pytest.raises(ValueError, match="eight different"):
        measure_round_to(lambda model: 1.0, widths=[8, 16])
    with pytest.raises(ValueError, match="positive"):
        measure_round_to(lambda model: 0.0, shape=(2, 2, 2), repeats=1)


def test_the_summary_counts_every_layer():
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, name="wide"), keras.layers.Dense(2, name="out")])
    plan = plan_channels(net, channels=0.5)
    wide, out = plan.layers
    assert wide.macs == (8 * 64, 8 * 32)
    assert out.macs == (64 * 2, 32 * 2)
    lines = plan.summary().splitlines()
    assert lines[0].split() == ["layer", "channels", "MACs"]
    assert lines[1].split() == ["wide", "64", "->", "32", "512", "->", "256"]
    assert lines[2].startswith("out ")
    assert lines[2].split()[1:5] == ["2", "128", "->", "64"]
