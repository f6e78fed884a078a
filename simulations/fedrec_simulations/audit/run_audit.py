"""Audits of a configuration: its model and plan, on a part of its data that makes them quick.

The plan is the one that the configuration would run with on all its users: noise, rounds and sampling are as
configured. Only the users among whom the canaries are planted, and the catalogue, are fewer.

Letters: U users, I items, M canaries.
Out of scope: what is played and how it is evaluated (`fedrec.privacy.audit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.contributions import restrict
from fedrec.core.errors import ConfigError
from fedrec.core.files import write_json
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.stage import VECTOR
from fedrec.core.updates import Layout, State, Updates, UpdateSum
from fedrec.privacy.audit import games
from fedrec.privacy.audit.bugs import BUGS, inject
from fedrec.privacy.audit.report import AuditReport, GameResult
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.recommenders.registry import build
from fedrec.rounds.build import chain_of
from fedrec.rounds.chain import ServerRound, train_users
from fedrec.rounds.local_training import in_cohort
from fedrec.rounds.settings import NodeSettings
from fedrec_server.operations.privacy_terms import plan_of
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.prepare import prepare

#: Real users beside the canaries, and the longest vector, of an audit.
USERS = 500
VALUES = 60_000
#: Planted users, and how many rare items each has.
PLANTED = 200
RARE_ITEMS = 10


class Training:
    """A recommender in training on real and planted users; see `fedrec.privacy.audit._pipeline.Learner`.

    Args:
        recommender: the model.
        plan: whose clipping and sampling hold.
        batch: real users.
        planted: planted users, of other user keys.
        n_items: I.
        seed: of training and cohorts.
    """

    def __init__(
        self,
        recommender: Recommender,
        plan: PrivacyPlan,
        batch: UserBatch,
        planted: UserBatch,
        n_items: int,
        seed: int,
    ) -> None:
        self._recommender, self._plan, self._n_items, self._seed = recommender, plan, n_items, seed
        self._batch, self._rare = batch, planted
        self.restart()

    @property
    def planted(self) -> int:
        """Number of planted users."""
        return len(self._rare)

    def restart(self) -> None:
        """Back to before the first round."""
        self._before = self._recommender.init_shared(self._n_items, self._seed)
        self._shared = {name: values.copy() for name, values in self._before.items()}
        self._server = self._recommender.init_server(self._shared)
        self._local = self._recommender.init_local(self._batch.user, self._seed)
        self._rare_local = self._recommender.init_local(self._rare.user, self._seed)

    def layout(self, round_: int) -> Layout:
        """What is sent in a round."""
        return self._recommender.layout(self._n_items, round_)

    def clean_sum(self, round_: int) -> UpdateSum:
        """The clipped sum of this round's cohort of real users."""
        rate = self._plan.sampling_rate
        joins = in_cohort(self._batch.user, rate, RoundSeed(self._seed, round_))
        total, self._local = self._trained(self._batch, self._local, joins, round_)
        return total

    def planted_sum(self, round_: int, joins: NDArray[np.bool_]) -> UpdateSum:
        """The clipped sum of the planted users who join; call `planted_updates` first."""
        return self._trained(self._rare, self._rare_local, joins, round_)[0]

    def planted_updates(self, round_: int) -> Updates:
        """What every planted user would send, not clipped."""
        key = RoundSeed(self._seed, round_)
        return self._recommender.compute_updates(
            self._shared, _copied(self._rare_local), self._rare, key, self._n_items
        )[0]

    def apply(self, total: UpdateSum) -> None:
        """One step of the model."""
        self._shared, self._server = self._recommender.apply(self._shared, self._server, total)

    def change(self) -> Mapping[str, NDArray[Any]]:
        """Shared state now minus before the first round; what was not there before counts as zero."""
        return {
            name: values - self._before[name] if name in self._before else values
            for name, values in self._shared.items()
        }

    def _trained(
        self, batch: UserBatch, local: State, joins: NDArray[np.bool_], round_: int
    ) -> tuple[UpdateSum, State]:
        rows = np.flatnonzero(joins & (batch.counts > 0))
        mine = {name: values[rows] for name, values in local.items()}
        key, clip = RoundSeed(self._seed, round_), self._plan.clip_norm
        total, changed = train_users(
            self._recommender, self._shared, mine, batch.take(rows), key, clip, self._n_items
        )
        total.users = float(joins.sum())
        after = _copied(local)
        for name, values in changed.items():
            after[name][rows] = values
        return total, after


def audit(
    config: Config,
    *,
    canaries: int = 1000,
    bugs: Sequence[str | None] = (None,),
    seed: int = 0,
    out: Path | None = None,
    on_report: Callable[[AuditReport], None] = lambda report: None,
) -> list[AuditReport]:
    """Audit a configuration as it is, and with bugs planted into it.

    Args:
        config: with a [privacy] section of unit "user".
        canaries: M.
        bugs: names of `fedrec.privacy.audit.bugs.BUGS`; None: as it is.
        seed: of the subset, the canaries and the noise.
        out: file to write; None: none.
        on_report: told of each report as it is ready.

    Raises:
        ConfigError: nothing to audit, or an unknown bug.
    """
    for name in bugs:
        if name is not None and name not in BUGS:
            raise ConfigError(f"bug {name!r}: expected one of {', '.join(BUGS)}")
    split = prepare(config).split
    plan = plan_of(config, split.train.n_users, split.train.n_items)
    if plan is None:
        raise ConfigError(
            "privacy.unit is 'none': expected 'user'; a run without a guarantee has nothing to audit"
        )
    training = _training(build(config.model), plan, split.batch(split.train), split.train.n_items, seed)
    reports = []
    for bug in bugs:
        reports.append(_one(plan, training, canaries, seed, bug))
        on_report(reports[-1])
    if out is not None:
        write_json(out, {"audits": [report.as_dict() for report in reports]})
    return reports


def _one(plan: PrivacyPlan, training: Training, canaries: int, seed: int, bug: str | None) -> AuditReport:
    with nullcontext() if bug is None else inject(bug):
        report = games.audit(plan, training, canaries, seed, bug)
        report = replace(report, results=[*report.results, denominator(plan, training.layout(1))])
    if bug == "per-block clip" and len(training.layout(1).blocks) == 1:
        notes = (*report.notes, "the model sends one block, so that clipping per block is clipping")
        return replace(report, notes=notes)
    return report


def _training(
    recommender: Recommender, plan: PrivacyPlan, batch: UserBatch, n_items: int, seed: int
) -> Training:
    """The model on `USERS` random users and as many of the most popular items as `VALUES` allow."""
    rng = np.random.default_rng([seed, 2])
    chosen = np.sort(rng.permutation(len(batch))[:USERS])
    count = np.bincount(batch.item, minlength=n_items)
    kept = np.argsort(-count, kind="stable")[: _items(recommender, plan.rounds, n_items)]
    part = restrict(batch.take(chosen), kept.astype(np.int64), n_items)
    first = int(batch.user.max(initial=0)) + 1
    return Training(recommender, plan, part, rare_users(len(kept), first, rng), len(kept), seed)


def rare_users(n_items: int, first: int, rng: np.random.Generator) -> UserBatch:
    """Planted users, numbered from `first`, each with some of the rarer half of items sorted by popularity."""
    length = min(RARE_ITEMS, max(1, n_items // 4))
    rare: IntArray = np.arange(n_items // 2, n_items, dtype=np.int64)
    items = np.concatenate([rng.choice(rare, length, replace=False) for _ in range(PLANTED)])
    user = np.arange(first, first + PLANTED, dtype=np.int64)
    indptr = np.arange(PLANTED + 1, dtype=np.int64) * length
    return UserBatch(user, indptr, items.astype(np.int64), np.ones(len(items), dtype=np.float32))


def _items(recommender: Recommender, rounds: int, n_items: int) -> int:
    """The largest catalogue of at most `n_items` whose vectors have at most `VALUES` values."""
    low, high = 1, n_items
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(recommender.layout(middle, r).size <= VALUES for r in range(1, min(rounds, 4) + 1))
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _copied(state: State) -> State:
    return {name: values.copy() for name, values in state.items()}


def denominator(plan: PrivacyPlan, layout: Layout) -> GameResult:
    """Does the real coordinator divide by a number that tells who came?"""
    mechanism, source = mechanism_of(plan), NoiseSource()
    chain = chain_of(NodeSettings(), plan, gradient=False)
    turn = ServerRound(chain, layout, 1, 1, chain.init(), source)
    least = max(mechanism.least_users, 1)
    nothing = np.zeros(turn.context.layout.size)
    seen = set()
    for users in (least, 2 * least):
        sent = mechanism.contribute(nothing, users, 1, plan.clip_norm, source)
        seen.add(turn.finish(turn.combine([UpdateSum({VECTOR: sent}, users)]))[0].users)
    lower = {"denominator": math.inf} if seen != {plan.denominator} else {}
    note = f"the sum counts as {', '.join(f'{users:g}' for users in sorted(seen))} users"
    return GameResult("denominator", "cohorts of two sizes", plan.epsilon(), lower, 2, note=note)
