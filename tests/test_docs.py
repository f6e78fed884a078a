"""The documentation runs as it stands: Python blocks are executed, command lines parsed, links followed.

Blocks of one page share their names and a temporary folder, in the order in which they stand. What a page says is
printed (`print(x)  # 3 users`) must be printed. A command line is parsed by the real `fedrec` program, and not run.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from fedrec.content.encoders import ENCODERS
from fedrec.data.loaders.common import LOADERS
from fedrec.evaluation.metrics import METRICS
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.recommenders.registry import RECOMMENDERS
from fedrec.rounds.aggregation import AGGREGATION_RULES
from fedrec_simulations.experiments.model_keys import page

REGISTRIES = (RECOMMENDERS, LOADERS, METRICS, ENCODERS, MECHANISMS, AGGREGATION_RULES)

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(
    r"^(?P<fence>```+)(?P<kind>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.DOTALL | re.MULTILINE
)
INDENTED_COMMAND = re.compile(r"^    (?P<body>fedrec(?:-server)? .*)$", re.MULTILINE)
PROMISED = re.compile(r"^print\(.*\)  # (?P<said>.+)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
#: Words after `#` that explain and do not quote what is printed begin like this.
EXPLAINS = ("one line", "each", "the ", "a ")
#: Where the shell takes over.
SHELL = {"|", "&&", "||", ";", ">", ">>", "&"}
USAGE_WORDS = {"...": "x", "RUN...": "RUN"}


def blocks(page: Path, kind: str) -> list[str]:
    return [m["body"] for m in FENCED.finditer(page.read_text("utf-8")) if m["kind"] == kind]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def forgotten() -> Iterator[ExitStack]:
    """What pages register is forgotten after them."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forgotten: ExitStack,
) -> None:
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:
        forgotten.enter_context(registry.restored())
    # A module that can be found: dataclasses look their annotations up in it.
    module = types.ModuleType("docs")
    monkeypatch.setitem(sys.modules, "docs", module)
    names = module.__dict__
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{name(page)}, Python block {number}", "exec"), names)
        said = capsys.readouterr().out
        for promise in PROMISED.finditer(block):
            if not promise["said"].startswith(EXPLAINS):
                assert promise["said"].strip() in said, f"{name(page)} promises other output"


def command_lines(page: Path) -> list[str]:
    """Each command of both programs in console and indented blocks, comments and prompts taken off."""
    text = page.read_text("utf-8")
    bodies = [*blocks(page, "console"), *blocks(page, "bash"), *blocks(page, "sh")]
    bodies += [m["body"] for m in INDENTED_COMMAND.finditer(FENCED.sub("", text))]
    lines = "\n".join(bodies).replace("\\\n", " ").splitlines()
    plain = (re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ") for line in lines)
    return [line for line in plain if line.startswith(("fedrec ", "fedrec-server "))]


def parse(command: click.Command, arguments: list[str], context: click.Context | None = None) -> None:
    """Parse down to the last command, carrying nothing out."""
    made = command.make_context(command.name or "fedrec", arguments, parent=context, resilient_parsing=False)
    if isinstance(command, click.Group):
        rest = [*made._protected_args, *made.args]
        found, chosen, tail = command.resolve_command(made, rest)
        assert chosen is not None, f"no command {found}"
        parse(chosen, tail, made)


COMMANDS = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{name(p)}: {line}" for p, line in COMMANDS])
def test_command_lines_parse(page: Path, line: str) -> None:
    from fedrec_server.cli import commands as operator
    from fedrec_server.cli.lazy import command_of
    from fedrec_simulations.cli import commands as researcher

    words = shlex.split(line.replace("[", "").replace("]", ""))
    own = list(itertools.takewhile(lambda word: word not in SHELL, words))
    try:
        table = operator.PROGRAM if own[0] == "fedrec-server" else researcher.PROGRAM
        parse(command_of(own[0], table), [USAGE_WORDS.get(word, word) for word in own[1:]])
    except click.ClickException as error:
        pytest.fail(f"{name(page)}: `{line}`: {error.format_message()}")
    except click.exceptions.Exit as end:
        assert end.exit_code == 0, "only --help and its like end while parsing"


def anchor(heading: str) -> str:
    """The name under which the usual Markdown renderers make a heading linkable."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text("utf-8"))
    targets = [m["target"] or m["image"] for m in LINK.finditer(text)]
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif fragment and target.suffix == ".md":
            anchors = {anchor(m["text"]) for m in HEADING.finditer(FENCED.sub("", target.read_text("utf-8")))}
            broken += [] if fragment in anchors else [link]
    assert not broken, f"{name(page)} links to what is not there: {broken}"


def test_there_is_something_to_check() -> None:
    """A wrong pattern would make all of the above pass."""
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 4
    assert len(COMMANDS) >= 4
    assert sum(len(links(page)) for page in PAGES) >= 4


PITFALLS = ROOT / "docs" / "reference" / "privacy-pitfalls.md"


def test_every_pitfall_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", PITFALLS.read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 23
    for number, cell in rows:
        if cell.strip() == "none":
            continue
        found = re.search(r"`(test_\w+\.py)::(test_\w+)`", cell)
        assert found, f"pitfall {number} names no test"
        (path,) = (ROOT / "tests").rglob(found[1])
        source = path.read_text("utf-8")
        assert f"def {found[2]}(" in source, f"pitfall {number}: {found[2]} is not in {found[1]}"


def test_the_table_of_recommenders_says_what_was_recorded() -> None:
    code = "from benchmarks.family_pages import pages; assert all(p.read_text() == t for p, t in pages().items())"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_page_of_keys_is_that_of_the_configurations() -> None:
    assert (ROOT / "docs" / "reference" / "model-keys.md").read_text() == page()
