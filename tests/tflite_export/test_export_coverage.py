"""Nets of many kinds in every precision: a file that passes, or a refusal that says which layer and what to do.

The matrix with keras.applications in it: `python benchmarks/export_coverage.py run`.
"""

import keras
import pytest
from export_nets import PRECISIONS, SMALL, data_of, export
from qat_nets import alive

INTEGERS = {"int8", "uint8", "int8_float_io", "int8_int4", "int16x8"}


@pytest.mark.slow
@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_every_precision_passes_or_is_refused_with_a_way_out(make):
    keras.utils.set_random_seed(0)
    net = make() if make.__name__ == "subclassed" else alive(make())
    given, held = data_of(net, 1, 32), data_of(net, 3, 8)
    for precision in PRECISIONS:
        found = export(net, precision, given, held)
        if "failed" in found:
            assert precision in INTEGERS, found
            assert "layer '" in found["failed"], found
            assert any(way in found["failed"] for way in ("unroll=True", "Choose '")), found
        else:
            assert found["cosine"] > 0.9, found  # of untrained nets; another function has none
            assert found["passed"] or precision in INTEGERS, found
