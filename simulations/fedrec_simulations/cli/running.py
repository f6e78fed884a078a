"""Laying out a run folder and driving it on one of the three engines; what `train`, `demo` and `federation` share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrec.core.errors import EnvironmentProblem
from fedrec.core.files import write_json
from fedrec.recommenders.registry import build
from fedrec_server.rounds.coordinator import Outcome
from fedrec_simulations.cli.interrupts import StopRequest
from fedrec_simulations.cli.options import Engine
from fedrec_simulations.cli.progress import RoundProgress
from fedrec_simulations.engines.held_data import refuse_elsewhere, write_held
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder

Event = dict[str, Any]


def default_folder(config: Config) -> Path:
    """Where a run lies unless `--out` says otherwise."""
    return Path("runs") / config.name


def lay_out(
    config: Config, prepared: Prepared, out: Path, engine: Engine, nodes: int | None = None
) -> RunFolder:
    """A new run folder for an engine; in process one node hosts all users where nothing depends on nodes."""
    refuse_elsewhere(config, engine)
    alone = engine == "in-process" and config.one_node_suffices
    count = nodes or (1 if alone else config.federation.nodes)
    run = RunFolder.create(out, config, prepared, count)
    # Never the path of the interpreter: the folder may be handed on.
    write_json(out / "command.json", {"engine": engine, "command": shlex.join(["fedrec", *sys.argv[1:]])})
    return run


def drive(run: RunFolder, engine: Engine, on_event: Callable[[Event], None] = lambda event: None) -> Outcome:
    """Train until the end or until Ctrl-C, with progress on stderr; goes on where the last checkpoint lies.

    A run that is finished has its privacy statement, and where its researcher holds the data what he measures on it.
    """
    refuse_elsewhere(run.config, engine)
    outcome = _drive(run, engine, on_event)
    if outcome.finished:
        if run.config.evaluation.held_data:
            write_held(run)
        from fedrec_simulations.report.privacy_facts import write_privacy

        write_privacy(run)
    return outcome


def _drive(run: RunFolder, engine: Engine, on_event: Callable[[Event], None]) -> Outcome:
    config, nodes = run.config, len(run.node_folders())
    with (
        StopRequest() as stop,
        RoundProgress(config, run.records, fixed_rounds=build(config.model).fixed_rounds) as progress,
    ):

        def both(event: Event) -> None:
            progress(event)
            on_event(event)

        if engine == "in-process":
            return run_in_process(run.path, on_event=both, stop=stop)
        try:
            from fedrec_simulations.engines.deployment import run_deployment
            from fedrec_simulations.engines.flower import run_flower
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                f"engine {engine!r} needs package {error.name!r}: pip install 'fedrec[sim]'"
            ) from error
        start = run_flower if engine == "flower" else run_deployment
        return start(run.path, nodes, on_event=both, stop=stop)
