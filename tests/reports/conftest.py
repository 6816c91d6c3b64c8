import pytest

from kdopt.reports.record import Report, Variant


def make_variant(name, **changes):
    """Numbers that divide well."""
    values = dict(
        name=name,
        precision="float32",
        file=f"{name.replace(' ', '_')}.tflite",
        accuracy=0.9,
        size_bytes=400_000,
        gzip_bytes=300_000,
        latency_ms=0.8,
        latency_p90_ms=0.9,
        parameters=100_000,
        nonzero=100_000,
        macs=2_000_000,
        verification={"passed": True, "why": "rmse 1e-6 <= 1e-4", "snr_db": 120.0},
    )
    return Variant(**{**values, **changes})


@pytest.fixture
def report():
    small = dict(accuracy=0.885, robustness=0.61, size_bytes=16_000, gzip_bytes=6_000, latency_ms=0.2, macs=500_000)
    sparse = dict(parameters=10_000, nonzero=2_500, precision="int8")
    epochs = [{"epoch": i + 1, "sparsity": i / 10, "val_accuracy": 0.8 + i / 100, "loss": 1.0} for i in range(5)]
    return Report(
        title="A <run>",
        facts={"seed": 0, "data": "a & b"},
        stages={"teacher": [{"epoch": 1, "val_accuracy": 0.9}], "student": epochs, "int8": epochs[-1:]},
        variants=(make_variant("teacher"), make_variant("student int8", **small, **sparse)),
        reference="teacher",
        seconds=12.5,
        notes=("Read this.",),
    )
