"""Options that messages name exist: in the command that a message quotes, or else in one of the commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fedrec_server.cli import commands as operator
from fedrec_server.cli.lazy import Group, load
from fedrec_simulations.cli import commands as researcher

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedrec", "server/fedrec_server", "client/fedrec_client", "simulations/fedrec_simulations")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
QUOTED = re.compile(r"`(fedrec(?:-server)? [^`]+)`")
#: Calls whose text a user reads.
TELLS = re.compile(
    r"(Error|Refused|Problem|Abandoned|Aborted|Exhausted|Tampered|Busy|UsageError|notice|warn)$"
)


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each message; what is formatted into it is a word of its own."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not TELLS.search(ast.unparse(node.func)):
            continue
        for argument in node.args:
            parts = [
                part.value if isinstance(part, ast.Constant) else "X"
                for part in (argument.values if isinstance(argument, ast.JoinedStr) else [argument])
                if isinstance(part, ast.Constant | ast.FormattedValue)
            ]
            if parts and all(isinstance(part, str) for part in parts):
                yield node.lineno, "".join(map(str, parts))


def options_of(name: str, target: str) -> set[str]:
    command = load(name, target)
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}


def table() -> dict[tuple[str, ...], set[str]]:
    programs: dict[str, Group] = {"fedrec": researcher.PROGRAM, "fedrec-server": operator.PROGRAM}
    return {
        (program, *words): options_of(words[-1], target)
        for program, group in programs.items()
        for words, target in group.walk()
    }


COMMANDS = table()
ALL = set().union(*COMMANDS.values())


def wrong(text: str) -> list[str]:
    """Options in a message that do not exist where it says."""
    found = []
    for quoted in QUOTED.findall(text):
        words = tuple(quoted.split())
        command = next((c for c in COMMANDS if words[: len(c)] == c), None)
        if command is None:
            if not any(c[: len(words)] == words for c in COMMANDS):
                found.append(f"no command `{quoted}`")
            continue
        found += [f"`{quoted}`: {o}" for o in OPTION.findall(quoted) if o not in COMMANDS[command]]
    return found + [option for option in OPTION.findall(QUOTED.sub("", text)) if option not in ALL]


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_name_options_that_exist(folder: str) -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {each}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in messages(path)
        for each in wrong(text)
    ]
    assert not problems, "\n".join(problems)


def test_a_message_with_a_wrong_option_is_found(tmp_path: Path) -> None:
    lines = [
        'raise RunError(f"{x} died: go on with --resumed")',
        'notice("see `fedrec-server federation run --resume`")',
        'raise ConfigError("see `fedrec-server federations`")',
    ]
    (tmp_path / "module.py").write_text("\n".join(lines))
    found = [each for _, text in messages(tmp_path / "module.py") for each in wrong(text)]
    assert found == [
        "--resumed",
        "`fedrec-server federation run --resume`: --resume",
        "no command `fedrec-server federations`",
    ]
    assert not wrong("see `fedrec train --resume X`") and isinstance(
        load("x", "fedrec_server.cli.sites:run"), click.Command
    )
