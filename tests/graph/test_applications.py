"""Every architecture of keras.applications at half its multiply-accumulates, equal to the oracle."""

import keras
import numpy as np
import pytest
from channel_oracle import difference, disturbed, inputs_of, with_zeroed_readers

from kdopt.core import measure
from kdopt.graph import trace_channels
from kdopt.pruning.structural import apply_plan, plan_channels
from kdopt.pruning.structural.apply import _identities

SIDES = {"InceptionResNetV2": 96, "InceptionV3": 96, "Xception": 96, "NASNetLarge": 96, "NASNetMobile": 96}
NAMES = sorted(
    name for name in dir(keras.applications) if name[0].isupper() and callable(getattr(keras.applications, name))
)
FAST = ["MobileNetV3Small"]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_half_the_multiply_accumulates(name):
    side = SIDES.get(name, 64)
    make = getattr(keras.applications, name)
    model = disturbed(make(weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None))
    plan = plan_channels(model, macs=0.5, allow_normalized_axes=False)
    small = apply_plan(model, plan, check=False)
    assert measure.macs(small) <= 0.5 * measure.macs(model)
    assert plan.macs[1] == pytest.approx(measure.macs(small), rel=1e-6)
    graph = trace_channels(model)
    oracle = with_zeroed_readers(model, graph, _identities(model, plan, graph))
    found = difference(oracle, small, inputs_of(model))
    assert np.isfinite(found)
    assert found < 1e-5
