"""The games of an audit: each gives an attacker one view of the real code and holds what it finds against the plan.

    directions    canaries of random directions in a whole run: every round's release, and the final model
    planted       users with rare items among the real users, known to the attacker: every round's release
    noise         what is left of releases without what went in: too small, or alike in two rounds?
    lone user     one user or no one in a round: does a release of no one carry the noise, too?
    bound         how far one user moves the sum: too long, too long in every block, with many examples, broken

The attacker knows everything but who of the canaries is in, the real users' clean sums included. The first two and
the fourth are statistics of attacks; the third and the fifth look at the parts of the mechanism by themselves, and
find what a direction does not: noise that is the same twice, a bound that only some users break.

Letters: M canaries, P values of the flat vector, T rounds, C clip norm, z noise multiplier.
Out of scope: which model and data (the `Learner`).
"""

from __future__ import annotations

import math

import numpy as np

from fedrec.core.errors import ConfigError
from fedrec.privacy.audit._parts import bound, lone_user, noise
from fedrec.privacy.audit._pipeline import Learner, Pipeline
from fedrec.privacy.audit._runs import directions, planted
from fedrec.privacy.audit.report import AuditReport
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan


def audit(
    plan: PrivacyPlan, learner: Learner, canaries: int, seed: int, bug: str | None = None
) -> AuditReport:
    """Play all games.

    Args:
        plan: what is claimed; unit "user".
        learner: the model in training on real users.
        canaries: M; fewer where the vector is shorter or noise is drawn for each of them.
        seed: of canaries and who is in; the noise is seeded from it, too, so that an audit can be repeated.
        bug: which bug the caller has planted, for the report.

    Raises:
        ConfigError: the plan is not about users, or it has no noise to audit, or there are too few canaries.
    """
    _refuse(plan, learner, canaries)
    rng = np.random.default_rng([seed, 1])
    pipe = Pipeline(plan, NoiseSource(seed))
    results, watch = directions(pipe, learner, canaries, rng)
    if learner.planted and not pipe.mechanism.correlates_rounds:
        results.append(planted(pipe, learner, rng))
    results += [noise(plan, watch), lone_user(pipe, learner, rng), bound(pipe, learner, rng)]
    return AuditReport(plan.model_dump(mode="json"), results, bug, _notes(plan))


def _refuse(plan: PrivacyPlan, learner: Learner, canaries: int) -> None:
    if plan.unit != "user":
        raise ConfigError(
            f"privacy.unit is {plan.unit!r}: expected 'user'; canaries are users, and interactions are audited "
            "by their norms on the device"
        )
    if not 0 < min(plan.noise_multipliers) <= max(plan.noise_multipliers) < math.inf:
        raise ConfigError(
            "a round without noise, or of nothing but noise: expected a finite epsilon to audit"
        )
    if min(canaries, learner.layout(1).size) < 20:
        raise ConfigError(
            f"{canaries} canaries in {learner.layout(1).size} values: expected at least 20 of both"
        )


def _notes(plan: PrivacyPlan) -> tuple[str, ...]:
    notes = ["an audit bounds from below what is spent: it can refute a claim, never prove it"]
    if plan.adaptive is not None:
        notes.append("the clip norm was kept at its first value; its adaptation was not audited")
    if mechanism_of(plan).correlates_rounds:
        notes.append(
            "users with rare items were not looked for: what they send changes, and noise is correlated over rounds"
        )
    if plan.distributed is not None:
        notes.append("cohorts were taken at the survivors' floor, where the noise is least")
    return tuple(notes)
