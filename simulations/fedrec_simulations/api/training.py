"""Training from Python: any recommender, private or not, on any engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrec.core.errors import DataError
from fedrec.core.extras import needs, require
from fedrec.core.interactions import Dataset
from fedrec_simulations.api._experiment import Engine, Model, Privacy, experiment_of
from fedrec_simulations.api.data import split
from fedrec_simulations.api.run import Run
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, check_data, prepare
from fedrec_simulations.experiments.run_setup import RunSetup, node_count
from fedrec_simulations.experiments.shipped import find_config

#: True or False: shown or not; None: shown in terminals and notebooks; a function: is called with each event.
Progress = bool | Callable[[Mapping[str, Any]], None] | None


def train(
    data: Dataset | Prepared,
    model: Model = "ease",
    *,
    privacy: Privacy = None,
    engine: Engine = "in-process",
    rounds: int | None = None,
    clip_norm: float | None = None,
    nodes: int | None = None,
    seed: int = 0,
    name: str | None = None,
    federation: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    secagg: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    progress: Progress = None,
) -> Run:
    """Train a recommender on data that the caller holds, and evaluate it once on the test part.

    In process this is a simulation of a federation: the same nodes and coordinator exchange the same messages, and
    nothing is hidden from the process that runs them. The other engines start real processes.

    Args:
        data: as `fedrec.split` returned it; a data set is split with the defaults of `fedrec.split`.
        model: kind of recommender ("ease", "mf", "sasrec", ...), a mapping with `kind` and other keys, or a
            recommender's configuration.
        privacy: target epsilon per user, or the keys of the section `privacy`; None: no differential privacy.
        engine: "in-process", "flower" (Flower's simulation) or "deployment" (SuperLink and nodes on loopback).
        rounds: most rounds; models with a fixed number of rounds ignore it.
        clip_norm: L2 bound of one user's update; under a privacy target give it in `privacy`.
        nodes: over how many nodes the users are spread; None: 1 in process, 4 elsewhere.
        seed: root of all randomness but a private run's noise.
        name: of the run, in tables and reports.
        federation, evaluation, secagg: other keys of these sections of an experiment file.
        folder: run folder to write while the run goes; None: the run is in memory until `Run.save`.
        progress: see `Progress`.

    Raises:
        ConfigError: any value is wrong; the message lists all problems.
        DataError: the data do not suffice for the split or the model.
        PrivacyRefused: the guarantee would be meaningless, or nothing could be learned.
        EnvironmentProblem: the engine or the model needs a package that is not installed.
        FedrecError: whatever ended the run.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> run = fedrec.train(data, "item_knn", seed=1)
        >>> run.rounds
        1
    """
    parts = split(data) if isinstance(data, Dataset) else data
    if not isinstance(parts, Prepared):
        raise DataError(
            f"data is {type(data).__name__}: expected what load_dataset, from_arrays, from_frame or split returned"
        )
    given = {"rounds": rounds, "clip_norm": clip_norm, "nodes": nodes, "seed": seed}
    known = {key: value for key, value in given.items() if value is not None}
    sections = {"federation": known | dict(federation or {}), "evaluation": evaluation, "secagg": secagg}
    with needs("fedrec.train"):
        experiment = experiment_of(parts, model, privacy, engine, name, sections)
    return train_experiment(experiment, parts, engine=engine, nodes=nodes, folder=folder, progress=progress)


def train_experiment(
    experiment: Config,
    data: Prepared | None = None,
    *,
    engine: Engine = "in-process",
    nodes: int | None = None,
    folder: Path | str | None = None,
    progress: Progress = None,
) -> Run:
    """Train what an experiment describes, as `fedrec train` does.

    Args:
        experiment: as `fedrec.load_experiment` returned it.
        data: already split; None: loaded and split as the experiment says.
        engine, nodes, folder, progress: see `fedrec.train`.

    Raises:
        ConfigError: the experiment does not fit the engine.
        FedrecError: see `fedrec.train`.

    Example:
        >>> import fedrec
        >>> experiment = fedrec.load_experiment("movietweetings-popularity", {"evaluation.bootstrap": 0})
        >>> fedrec.train_experiment(experiment).evaluate().value("full/hr@10") > 0.01
        True
    """
    with needs("fedrec.train"):
        from fedrec_simulations.api.driving import train_to_end

        require("fedrec.train", _packages(experiment))
        parts = prepare(experiment) if data is None else data
        check_data(experiment, parts.split)
        setup = RunSetup.of(experiment, parts, node_count(experiment, engine, nodes))
        place = None if folder is None else Path(folder)
        with _following(experiment, progress) as on_event:
            finished, scratch = train_to_end(setup, engine, place, on_event=on_event)
    return Run(finished, scratch)


def load_experiment(source: Path | str, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration of an experiment file, or of an experiment that comes with fedrec.

    Args:
        source: path of a TOML file, or a name such as "movietweetings-ease".
        changes: dotted key to value, as {"federation.rounds": 5}.

    Raises:
        ConfigError: there is none, or it is wrong; the message lists all problems.

    Example:
        >>> import fedrec
        >>> fedrec.load_experiment("movietweetings-ease", {"federation.seed": 7}).federation.seed
        7
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    return load_config(find_config(str(source)), overrides)


def _packages(experiment: Config) -> Iterator[str]:
    """What training imports when it computes, where a node would take an error for an absurd model."""
    from fedrec.neural.recommender import NeuralRecommender
    from fedrec.recommenders.registry import build

    yield from ("numba", "scipy", "threadpoolctl")
    if isinstance(build(experiment.model), NeuralRecommender):
        yield "torch"


@contextmanager
def _following(experiment: Config, progress: Progress) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What is called with the coordinator's events."""
    if callable(progress):
        yield progress
        return
    from fedrec_simulations.report.progress import Lines, RoundProgress, default_display

    display = None if progress is False else default_display()
    if display is None and progress:
        display = Lines()
    if display is None:
        yield lambda event: None
        return
    from fedrec.recommenders.registry import build

    fixed = build(experiment.model).fixed_rounds
    with RoundProgress(experiment, fixed_rounds=fixed, display=display) as follow:
        yield follow
