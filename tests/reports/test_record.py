"""Records: ratios by hand, JSON there and back."""

import dataclasses
import json

import pytest

from kdopt.reports.record import Gain, read_json, write_json


def test_gain_is_reference_over_variant(report):
    gain = report.gain(report.variant("student int8"))
    assert gain == Gain(size=25.0, gzip=50.0, speed=4.0, macs=4.0, points=pytest.approx(-1.5))
    assert report.variant("student int8").sparsity == 0.75


def test_json_there_and_back(report, tmp_path):
    path = write_json(report, tmp_path / "report.json")
    assert read_json(path) == report
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    wanted = {"accuracy", "size_bytes", "gzip_bytes", "latency_ms", "parameters", "nonzero", "macs", "verification"}
    assert wanted <= set(content["variants"][1])


def test_infinity_becomes_null(report, tmp_path):
    verification = {"passed": True, "why": "equal", "snr_db": float("inf")}
    perfect = dataclasses.replace(report.variants[0], verification=verification)
    report = dataclasses.replace(report, variants=(perfect, report.variants[1]))
    text = write_json(report, tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["variants"][0]["verification"]["snr_db"] is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "variants": [{}]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a report of this version"):
        read_json(path)


def test_impossible_reports_are_refused(report):
    with pytest.raises(ValueError, match="must name a variant"):
        dataclasses.replace(report, reference="someone")
    with pytest.raises(ValueError, match="different names"):
        dataclasses.replace(report, variants=report.variants[:1] * 2)
