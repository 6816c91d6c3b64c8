"""A report as one HTML file: styles and plots inside, nothing loaded from elsewhere."""

import os
from html import escape
from pathlib import Path
from typing import Any

from kdopt.core.files import write_atomic
from kdopt.reports import plots
from kdopt.reports.record import Report, Variant
from kdopt.reports.text import HEADINGS, bytes_text, gain_text, ratio_text, rows

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6670; --paper: #ffffff; --card: #f5f6f8;
  --line: #dde1e6; --good: #18794e; --bad: #b42318; --accent: #3b82c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3abb5; --paper: #15181c; --card: #1e2227;
  --line: #343a41; --good: #4cc38a; --bad: #ff8c7f; --accent: #6cace4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.12rem; margin: 40px 0 12px; }
p { margin: 0 0 12px; }
.lead, figcaption, dt, .note { color: var(--soft); }
.note { font-size: 0.88rem; margin: 10px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 26px 0 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 0.88rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--card); color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tbody td:first-child { font-weight: 600; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
.passed { color: var(--good); font-weight: 600; } .FAILED { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 22px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
figure:nth-child(3) { grid-column: 1 / -1; }
figure svg { width: 100%; height: auto; display: block; color: var(--ink); }
figcaption { font-size: 0.88rem; margin-bottom: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0; font-size: 0.9rem; }
dd { margin: 0; }
ul { padding-left: 20px; margin: 0; font-size: 0.9rem; }
"""


def write_html(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page, whole or not at all. Needs matplotlib (`pip install 'kdopt[report]'`)."""
    return write_atomic(path, page(report).encode())


def page(report: Report) -> str:
    """The page as text: what was won, the table, the plots, how every file compares with its source, the facts."""
    title = escape(report.title)
    sections = (
        f"<h1>{title}</h1>",
        f'<p class="lead">{escape(_lead(report))}</p>',
        _cards(report),
        "<h2>Every file, measured</h2>",
        _table(report),
        "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        "<h2>Plots</h2>",
        _plots(report),
        "<h2>Is each file the same function as its source?</h2>",
        _verifications(report),
        "<h2>The run</h2>",
        _facts({**report.facts, "duration": f"{report.seconds:.0f} s"}),
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def smallest(report: Report) -> Variant:
    """The variant with the fewest bytes."""
    return min(report.variants, key=lambda variant: variant.size_bytes)


def _lead(report: Report) -> str:
    return gain_text(report, smallest(report)) + "."


def _cards(report: Report) -> str:
    best, base = smallest(report), report.variant(report.reference)
    gain = report.gain(best)
    speed = (gain.speed, "faster") if gain.speed >= 1 else (1 / gain.speed, "slower")
    cards = (
        (f"{ratio_text(gain.size)} smaller", f"{bytes_text(base.size_bytes)} to {bytes_text(best.size_bytes)}"),
        (f"{ratio_text(speed[0])} {speed[1]}", f"{base.latency_ms:.4f} ms to {best.latency_ms:.4f} ms"),
        (
            f"{gain.points:+.2f} points",
            f"accuracy {100 * base.accuracy:.2f} to {100 * best.accuracy:.2f} %",
        ),
        (f"{ratio_text(gain.macs)} fewer MACs", f"{100 * best.sparsity:.0f} % of parameters zero"),
    )
    inner = "".join(f'<div class="card"><b>{big}</b><span>{small}</span></div>' for big, small in cards)
    return f'<div class="cards">{inner}</div>'


def _table(report: Report) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = ""
    for i, cells in enumerate(rows(report)):
        dot = f'<span class="dot" style="background:{plots.COLORS[i % len(plots.COLORS)]}"></span>'
        middle = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:-1])
        body += f'<tr><td>{dot}{escape(cells[0])}</td>{middle}<td class="{cells[-1]}">{cells[-1]}</td></tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plots(report: Report) -> str:
    figures = [
        ("Accuracy against size", plots.accuracy_svg(report)),
        ("Latency", plots.latency_svg(report)),
    ]
    if plots.sparse_stages(report):
        figures.append(("Sparsity and validation accuracy over training", plots.training_svg(report)))
    inner = "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in figures)
    return f'<div class="plots">{inner}</div>'


def _verifications(report: Report) -> str:
    items = "".join(f"<li>{_verification(variant)}</li>" for variant in report.variants)
    return f"<ul>{items}</ul>"


def _verification(variant: Variant) -> str:
    found: dict[str, Any] = variant.verification
    word = "passed" if found["passed"] else "FAILED"
    why = found["why"].replace("<=", "≤")
    return f'<b>{escape(variant.name)}</b>: <span class="{word}">{word}</span>, {escape(why)}'


def _facts(facts: dict[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"
