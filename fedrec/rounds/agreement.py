"""What a node and its coordinator must agree on before the first round.

Out of scope: what a node checks of it, and what an app allows its users to take part in.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from pydantic import BaseModel

from fedrec.core.recommender import Recommender
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.terms import PrivacyTerms
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.schedule import Guarded
from fedrec.secagg.terms import Terms


def guarded_sums(recommender: Recommender, privacy: PrivacyTerms | None) -> tuple[Guarded, ...]:
    """Kinds of sums that carry no noise and speak of the same data each time (`fedrec.secagg.schedule`).

    Where devices add the noise themselves no sum is exact; elsewhere the sums that the server sees are. Rounds of
    gradients ask about another model each time and cannot follow the rule.
    """
    if privacy is not None and not mechanism_of(privacy.plan).sends_clean_sums:
        return ()
    return ("evaluate",) if recommender.gradient_rounds else ("evaluate", "train")


def config_hash(
    model: BaseModel,
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
