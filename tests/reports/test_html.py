"""The page: whole, self-contained, well-formed, and with the numbers in it."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib as mpl

from kdopt.reports import plots
from kdopt.reports.html import page, write_html

VOID = {"meta", "link", "img", "br"}


class Balance(HTMLParser):
    """Fails on a tag that is not closed in order; collects the text and what is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.loaded = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_complete_and_loads_nothing(report, tmp_path):
    content = write_html(report, tmp_path / "report.html").read_text()
    parser = Balance()
    parser.feed(content)
    assert parser.open == []
    assert all(value.startswith("#") for value in parser.loaded)  # references inside the page only
    assert not re.search(r"@import|url\((?!#)", content)
    text = " ".join(parser.text)
    for wanted in (
        "25x smaller",
        "4.0x faster",
        "-1.50 points",
        "88.50 %",
        "16,000",
        "75 % of parameters zero",
        "A <run>",
    ):
        assert wanted in text, wanted
    assert "prefers-color-scheme: dark" in content


def test_names_are_escaped(report):
    assert "A <run>" not in page(report)
    assert "A &lt;run&gt;" in page(report)
    assert "a &amp; b" in page(report)


def test_plots_are_xml_take_the_color_of_the_page_and_keep_their_ids_apart(report):
    svgs = [plots.training_svg(report), plots.accuracy_svg(report), plots.latency_svg(report)]
    ids = []
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert "#000000" not in svg
        ids += re.findall(r'clipPath id="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) > 0


def test_plots_show_the_data(report):
    latency = plots.latency_svg(report)
    assert "0.8000 ms" in latency
    assert "0.2000 ms" in latency
    training = plots.training_svg(report)
    assert "student" in training
    assert "teacher" not in training  # logged no sparsity
    lines = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: #[0-9a-f]{6}; stroke-width: 2', training)
    assert [len(re.findall("[ML]", line)) for line in lines] == [6, 6]  # epochs of both sparse stages


def test_same_record_same_page_and_user_settings_stay(report):
    before = dict(mpl.rcParams)
    assert page(report) == page(report)
    assert dict(mpl.rcParams) == before
