"""Lays out a run of a job: the privacy plan for its cohorts, the terms, the coordinator's task, what is signed.

A run folder appears under its name when all of it is on the disk; a kill before that leaves a folder that the next
start removes. A run of a gradient model continues from the last model of the job where the items are the same; a
one-round model begins anew. Out of scope: telling devices (`offers`).
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.files import read_arrays, sync_folder, write_json
from fedrec.core.updates import State
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.privacy.plan import PrivacyPlan
from fedrec.recommenders.registry import build
from fedrec.rounds.agreement import config_hash
from fedrec.secagg.roster import Identity
from fedrec_server.jobs.job import RUNS, Job
from fedrec_server.jobs.specification import JobSpecification
from fedrec_server.operations.enrolment import cohort_terms, schedule_of
from fedrec_server.operations.privacy_terms import terms_of
from fedrec_server.registry import Registry
from fedrec_server.rounds.beginning import begin_from
from fedrec_server.rounds.task import Task

PAYLOAD = "payload.json"
_DAY = 86_400.0


def new_job(
    root: Path,
    specification: JobSpecification,
    population: str,
    *,
    registry: Path,
    keys: Path,
    clock: Callable[[], float] = time.time,
) -> Job:
    """A new job, once a plan for it was found; arguments as of `Job.create`.

    Raises:
        ConfigError, PrivacyRefused: see `prepared`.
        RegistryError, RunError: see `Job.create`.
    """
    models = Registry(registry, population)
    if models.aliases.champion:
        items = np.array(models.open(models.aliases.champion).items.ids)
        task_of(specification, items, "0" * 32, Identity.create())
    return Job.create(root, specification, population, registry=registry, keys=keys, clock=clock)


def prepared(job: Job, number: int) -> Path:
    """The folder of a run, laid out if it is not yet.

    Args:
        job: whose worker this is.
        number: of the run.

    Raises:
        ConfigError, PrivacyRefused: no plan keeps the target, or its integers have no room for a cohort.
        RegistryError: there is no champion.
    """
    folder = job.run(number)
    if folder.exists():
        return folder
    for left in (job.folder / RUNS).glob(".*.tmp"):
        shutil.rmtree(left)
    aside = job.folder / RUNS / f".{number}.{secrets.token_hex(4)}.tmp"
    aside.mkdir(mode=0o700)
    items = _item_ids(job)
    task = task_of(job.specification, items, job.offer(number), job.signer)
    task.write(aside / "coordinator")
    before = _model_before(job, number, items)
    if before is not None:
        begin_from(aside / "coordinator", task, before)
    write_json(aside / PAYLOAD, _payload(job, task, items))
    for path in (aside / "coordinator", aside):
        sync_folder(path)
    aside.rename(folder)
    sync_folder(folder.parent)
    job.events.note("prepared", run=number, continues=before is not None)
    return folder


def task_of(specification: JobSpecification, items: NDArray[np.str_], run: str, signer: Identity) -> Task:
    """What coordinator and devices of a run agree on.

    Args:
        specification: of the job.
        items: [I] ids in the order of the model.
        run: under which devices know it.
        signer: signs rosters.

    Raises:
        ConfigError, PrivacyRefused: see `prepared`.
    """
    cohort = specification.job.cohort
    separation = specification.cycle if specification.cycle > 1 else None
    privacy = terms_of(specification, cohort.target, len(items), f"job {run}", separation=separation)
    if privacy is not None:
        _expect_room(privacy.plan, specification.most)
    schedule = schedule_of(specification, privacy, has_validation=False, has_test=False)
    terms = cohort_terms(
        specification,
        cohort.target,
        specification.most,
        privacy.run if privacy else run,
        privacy,
        schedule,
        signer,
        dropout=cohort.dropout,
    )
    settings, evaluation = specification.node_settings(), EvaluationSettings()
    # An attempt that fails is the job's to make again, after a pause.
    rounds = specification.round_settings().model_copy(update={"max_abandoned": 1})
    fingerprint = config_hash(specification.model, settings, evaluation, items, privacy, terms)
    return Task(
        specification.model,
        settings,
        rounds,
        evaluation,
        len(items),
        fingerprint,
        False,
        False,
        privacy,
        aggregation=terms,
    )


def _expect_room(plan: PrivacyPlan, most: int) -> None:
    """Raises ConfigError where the sum of the largest cohort would not fit the plan's integers."""
    integers = plan.distributed
    if integers is None:
        return
    std = max(math.sqrt(plan.share_variance(r) * most) for r in range(1, plan.rounds + 1))
    if integers.needed(most, plan.clip_norm, plan.parameters, std) > 2.0**integers.bits:
        raise ConfigError(
            f"privacy.bits is {integers.bits}: the sum of a cohort of {most} devices does not fit; lower "
            "job.cohort.most or raise privacy.bits"
        )


def _payload(job: Job, task: Task, items: NDArray[np.str_]) -> dict[str, Any]:
    """The document of the run, before it is signed; the operator's folders are not in it."""
    specification, now = job.specification, int(job.clock())
    privacy = task.privacy.model_copy(update={"ledger": None}) if task.privacy else None
    parts = {
        "model": task.model,
        "settings": task.settings,
        "evaluation": task.evaluation,
        "privacy": privacy,
        "aggregation": task.aggregation,
    }
    return {
        "created": now,
        "expires": now + int(specification.job.lifetime_days * _DAY),
        "model_version": job.registry.aliases.champion,
        "items": hashlib.sha256("\0".join(items.tolist()).encode()).hexdigest(),
        "rounds": specification.rounds,
        "cycle": specification.cycle if specification.cycle > 1 else None,
        "cohort": {"target": specification.job.cohort.target, "least": specification.least},
        "node": {name: part and part.model_dump(mode="json") for name, part in parts.items()},
    }


def _item_ids(job: Job) -> NDArray[np.str_]:
    return np.array(job.registry.open(job.registry.aliases.champion).items.ids)


def _model_before(job: Job, number: int, items: NDArray[np.str_]) -> State | None:
    """The last model of the job, where its next run can continue from it."""
    path = job.run(number - 1) / "coordinator" / "model.safetensors"
    if build(job.specification.model).fixed_rounds is not None or number == 1 or not path.exists():
        return None
    before = json.loads((job.run(number - 1) / PAYLOAD).read_text())
    if before["items"] != hashlib.sha256("\0".join(items.tolist()).encode()).hexdigest():
        return None
    return read_arrays(path)[0]
