"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a value of the configuration; may be repeated."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, as `fedrec train` wrote it.", show_default=False)
]
Models = Annotated[Path, typer.Option("--registry", help="Folder of the registry.")]
Population = Annotated[str, typer.Option("--population", help="Whose models.", show_default=False)]
Keys = Annotated[Path, typer.Option("--keys", help="Folder of all keys.")]
