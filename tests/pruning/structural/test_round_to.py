"""Rounded widths: what goes beyond the target comes back as far as whole steps fit."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core import measure
from kdopt.pruning.structural import prune_channels
from kdopt.pruning.structural.ranking import Ranking
from kdopt.pruning.structural.units import Unit


def chain(widths=(16, 16, 16), seed=1):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 2))
    for i, width in enumerate(widths):
        x = L.Conv2D(width, 3, activation="relu", padding="same", name=f"c{i}")(x)
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(x)))


def macs_of(widths):
    """By hand: 64 places, 3 x 3 kernels; then the head."""
    pairs = itertools.pairwise((2, *widths))
    return 64 * 9 * sum(a * b for a, b in pairs) + 3 * widths[-1]


@pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
@pytest.mark.parametrize("target", [0.4, 0.6, 0.8, 0.9])
def test_no_step_of_a_group_could_stay_within_the_target(scope, target):
    model = chain()
    small, plan = prune_channels(model, macs=target, round_to=8, scope=scope)
    limit = target * macs_of((16, 16, 16))
    widths = [layer.after for layer in plan.layers if layer.layer != "head"]
    assert set(widths) <= {8, 16}
    assert measure.macs(small) == plan.macs[1] == macs_of(widths) <= limit
    for index in range(3):
        wider = [*widths]
        wider[index] += 8
        assert wider[index] > 16 or macs_of(wider) > limit


def test_steps_worth_most_come_back_first_and_dead_channels_do_not():
    scores = {0: [0.0, 0.0, 3.0, 4.0], 1: [1.0, 1.0, 1.0, 1.0], 2: [0.0, 0.0, 0.0, 0.0]}
    units = [Unit(10 * g + i, g, score) for g, own in scores.items() for i, score in enumerate(own)]
    ranking = Ranking(units, "global", dict.fromkeys(scores, 0), 2)
    everything = np.array(sorted(unit.root for unit in units))
    assert ranking.give_back(everything, lambda gone: len(gone) >= 10).tolist() == [
        0,
        1,
        *range(10, 14),
        *range(20, 24),
    ]
    assert ranking.give_back(everything, lambda gone: len(gone) >= 8).tolist() == [0, 1, 10, 11, *range(20, 24)]
    assert ranking.give_back(everything, lambda gone: True).tolist() == [0, 1, *range(20, 24)]
    assert ranking.give_back(everything, lambda gone: False).tolist() == everything.tolist()
