"""Options of the researcher's commands, and the experiments that come with fedrec."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrec_server.cli.options import JsonFlag as JsonFlag
from fedrec_server.cli.options import Overrides as Overrides
from fedrec_server.cli.options import RunArgument as RunArgument
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.run_setup import Engine as Engine
from fedrec_simulations.experiments.shipped import find_config as find_config

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="TOML file, or the name of an experiment that comes with fedrec."),
]


def read_config(source: str, overrides: list[str] | None = None) -> Config:
    """The configuration of a file or of an experiment that comes with fedrec.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    return load_config(find_config(source), overrides or ())
