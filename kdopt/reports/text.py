"""Numbers for people, and the table that a terminal shows."""

from kdopt.reports.record import Report, Variant


def bytes_text(size: int) -> str:
    """1 kB = 1,000 bytes: `9.6 kB`, `1.69 MB`."""
    if size < 1_000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.2f} MB"


def count_text(count: int) -> str:
    """`9,610`, `2.31 M`."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.2f} M"


def ratio_text(ratio: float) -> str:
    """`3.4x`, `26x`."""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def gain_text(report: Report, variant: Variant) -> str:
    """One sentence: what `variant` won against the reference."""
    gain = report.gain(variant)
    faster = f"{ratio_text(gain.speed)} faster" if gain.speed >= 1 else f"{ratio_text(1 / gain.speed)} slower"
    return (
        f"{variant.name}: {ratio_text(gain.size)} smaller ({ratio_text(gain.gzip)} after gzip), {faster}, "
        f"{gain.points:+.2f} points of accuracy against {report.reference}"
    )


HEADINGS = (
    "variant",
    "accuracy",
    "corrupted",
    "bytes",
    "gzip",
    "latency",
    "parameters",
    "non-zero",
    "MACs",
    "verified",
)


def rows(report: Report) -> list[tuple[str, ...]]:
    """The cells of the table below `HEADINGS`, one row for each variant."""
    return [
        (
            variant.name,
            f"{100 * variant.accuracy:.2f} %",
            "-" if variant.robustness is None else f"{100 * variant.robustness:.2f} %",
            f"{variant.size_bytes:,}",
            f"{variant.gzip_bytes:,}",
            f"{variant.latency_ms:.4f} ms",
            f"{variant.parameters:,}",
            f"{variant.nonzero:,}",
            count_text(variant.macs),
            "passed" if variant.verification["passed"] else "FAILED",
        )
        for variant in report.variants
    ]


def table_text(report: Report) -> str:
    """The table and what was won, in plain characters."""
    lines = [HEADINGS, *rows(report)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = ["  ".join(_aligned(line, widths)) for line in lines]
    shown.insert(1, "  ".join("-" * width for width in widths))
    won = [gain_text(report, variant) for variant in report.variants if variant.name != report.reference]
    return "\n".join([*shown, "", *won])


def _aligned(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return [first.strip().ljust(widths[0]), *others]
