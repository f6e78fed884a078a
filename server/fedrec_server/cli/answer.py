"""What a command answers: one JSON document and the same thing for users to read.

Commands compute and return; only `main` prints to stdout. Progress, warnings and hints go to stderr through
`notice`, so that stdout stays one document with --json. Out of scope: errors (exceptions, see `fedrec.core.errors`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

INTERRUPTED = 130


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        document: what `--json` prints.
        view: what is printed otherwise, one renderable after the other; text knows rich's markup.
        exit_code: see `docs/reference/cli.md`.
    """

    document: dict[str, Any]
    view: Sequence[RenderableType] = field(default_factory=list)
    exit_code: int = 0


def notice(text: str, style: str = "") -> None:
    """One line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(text), style=style)


def warn(lines: Sequence[str]) -> None:
    """Warnings, loudly, on stderr."""
    for line in lines:
        notice(f"warning: {line}", "bold red")


def to_json(document: Mapping[str, Any]) -> str:
    """Strict JSON: numpy and paths become plain, numbers that are no numbers become null."""
    return json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are text, the others numbers; cells are taken literally."""
    out = Table(
        title=escape(title) if title else None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_header=any(columns),
    )
    for k, column in enumerate(columns):
        out.add_column(escape(column), justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        out.add_row(*(escape(cell) for cell in row))
    return out
