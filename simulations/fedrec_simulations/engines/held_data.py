"""Exact metrics on data that a researcher holds himself: for simulations, beside the run and never through it.

A simulation has all the data on one machine, so its researcher may measure a private model as exactly as any other.
That is not a release of the run: nothing of it goes through a node, an exchange or a coordinator, it is not charged,
epsilon does not cover it, and it lies in a file of its own, `held_data.json`. A deployment, a job and a device
have no such data and refuse the key that asks for it (`evaluation.held_data`).

Out of scope: what a private run releases of its metrics (`fedrec.privacy.metrics_release`).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.files import write_json
from fedrec.core.updates import State
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.report import EvaluationReport, build_report
from fedrec.evaluation.sums import MetricSums
from fedrec.privacy.noised_means import HELD_DATA
from fedrec.recommenders.registry import build
from fedrec_server.operations.sections import NoPrivacy
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.experiments.finished_run import FinishedRun, Host
from fedrec_simulations.experiments.run_folder import HELD_FILE, RunFolder


def evaluate_held(run: RunFolder) -> EvaluationReport:
    """The final model on the test part of everyone in a run folder; raises what `held_sums` raises."""
    return build_report(held_sums(run))


def held_sums(run: RunFolder, shared: State | None = None, rounds: int | None = None) -> MetricSums:
    """The sums behind it.

    Args:
        run: with the data of all its nodes on this machine.
        shared: the model; None: the run's final one.
        rounds: after which it stands; None: the run's.

    Raises:
        RunError: the run is not finished.
        ConfigError: the run was a deployment, or is private and does not say that its data is held.
        DataError: nothing is held out.
    """
    config = run.config
    refuse_elsewhere(config, run.engine)
    if not isinstance(config.privacy, NoPrivacy) and not config.evaluation.held_data:
        raise ConfigError(
            f"run {run.path} is private: what may be said of its metrics stands in its result; set "
            "evaluation.held_data = true in a simulation, whose researcher holds the data, for exact ones"
        )
    return exact_sums(run, shared, rounds)


def exact_sums(run: FinishedRun, shared: State | None = None, rounds: int | None = None) -> MetricSums:
    """Sums over all users of a run whose data its caller holds; arguments as of `held_sums`.

    Raises:
        ConfigError: the run was a deployment.
        DataError: nothing is held out.
    """
    if run.engine == "deployment":
        raise ConfigError(
            "the run was a deployment, whose data is with its users: no exact metrics of it exist"
        )
    model = run.model if shared is None else shared
    last = int(run.result["rounds"]) if rounds is None else rounds
    categories = category_matrix(run.catalog)
    return functools.reduce(
        MetricSums.merge, (_evaluate(run.config, host, model, last, categories) for host in run.hosts())
    )


def exact_report(run: FinishedRun) -> dict[str, Any]:
    """The final model on the test part, in plain types; raises what `exact_sums` raises."""
    return build_report(exact_sums(run)).as_dict()


def refuse_elsewhere(config: Config, engine: str) -> None:
    """Held data belongs to simulations, and sums by function calls to one process.

    Raises:
        ConfigError: a configuration with `evaluation.held_data` for a deployment, or with simulated sums for several
            processes.
    """
    if config.evaluation.held_data and engine == "deployment":
        raise ConfigError(
            "evaluation.held_data is true: a deployment's data is with its users; drop it, or take an engine that "
            "simulates (in-process, flower)"
        )
    if config.privacy.aggregator == "simulated" and engine != "in-process":
        raise ConfigError(
            f"privacy.aggregator is 'simulated' and the engine is {engine!r}: sums by function calls exist in one "
            "process only; leave privacy.aggregator out for secure aggregation, or take the engine in-process"
        )


def write_held(run: RunFolder) -> dict[str, Any]:
    """Measure and write `held_data.json`; what it says."""
    made = {"note": HELD_DATA, "test": evaluate_held(run).as_dict()}
    write_json(run.path / HELD_FILE, made)
    return made


def _evaluate(
    config: Config, host: Host, shared: State, rounds: int, categories: NDArray[np.float32]
) -> MetricSums:
    """The users of one node."""
    split = host.shard
    target = split.test
    if target is None:
        raise DataError(f"node {host.name} has no test part, so nothing can be evaluated")
    return evaluate(
        build(config.model),
        shared,
        host.node.local_state(shared, "refit", rounds),
        split.batch(split.history("refit")),
        split.batch(target),
        config.node_evaluation(),
        config.federation.seed,
        categories,
    )
