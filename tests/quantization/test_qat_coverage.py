"""Nets of many kinds: built, trained for a step, exported without a float operation, and the file is the model.

The matrix with keras.applications in it: `python benchmarks/qat_coverage.py run`.
"""

import keras
import pytest
from channel_oracle import disturbed
from qat_nets import NETS, alive, gru, lstm, mixed_precision, with_call
from qat_record import record

REFUSED = {
    ("tfmot", mixed_precision): "trains in float32",
    ("tfmot", lstm): "unroll=True",
    ("tfmot", gru): "unroll=True",
    ("tfmot", with_call): "functional API",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "tfmot"])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_it_trains_and_its_file_is_it(net, engine):
    keras.utils.set_random_seed(0)
    found = record(alive(disturbed(net())), engine)
    if (engine, net) in REFUSED:
        assert REFUSED[engine, net] in found["failed"]
        return
    assert "failed" not in found
    assert found["float"] == 0
    assert 0 < found["loss"] < float("inf")
    assert found["untouched"] == []
    assert found["spread"] > 20  # else equal outputs would prove nothing
    assert found["mean"] <= found["kernels mean"] + 1
    assert found["max"] <= found["kernels max"] + 4
    if engine == "native":
        assert found["calibrated"] == ()
