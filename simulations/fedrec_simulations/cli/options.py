"""Options that several commands share, and the experiments that come with fedrec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import fedrec_simulations
from fedrec.core.errors import ConfigError
from fedrec_simulations.experiments.config import Config, load_config

Engine = Literal["in-process", "flower", "deployment"]

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a value of the configuration; may be repeated."),
]
ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="TOML file, or the name of an experiment that comes with fedrec."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, as `fedrec train` wrote it.", show_default=False)
]


def experiments_folder() -> Path | None:
    """The experiments that come with fedrec: inside the installed package, or beside it in a checkout."""
    package = Path(fedrec_simulations.__file__).parent
    for folder in (package / "experiments", package.parent / "experiments"):
        if any(folder.glob("*.toml")):
            return folder
    return None


def read_config(source: str, overrides: list[str] | None = None) -> Config:
    """The configuration of a file or of an experiment that comes with fedrec.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    return load_config(find_config(source), overrides or ())


def find_config(source: str) -> Path:
    """The file that CONFIG names.

    Raises:
        ConfigError: there is none.
    """
    path, folder = Path(source), experiments_folder()
    if path.exists() or path.suffix:
        return path
    known = sorted(file.stem for file in folder.glob("*.toml")) if folder else []
    if folder and source in known:
        return folder / f"{source}.toml"
    raise ConfigError(
        f"configuration {source!r} is neither a file nor an experiment of fedrec: give a TOML file or one of "
        f"{', '.join(known) or '(none installed)'}"
    )
