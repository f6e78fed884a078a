"""What a node and its coordinator must agree on, and what a node checks of it before it answers anything.

Out of scope: what an app allows its users to take part in (`policy`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.core.recommender import Recommender
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import ModelConfig
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.schedule import Guarded
from fedrec.secagg.terms import SecaggTerms, Terms


def guarded_sums(recommender: Recommender, privacy: PrivacyTerms | None) -> tuple[Guarded, ...]:
    """Kinds of sums that carry no noise and speak of the same data each time (`fedrec.secagg.schedule`).

    Where devices add the noise themselves no sum is exact; elsewhere the sums that the server sees are. Rounds of
    gradients ask about another model each time and cannot follow the rule.
    """
    if privacy is not None and not mechanism_of(privacy.plan).sends_clean_sums:
        return ()
    return ("evaluate",) if recommender.gradient_rounds else ("evaluate", "train")


def check_terms(terms: SecaggTerms, recommender: Recommender, privacy: PrivacyTerms | None) -> None:
    """The terms of aggregation fit the model and the plan.

    Raises:
        PrivacyRefused: exact sums would not be guarded, or the integers are too small for the plan's.
    """
    missing = set(guarded_sums(recommender, privacy)) - set(terms.schedule.guarded)
    if missing:
        raise PrivacyRefused(
            f"the schedule does not guard exact sums of kind {', '.join(sorted(missing))}: two of them could be "
            "subtracted; prepare the run again"
        )
    plan = privacy.plan if privacy else None
    if plan is not None and plan.distributed is not None and terms.bits < plan.distributed.bits:
        raise PrivacyRefused(
            f"sums are taken modulo 2^{terms.bits} and the plan needs 2^{plan.distributed.bits}: prepare the run "
            "again"
        )


def check_deployed(terms: Terms, privacy: PrivacyTerms | None) -> None:
    """A node of a deployment without a plan lets exact sums out only if its terms say so.

    Raises:
        PrivacyRefused: they do not.
    """
    if privacy is None and isinstance(terms, SecaggTerms) and not terms.exact_sums:
        raise PrivacyRefused(
            "this node has no privacy plan: its sums carry no noise; set a privacy target, or "
            "privacy.exact_sums = true to let exact sums out on purpose"
        )


def config_hash(
    model: ModelConfig,
    settings: NodeSettings,
    evaluation: EvaluationSettings,
    item_ids: np.ndarray[Any, Any],
    privacy: PrivacyTerms | None = None,
    aggregation: Terms | None = None,
) -> str:
    """Fingerprint of everything that nodes and coordinator must agree on: catalogue, privacy plan, aggregation."""
    parts = [part.model_dump_json() for part in (model, settings, evaluation)]
    if aggregation is not None:
        parts.append(aggregation.model_dump_json())
    if privacy is not None:
        parts += [privacy.plan.model_dump_json(), privacy.run]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update("\0".join(item_ids.tolist()).encode())
    return digest.hexdigest()
