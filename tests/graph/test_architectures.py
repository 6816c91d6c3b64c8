"""Nets as people build them at half their multiply-accumulates: equal to the oracle, trained on, exported."""

import os
from pathlib import Path

import pytest
from architectures import MLPERF, NETS, bert, mlperf, subclassed, vision_transformer
from channel_oracle import disturbed
from coverage import exported, halved, train_step

from kdopt.pruning.structural import apply_plan, plan_channels

FOLDER = os.environ.get("KDOPT_DATA_DIR")
NEEDS_DATA = pytest.mark.skipif(FOLDER is None, reason="KDOPT_DATA_DIR names no folder with mlperf-tiny/ in it")


def name_of(net):
    return net.__name__


def check(model, eagerly=False):
    """The oracle and a step of training; returns the smaller model."""
    found = halved(model)
    assert found.macs[1] <= 0.5 * found.macs[0]
    assert found.plan.macs == pytest.approx(found.macs, rel=1e-3)  # that of attention is close, not exact
    assert found.difference < min(1e-5, 0.1 * found.changed)
    loss, untouched = train_step(found.small, eagerly=eagerly)
    assert 0 < loss < float("inf")
    assert untouched == []
    return found.small


LONG = ("yolo", "tagger_unrolled", "bert", "subclassed")


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=[pytest.mark.slow] * (name_of(net) in LONG)) for net in NETS], ids=name_of
)
def test_half_the_multiply_accumulates(net):
    check(disturbed(net()), eagerly=True)  # a third of the time; compiled in the slow test


def test_a_subclassed_net_of_subclassed_blocks_is_compared():
    """Made again as a Functional net it has its weights in another order."""
    model = subclassed()
    small = apply_plan(model, plan_channels(model, parameters=0.5), check=True)
    assert small.count_params() <= 0.5 * model.count_params()


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS, ids=name_of)
def test_the_smaller_net_can_be_exported(net):
    small = check(disturbed(net()))
    found, _ = exported(small, "float32")
    assert found.passed, found.why
    if net not in (bert, vision_transformer) and net.__name__ != "tagger":  # layer normalization, loops: no int8 yet
        found, _ = exported(small, "int8")
        assert found.passed, found.why


@NEEDS_DATA
@pytest.mark.parametrize("name", MLPERF)
def test_the_nets_of_mlperf_tiny(name, tmp_path):
    small = check(mlperf(Path(FOLDER) / "mlperf-tiny" / MLPERF[name], tmp_path))
    for precision in ("float32", "int8"):
        found, _ = exported(small, precision)
        assert found.passed, found.why
