"""What tests need beside the project's packages: skipped with the way to get it, an error where it is required."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_parts import PARTS, REQUIRE, Part, need

TESTS = Path(__file__).parent
#: Two of four tests need what is missing, once by the mark and once by a call.
MODULE = """
import pytest
from real_parts import PARTS, Part, need

PARTS["harp"] = Part(lambda: False, "apt-get install harp")
PARTS["licence"] = Part(lambda: False, "accept it", installable=False)

@pytest.fixture
def expensive():
    raise RuntimeError("set up for nothing")

@pytest.mark.needs("harp")
def test_by_mark(expensive): ...

def test_by_call():
    need("harp")

def test_optional():
    need("licence")

def test_without(): ...
"""


def run(folder: Path, required: str) -> str:
    (folder / "test_it.py").write_text(MODULE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = needs(part): of real_parts\n")
    env = os.environ | {REQUIRE: required, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "real_parts",
        "-p",
        "no:cacheprovider",
        "-rN",
        str(folder),
    ]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_a_run_without_a_part_ends_with_one_table(tmp_path: Path) -> None:
    out = run(tmp_path, "")
    assert "1 passed, 3 skipped" in out
    head, harp, licence = out.partition("not run on this machine")[2].splitlines()[1:4]
    assert re.split(r"\s{2,}", head) == ["part", "tests", "how to get it", "in"]
    assert re.split(r"\s{2,}", harp) == ["harp", "2", "apt-get install harp", "test_it.py"]
    assert re.split(r"\s{2,}", licence) == ["licence", "1", "accept it", "test_it.py"]


def test_the_gate_fails_where_a_part_is_missing(tmp_path: Path) -> None:
    out = run(tmp_path, "all")
    assert (
        "1 passed, 1 skipped" in out and "1 failed" in out and "1 error" in out
    )  # in setup, and in the test
    assert out.count("harp is missing and FEDREC_REQUIRE is 'all': expected it; apt-get install harp") == 2
    assert "set up for nothing" not in out


@pytest.mark.parametrize("required", ["licence", "harp,licence"])
def test_a_part_that_all_leaves_out_is_required_by_name(tmp_path: Path, required: str) -> None:
    assert "licence is missing" in run(tmp_path, required)


def test_a_part_that_is_there_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "harp", Part(lambda: True, ""))
    monkeypatch.setenv(REQUIRE, "all")
    need("harp")


def test_tests_are_skipped_through_this_module_alone() -> None:
    """Another skip would be missing in the table's columns, and the gate would not see it."""
    skips = re.compile(r"pytest\.skip\(|importorskip|skipif|mark\.skip\b|unittest\.skip")
    found = [path.name for path in TESTS.rglob("*.py") if skips.search(path.read_text("utf-8"))]
    assert sorted(found) == ["real_parts.py", "test_real_parts.py"]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_each_part_says_whether_it_is_there(name: str) -> None:
    assert PARTS[name].found() in (True, False) and PARTS[name].how
