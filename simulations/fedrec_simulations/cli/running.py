"""Laying out a run folder and driving it on one of the engines; what `train`, `demo` and `federation` share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrec.recommenders.registry import build
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.rounds.coordinator import Outcome
from fedrec_simulations.api import driving
from fedrec_simulations.cli.options import Engine
from fedrec_simulations.engines.held_data import refuse_elsewhere
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.experiments.run_setup import RunSetup, node_count
from fedrec_simulations.report.progress import RoundProgress

Event = dict[str, Any]


def default_folder(config: Config) -> Path:
    """Where a run is stored unless `--out` says otherwise."""
    return Path("runs") / config.name


def lay_out(
    config: Config, prepared: Prepared, out: Path, engine: Engine, nodes: int | None = None
) -> RunFolder:
    """A new run folder for an engine."""
    refuse_elsewhere(config, engine)
    setup = RunSetup.of(config, prepared, node_count(config, engine, nodes))
    return RunFolder.write(out, setup, engine=engine, command=shlex.join(["fedrec", *sys.argv[1:]]))


def drive(run: RunFolder, engine: Engine, on_event: Callable[[Event], None] = lambda event: None) -> Outcome:
    """Train until the end or until Ctrl-C, with progress on stderr; continues after the last checkpoint."""
    config = run.config
    fixed = build(config.model).fixed_rounds
    with StopRequest() as stop, RoundProgress(config, run.records, fixed_rounds=fixed) as progress:

        def both(event: Event) -> None:
            progress(event)
            on_event(event)

        return driving.drive(run, engine, on_event=both, stop=stop)
