"""The part that a node takes in secure aggregation, by its terms.

Out of scope: what it does there (`secure_party`, `cohort_party`).
"""

from __future__ import annotations

import json
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import CohortTerms, SecaggTerms, parse_terms
from fedrec_client.node._cohort_party import CohortParty
from fedrec_client.node._secure_party import SecureParty

Party = SecureParty | CohortParty


def make_party(
    terms: SecaggTerms | CohortTerms, identity: Identity, folder: Path | None, users: int | None = None
) -> Party:
    """The party of a node.

    Args:
        terms: pinned on it.
        identity: its signing key.
        folder: where its promises are kept; None: in memory.
        users: how many it hosts; None: not known to the process that asks, which serves no vector then.
    """
    if isinstance(terms, CohortTerms):
        return CohortParty(terms, identity, folder, users)
    return SecureParty(terms, identity, folder)


def open_party(folder: Path) -> Party | None:
    """The party of a node's folder; None where its terms are not those of secure aggregation.

    Raises:
        RunError: the folder is missing or incomplete.
    """
    try:
        plain = json.loads((folder / "node.json").read_text())["aggregation"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"node folder {folder} has no readable node.json ({error}): prepare the run first"
        ) from error
    terms = parse_terms(plain)
    if not isinstance(terms, SecaggTerms | CohortTerms):
        return None
    return make_party(terms, Identity.read(folder / "identity.key"), folder)
