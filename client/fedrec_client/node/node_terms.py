"""What a node checks of its terms before it answers anything.

Out of scope: what an app allows its users to take part in (`policy`).
"""

from __future__ import annotations

from fedrec.core.errors import PrivacyRefused
from fedrec.core.recommender import Recommender
from fedrec.privacy.terms import PrivacyTerms
from fedrec.rounds.agreement import guarded_sums
from fedrec.secagg.terms import CohortTerms, SecaggTerms, Terms, rules_of


def check_terms(
    terms: SecaggTerms | CohortTerms, recommender: Recommender, privacy: PrivacyTerms | None
) -> None:
    """The terms of aggregation fit the model and the plan.

    Raises:
        PrivacyRefused: exact sums would not be guarded, or the integers are too small for the plan's.
    """
    rules = rules_of(terms)
    missing = set(guarded_sums(recommender, privacy)) - set(rules.schedule.guarded)
    if missing:
        raise PrivacyRefused(
            f"the schedule does not guard exact sums of kind {', '.join(sorted(missing))}: two of them could be "
            "subtracted; prepare the run again"
        )
    plan = privacy.plan if privacy else None
    if plan is not None and plan.distributed is not None and rules.bits < plan.distributed.bits:
        raise PrivacyRefused(
            f"sums are taken modulo 2^{rules.bits} and the plan needs 2^{plan.distributed.bits}: prepare the run "
            "again"
        )


def check_deployed(terms: Terms, privacy: PrivacyTerms | None) -> None:
    """A node of a deployment without a plan lets exact sums out only if its terms say so.

    Raises:
        PrivacyRefused: they do not.
    """
    if privacy is not None or not isinstance(terms, SecaggTerms | CohortTerms):
        return
    if not rules_of(terms).exact_sums:
        raise PrivacyRefused(
            "this node has no privacy plan: its sums carry no noise; set a privacy target, or "
            "privacy.exact_sums = true to let exact sums out on purpose"
        )
