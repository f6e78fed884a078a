"""Options that several commands share, and the experiments that come with fedrec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.run_setup import Engine as Engine
from fedrec_simulations.experiments.shipped import find_config as find_config

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


def read_config(source: str, overrides: list[str] | None = None) -> Config:
    """The configuration of a file or of an experiment that comes with fedrec.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    return load_config(find_config(source), overrides or ())
