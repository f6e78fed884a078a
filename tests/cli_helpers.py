"""Runs command lines in this process, on planted data that lies in a CSV file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import planted

with warnings.catch_warnings():
    # typer uses names that click has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from fedrec_server.cli import commands as operator
    from fedrec_server.cli import program
    from fedrec_simulations.cli import commands as researcher

CONFIG = """
name = "small"
[data]
name = "file"
path = {path}
timestamp_column = "time"
[model]
kind = {kind}
{model}
[federation]
rounds = {rounds}
evaluate_every = {every}
nodes = 3
[evaluation]
bootstrap = 20
[privacy]
unit = "none"
aggregator = "plain"
insecure = true
"""


def run(*arguments: object) -> int:
    """The exit code of `fedrec ARGUMENTS`."""
    return _run("fedrec", researcher.PROGRAM, arguments)


def operate(*arguments: object) -> int:
    """The exit code of `fedrec-server ARGUMENTS`."""
    return _run("fedrec-server", operator.PROGRAM, arguments)


def _run(name: str, table: program.Group, arguments: Sequence[object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return program.run(name, table, [str(argument) for argument in arguments])


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Exit code and document of `fedrec ARGUMENTS --json`; stdout must hold that and nothing else."""
    capsys.readouterr()
    code = run(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def ask_operator(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """The same of `fedrec-server ARGUMENTS --json`."""
    capsys.readouterr()
    code = operate(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def write_table(path: Path, rows: Sequence[tuple[object, ...]] | None = None) -> Path:
    """The planted interactions as user,item,time."""
    data = planted(60, 40)
    rows = rows or [
        (f"u{user}", data.item_ids[item], k)
        for k, (user, item) in enumerate(zip(data.user.tolist(), data.item.tolist(), strict=True))
    ]
    path.write_text("user,item,time\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def write_config(folder: Path, kind: str = "mf", rounds: int = 4, every: int = 1) -> Path:
    """A small experiment on the planted table."""
    table = write_table(folder / "plays.csv")
    model = "embedding_size = 4\nlearning_rate = 0.1" if kind == "mf" else ""
    text = CONFIG.format(
        path=json.dumps(str(table)), kind=json.dumps(kind), model=model, rounds=rounds, every=every
    )
    path = folder / f"{kind}.toml"
    path.write_text(text)
    return path
