"""From a configuration to the terms under which replies leave the nodes, and to the keys that go with them.

Whoever lays out a run folder is the one who enrols its nodes: it makes their identities and writes the roster that
is pinned on all of them. In a simulation that is this process; where nodes belong to different users, each makes its
own identity and only the public keys meet (how-to "run secure aggregation"). Out of scope: the protocol.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import build
from fedrec.rounds.agreement import guarded_sums
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.sealed import generate_key
from fedrec.secagg.terms import CohortTerms, PlainTerms, SealedTerms, SecaggTerms, Terms
from fedrec_server.operations.privacy_terms import range_users
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import TaskSpecification


@dataclass(frozen=True)
class Enrolment:
    """What nodes and coordinator are given.

    Attributes:
        terms: pinned on all of them.
        identities: one per node, in order; empty without secure aggregation.
        server_key: the coordinator's private key; None unless replies are sealed to it.
    """

    terms: Terms
    identities: Sequence[Identity] = ()
    server_key: bytes | None = field(default=None, repr=False)

    def identity(self, node: int) -> Identity | None:
        """Of one node."""
        return self.identities[node] if self.identities else None


def enrol(
    config: TaskSpecification,
    users: Sequence[int],
    privacy: PrivacyTerms | None,
    *,
    has_validation: bool = False,
    has_test: bool = False,
) -> Enrolment:
    """New terms and keys for a run.

    Args:
        config: of the run.
        users: how many users each node hosts; the operator who lays out the run vouches for their number.
        privacy: terms of the privacy plan, or None.
        has_validation, has_test: which parts are held out.
    """
    run = privacy.run if privacy else secrets.token_hex(8)
    aggregator = config.privacy.aggregator
    if aggregator in ("plain", "simulated"):
        return Enrolment(PlainTerms(insecure=True))
    if aggregator == "sealed":
        private, public = generate_key()
        return Enrolment(SealedTerms(run=run, public=public.hex()), server_key=private)
    identities = [Identity.create() for _ in users]
    members = [
        Member(name=str(k), key=identity.public.hex(), users=count, vouched=count > 1)
        for k, (identity, count) in enumerate(zip(identities, users, strict=True))
    ]
    schedule = schedule_of(config, privacy, has_validation=has_validation, has_test=has_test)
    return Enrolment(secagg_terms(config, members, run, privacy, schedule), identities)


def schedule_of(
    config: TaskSpecification, privacy: PrivacyTerms | None, *, has_validation: bool, has_test: bool
) -> Schedule:
    """The sums that the coordinator of a configuration asks for, and no others.

    Rounds are chosen on the validation part only where nothing bounds them: neither the model nor a plan.
    """
    recommender = build(config.model)
    most = recommender.fixed_rounds or config.federation.rounds
    selects = has_validation and recommender.fixed_rounds is None and privacy is None
    return Schedule(
        tuning_rounds=most if selects else 0,
        refit_rounds=most,
        evaluate_every=config.federation.evaluate_every if selects else 0,
        refit_evaluation=has_test and (privacy is None or privacy.plan.metrics is not None),
        guarded=guarded_sums(recommender, privacy),
    )


def secagg_terms(
    config: TaskSpecification,
    members: Sequence[Member],
    run: str,
    privacy: PrivacyTerms | None,
    schedule: Schedule,
) -> SecaggTerms:
    """Terms of secure aggregation among these devices.

    Args:
        config: of the run.
        members: the roster, in order.
        run: its random name.
        privacy: terms of the privacy plan, or None.
        schedule: the sums of the run.
    """
    users = [member.users for member in members]
    plan = privacy.plan if privacy else None
    settings = config.secagg
    return SecaggTerms(
        run=run,
        roster=Roster(members=tuple(members)),
        bits=settings.bits,
        rotate=settings.rotation,
        range_users=range_users(config, sum(users)),
        clip_norm=plan.clip_norm if plan else config.federation.clip_norm,
        noise_std=_device_noise(plan),
        min_nodes=settings.min_nodes,
        min_users=_floor(plan, sum(users)),
        threshold=settings.threshold,
        corrupted=settings.corrupted,
        neighbours=settings.neighbours,
        plan=hashlib.sha256(plan.model_dump_json().encode()).hexdigest() if plan else "",
        exact_sums=isinstance(config.privacy, NoPrivacy) and config.privacy.exact_sums,
        schedule=schedule,
    )


def cohort_terms(
    config: TaskSpecification,
    target: int,
    most: int,
    run: str,
    privacy: PrivacyTerms | None,
    schedule: Schedule,
    signer: Identity,
    *,
    dropout: float = 0.1,
    max_users: int = 1,
) -> CohortTerms:
    """Terms of a job, whose devices come and go.

    Args:
        config: of the job.
        target: users for whom the plan's noise is sized, in one cohort.
        most: users that may join one.
        run: the job's random name.
        privacy: terms of the privacy plan, or None.
        schedule: the sums of the job.
        signer: signs rosters.
        dropout: expected part of a cohort that vanishes on the way.
        max_users: of one site that takes part beside devices.
    """
    rules = secagg_terms(config, (), run, privacy, schedule)
    room = {
        "range_users": range_users(config, most),
        "min_users": _floor(privacy.plan if privacy else None, target),
    }
    return CohortTerms(
        rules=SecaggTerms(**dict(rules) | room),
        signer=signer.public.hex(),
        max_nodes=most,
        max_users=max_users,
        dropout=dropout,
    )


def _device_noise(plan: PrivacyPlan | None) -> float:
    """Standard deviation of noise that devices add to real numbers, for which integers need room."""
    if plan is None or plan.unit != "user" or plan.trust != "local":
        return 0.0
    return max(plan.noise_std(round_) for round_ in range(1, plan.rounds + 1))


def _floor(plan: PrivacyPlan | None, users: int) -> float:
    """Declared users below whom no one lets a sum out: the noise shares of fewer are less than planned."""
    if plan is None or plan.distributed is None:
        return 0.0
    return plan.distributed.survivors * users
