"""Lays out a run over sites: its privacy plan, the terms that sites pin, and the coordinator's task.

    ROOT/runs/<run>/coordinator/    task.json, signer.key, sites.json
    ROOT/runs/<run>/site.json       what goes into the package of each site: parts of node.json, and item ids

Sites may be admitted before and after: the terms name the key that signs rosters, not the roster. Out of scope: jobs
of devices (`fedrec_server.jobs`).
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.errors import ConfigError, RunError
from fedrec.core.files import atomic_write, private_folder, sync_folder, write_json, write_secret
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.rounds.agreement import config_hash
from fedrec.secagg.roster import Identity
from fedrec_server.federation.site_cohorts import SIGNER, write_sites
from fedrec_server.operations.enrolment import cohort_terms, schedule_of
from fedrec_server.operations.privacy_terms import terms_of
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import HELD_DATA, TaskSpecification
from fedrec_server.rounds.task import Task

CURRENT, SITE = "current", "site.json"


def lay_out(root: Path, what: TaskSpecification, items: list[str], users: int) -> Path:
    """A new run, which becomes the current one; its folder.

    Args:
        root: of the server.
        what: the task.
        items: ids in the order of the model.
        users: of all sites together, for whom the plan's noise and the integers are sized.

    Raises:
        ConfigError: the task is not one for sites.
        PrivacyRefused: no plan keeps the target.
    """
    _expect_fit(what, items, users)
    run, signer = secrets.token_hex(8), Identity.create()
    ids = np.array(items)
    privacy = terms_of(what, users, len(items), f"sites {run}")
    schedule = schedule_of(what, privacy, has_validation=False, has_test=False)
    name = privacy.run if privacy else run
    terms = cohort_terms(what, users, users, name, privacy, schedule, signer, dropout=0.0, max_users=users)
    settings, evaluation = what.node_settings(), EvaluationSettings()
    task = Task(
        what.model,
        settings,
        what.round_settings(),
        evaluation,
        len(items),
        config_hash(what.model, settings, evaluation, ids, privacy, terms),
        False,
        False,
        privacy,
        aggregation=terms,
    )
    folder = root / "runs" / run
    private_folder(folder)
    task.write(folder / "coordinator")
    write_secret(folder / "coordinator" / SIGNER, signer.secret)
    write_sites(folder / "coordinator", ())
    own = privacy.model_copy(update={"ledger": None}) if privacy else None
    parts = {"model": task.model, "settings": settings, "evaluation": evaluation, "privacy": own}
    node = {part: value and value.model_dump(mode="json") for part, value in parts.items()}
    node["aggregation"] = terms.model_dump(mode="json")
    write_json(folder / SITE, {"node": node, "items": items, "users": users})
    sync_folder(folder)
    atomic_write(root / CURRENT, run.encode())
    return folder


def read_run(root: Path) -> Path:
    """Folder of the current run; raises OSError where there is none."""
    return root / "runs" / (root / CURRENT).read_text()


def read_node(run: Path) -> tuple[dict[str, Any], list[str], int]:
    """Parts of a node's configuration, the item ids, and the users of all sites together.

    Raises:
        RunError: the folder lacks them.
    """
    try:
        plain = json.loads((run / SITE).read_text())
        return plain["node"], plain["items"], plain["users"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run / SITE} cannot be read ({error}): make a new run with `fedrec-server sites task`"
        ) from error


def _expect_fit(what: TaskSpecification, items: list[str], users: int) -> None:
    if what.privacy.aggregator != "secagg":
        raise ConfigError(
            f"privacy.aggregator is {what.privacy.aggregator!r}: a run over sites needs 'secagg', because no one "
            "should see a site's own update"
        )
    if isinstance(what.privacy, NoPrivacy):
        raise ConfigError(
            "privacy.unit is 'none': sites come and go, and the difference of two exact sums is one site's; set "
            "privacy.unit and privacy.epsilon"
        )
    if getattr(what.evaluation, HELD_DATA, False):
        raise ConfigError("evaluation.held_data is true: the data of a run over sites is with them; drop it")
    if len(set(items)) != len(items) or not items:
        raise ConfigError(f"{len(items)} items: expected each id once, and at least one")
    if users < what.secagg.min_nodes:
        raise ConfigError(
            f"{users} users: expected how many all sites have together, at least secagg.min_nodes = "
            f"{what.secagg.min_nodes}"
        )
