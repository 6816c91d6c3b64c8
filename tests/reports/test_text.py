import dataclasses

from kdopt.reports import text


def test_units():
    assert [text.bytes_text(n) for n in (999, 9_584, 1_690_000)] == ["999 B", "9.6 kB", "1.69 MB"]
    assert [text.count_text(n) for n in (9_610, 2_310_000)] == ["9,610", "2.31 M"]
    assert [text.ratio_text(r) for r in (3.44, 26.4)] == ["3.4x", "26x"]


def test_table_shows_the_measured_numbers_in_columns(report):
    lines = text.table_text(report).splitlines()
    assert lines[3].split() == [
        *(
            "student",
            "int8",
            "88.50",
            "%",
            "61.00",
            "%",
            "16,000",
            "6,000",
            "0.2000",
            "ms",
            "10,000",
            "2,500",
            "500,000",
            "passed",
        )
    ]
    assert lines[2].split()[:4] == ["teacher", "90.00", "%", "-"]  # not measured
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == (
        "student int8: 25x smaller (50x after gzip), 4.0x faster, -1.50 points of accuracy against teacher"
    )


def test_slower_and_failed_are_said(report):
    bad = {"passed": False, "why": "too far"}
    slow = dataclasses.replace(report.variants[1], latency_ms=1.6, verification=bad)
    report = dataclasses.replace(report, variants=(report.variants[0], slow))
    assert "2.0x slower" in text.gain_text(report, slow)
    assert text.rows(report)[1][-1] == "FAILED"
