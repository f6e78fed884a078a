"""Imports Flower once without its libraries' own deprecation warnings, and lays out small runs for it."""

from __future__ import annotations

import warnings
from pathlib import Path

with warnings.catch_warnings():
    # typer, which Flower imports, uses names that click has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401

import numpy as np
from builders import write_run
from conftest import last_out, planted
from secagg_helpers import PLAIN, enrolled

from fedrec.core.files import write_arrays, write_secret
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings, Trust
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.agreement import guarded_sums
from fedrec.rounds.compression import Compression
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.sealed import generate_key
from fedrec.secagg.terms import SealedTerms, Terms
from fedrec_server.rounds.task import FEATURES_FILE

MODEL = MfConfig(embedding_size=4, learning_rate=0.1)
EVALUATION = EvaluationSettings(bootstrap=20)


def private_terms(
    rounds: int, n_users: int, n_items: int, trust: Trust, model: ModelConfig = MODEL
) -> PrivacyTerms:
    """A plan whose noise is seeded, so that engines can be compared."""
    settings = PrivacySettings(
        unit="user", trust=trust, epsilon=8.0, force=True, metrics="noised", noise_seed=11
    )
    recommender = build(model)
    rounds = recommender.fixed_rounds or rounds
    plan = make_plan(
        settings,
        population=n_users,
        rounds=rounds,
        schedule=recommender.noise_schedule(rounds),
        parameters=max(recommender.layout(n_items, r).size for r in range(1, rounds + 1)),
    )
    return PrivacyTerms(plan=plan, run="run", dataset="planted", limit_epsilon=8.0)


def lay_out(
    folder: Path,
    nodes: int,
    rounds: RoundSettings,
    *,
    validation: bool = False,
    trust: Trust | None = None,
    secure: bool = False,
    sealed: bool = False,
    shard_parameters: int | None = None,
    compression: Compression | None = None,
    model: ModelConfig = MODEL,
    features: np.ndarray | None = None,
) -> Path:
    """A run folder with planted data, as `fedrec train` lays one out; returns it."""
    split = last_out(planted())
    if not validation:
        split = type(split)(split.train.merge(split.validation), None, split.test)
    n_users, n_items = split.train.n_users, split.train.n_items
    settings = NodeSettings(seed=5, clip_norm=2.0, shard_parameters=shard_parameters, compression=compression)
    terms = private_terms(rounds.rounds, n_users, n_items, trust, model) if trust else None
    shards = [split.shard(k, nodes) for k in range(nodes)]
    schedule = Schedule(
        tuning_rounds=rounds.rounds if validation else 0,
        refit_rounds=rounds.rounds,
        evaluate_every=rounds.evaluate_every if validation else 0,
        refit_evaluation=True,
        guarded=guarded_sums(build(model), terms),
    )
    users = [shard.train.n_users for shard in shards]
    aggregation, identities = enrolled(users, clip_norm=2.0, schedule=schedule, exact_sums=terms is None)
    how: Terms = aggregation if secure else PLAIN
    if sealed:
        private, public = generate_key()
        how = SealedTerms(run="run", public=public.hex())
        (folder / "coordinator").mkdir(parents=True)
        write_secret(folder / "coordinator" / "sealed.key", private)
    write_run(
        folder,
        split,
        model,
        nodes=nodes,
        settings=settings,
        rounds=rounds,
        evaluation=EVALUATION,
        privacy=terms,
        aggregation=how,
        identities=identities if secure else None,
    )
    if features is not None:
        write_arrays(folder / "coordinator" / FEATURES_FILE, {"features": features})
    return folder
