"""The node of one session: one user, everything in this process's memory, nothing of it in any file.

Secrets of secure aggregation and answers die with the session, and the identity is of one cohort, so that nothing can
be asked for a second time. Out of scope: carrying messages (`cohort_session`), charges (`session`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.core.interactions import Interactions
from fedrec.data.split import Split
from fedrec.evaluation.settings import parse_evaluation
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import parse_terms
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.private_releases import PaidReleases


def make_node(
    parts: Mapping[str, Any], item_ids: Sequence[str], history: Sequence[int], identity: Identity
) -> Node:
    """The node of a session.

    Args:
        parts: "node" of the task: model, settings, evaluation, privacy, aggregation.
        item_ids: of the model's items, in order.
        history: indices of the user's items, oldest first.
        identity: signs in secure aggregation, of this cohort alone.

    Raises:
        PrivacyRefused: the task has no privacy plan.
    """
    if not parts["privacy"]:
        raise PrivacyRefused("a task without a privacy plan: a device takes part under one only")
    terms = PrivacyTerms.model_validate(parts["privacy"])
    return Node(
        _split(item_ids, history),
        parse(parts["model"]),
        NodeSettings.model_validate(parts["settings"]),
        parse_evaluation(parts["evaluation"]),
        LocalStore(None),
        privacy=terms,
        aggregation=parse_terms(parts["aggregation"]),
        identity=identity,
        releases=PaidReleases(terms.plan.rounds),
    )


def _split(item_ids: Sequence[str], history: Sequence[int]) -> Split:
    items = np.array(history, dtype=np.int64)
    train = Interactions(
        np.zeros(len(items), np.int64),
        items,
        np.ones(len(items), np.float32),
        np.arange(len(items), dtype=np.int64),
        np.array(["this device"]),
        np.array(item_ids),
    )
    return Split(train, None, None, user_key=np.array([secrets.randbits(62)], dtype=np.int64))
