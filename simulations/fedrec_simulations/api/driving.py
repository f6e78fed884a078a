"""From a run that is set up to a finished one, on any engine; what `fedrec.train` and the command line share.

Out of scope: progress, signals, printing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrec.core.errors import FederationError
from fedrec.core.extras import needs
from fedrec_server.rounds.coordinator import Outcome
from fedrec_simulations.api._scratch import Scratch
from fedrec_simulations.engines.held_data import refuse_elsewhere, write_held
from fedrec_simulations.engines.in_process import fits_in_memory, run_in_memory, run_in_process
from fedrec_simulations.experiments.finished_run import FinishedRun
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.experiments.run_setup import Engine, RunSetup

Event = dict[str, Any]


def drive(
    run: RunFolder,
    engine: Engine,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train the run of a folder until its end or until `stop`; continues after the last checkpoint.

    A run that is finished has its privacy statement, and exact metrics where its researcher holds the data.

    Raises:
        ConfigError: the configuration does not fit the engine.
        EnvironmentProblem: the engine needs a package that is not installed.
        FedrecError: whatever ended the coordinator.
    """
    refuse_elsewhere(run.config, engine)
    outcome = _engine(run, engine, on_event, stop)
    if outcome.finished:
        if run.config.evaluation.held_data:
            write_held(run)
        from fedrec_simulations.report.privacy_facts import write_privacy

        write_privacy(run)
    return outcome


def train_to_end(
    setup: RunSetup,
    engine: Engine,
    folder: Path | None = None,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
) -> tuple[FinishedRun, Scratch | None]:
    """A new run, and the temporary folder that holds it, if one does.

    Args:
        setup: of the run.
        engine: on which it goes.
        folder: run folder to write; None: the run is in memory, or in a temporary folder where it needs one.
        on_event: called with each of the coordinator's events.

    Raises:
        RunError: the folder holds a run already.
        FedrecError: see `drive`.
    """
    refuse_elsewhere(setup.config, engine)
    if folder is None and engine == "in-process" and fits_in_memory(setup):
        finished = run_in_memory(setup, on_event=on_event)
        if finished is not None:
            return finished, None
    else:
        scratch = Scratch() if folder is None else None
        place = scratch.path / "run" if scratch else folder
        assert place is not None
        run = RunFolder.write(place, setup, engine=engine)
        if drive(run, engine, on_event=on_event).finished:
            return run, scratch
    raise FederationError("the run was stopped before its end: start it again")


def _engine(
    run: RunFolder, engine: Engine, on_event: Callable[[Event], None], stop: Callable[[], bool]
) -> Outcome:
    if engine == "in-process":
        return run_in_process(run.path, on_event=on_event, stop=stop)
    with needs(f"engine {engine!r}"):
        from fedrec_server.operations.deployment import run_deployment
        from fedrec_simulations.engines.flower import run_flower
    start = run_flower if engine == "flower" else run_deployment
    return start(run.path, len(run.node_folders()), on_event=on_event, stop=stop)
