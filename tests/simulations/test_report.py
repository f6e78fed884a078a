"""The HTML report: nothing from outside, everything escaped, honest about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_helpers import run, write_config

from fedrec.evaluation.report import Estimate
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.page import write_page
from fedrec_simulations.report.plots import Line, curves, intervals
from fedrec_simulations.report.summary import Summary, same_question, side_by_side


class Collector(HTMLParser):
    """Tags that are open, addresses that are referred to, headings."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.outside.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    config = write_config(folder, "mf", rounds=3)
    assert run("train", config, "--set", 'name="<b>&run"', "--out", folder / "run") == 0
    assert run("evaluate", folder / "run", "--baseline") == 0
    return folder / "run"


def _read(path: Path) -> Collector:
    page = Collector()
    page.feed(path.read_text())
    assert not page.open
    return page


def test_page_is_whole_and_self_contained(run_folder: Path, tmp_path: Path) -> None:
    page = _read(write_page(tmp_path / "page.html", [Summary(RunFolder(run_folder))]))
    assert page.outside == []
    text = " ".join(page.text)
    for part in (
        "Results",
        "Learning curves",
        "For whom it works",
        "What the lists are like",
        "Example lists",
        "What was sent",
        "Data and cleaning",
        "How to repeat it",
        "NO DIFFERENTIAL PRIVACY",
        "centralised baseline",
    ):
        assert part in text
    assert "url(http" not in (tmp_path / "page.html").read_text()
    assert "<b>&run" not in (tmp_path / "page.html").read_text().replace("&lt;b&gt;", "")
    assert "<b>&run" in text


def test_pages_are_the_same_every_time_and_ids_do_not_clash(run_folder: Path, tmp_path: Path) -> None:
    summary = Summary(RunFolder(run_folder))
    first = write_page(tmp_path / "a.html", [summary]).read_text()
    assert write_page(tmp_path / "b.html", [summary]).read_text() == first
    plots = re.findall(r"<svg.*?</svg>", first, re.S)
    used = [set(re.findall(r'clipPath id="([^"]+)"', svg)) for svg in plots]
    assert len(plots) >= 6 and sum(map(len, used)) == len(set.union(*used))


def test_page_of_a_run_without_a_test_part(run_folder: Path, tmp_path: Path) -> None:
    split = run_folder / "split" / "train.parquet"
    config = run_folder.parent / "mf.toml"
    assert run("train", config, "--train", split, "--out", tmp_path / "run") == 0
    page = _read(tmp_path / "run" / "report.html")
    assert "For whom it works" not in " ".join(page.text)
    assert "the split came from elsewhere" in " ".join(page.text)


def test_names_side_by_side(run_folder: Path, tmp_path: Path) -> None:
    summary = Summary(RunFolder(run_folder))
    assert [one.name for one in side_by_side([summary, summary])] == [str(run_folder)] * 2
    assert side_by_side([summary])[0].name == "<b>&run"
    assert same_question([summary, summary])


def test_plots_are_svg_in_the_colour_of_the_page() -> None:
    some = Estimate(0.5, 0.4, 0.6)
    for svg in (
        intervals([("a", [("x", some), ("y", None)]), ("b", [("x", Estimate(0.1))])], "score", "a & b"),
        curves([Line("a <b>", [1, 2], [0.1, 0.2], 2)], "round", "loss", "loss"),
    ):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and root.get("width") is None and root.get("viewBox")
        assert "currentColor" in svg and "#010203" not in svg
