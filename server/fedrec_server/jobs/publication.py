"""From the last round of a run to a signed version: nothing is lost before it, nothing is published twice.

A version says in its signed manifest of which run it is, so that a start after a kill finds what an earlier one
published. Gates decide whether it is promoted, once; what they said is kept beside the run. Out of scope: training.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec.core.files import read_arrays, write_json
from fedrec.privacy.statement import StatementFacts, statement, write_statement
from fedrec.ranking.model import ServingModel
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Package, Terms, pack_model
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.specification import GatesSection
from fedrec_server.operations.ledger_facts import ledger_facts
from fedrec_server.operations.publishing import served, statement_of, summary
from fedrec_server.operations.run_artifacts import environment
from fedrec_server.rounds.task import Task

PUBLICATION = "publication.json"
_LONGEST = 300


def published(job: Job, number: int) -> dict[str, Any]:
    """Publish the result of a run, and promote it where its gates say so; again, nothing changes.

    Args:
        job: whose run is trained.
        number: of the run.

    Returns:
        version, gates (why it is not promoted; empty: they all pass), promoted.

    Raises:
        FedrecError: it cannot be published now; nothing is lost, and it can be asked for again.
    """
    kept = job.run(number) / PUBLICATION
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if not found:
        made = _earlier(job, number) or _publish(job, number)
        found = {"version": made.version, "gates": _failing(job, number, made), "promoted": False}
        write_json(kept, found)
        job.events.note("gates", run=number, **{name: found[name] for name in ("version", "gates")})
    if job.specification.job.promote and not found["gates"] and not found["promoted"]:
        if job.registry.aliases.champion != found["version"]:
            job.registry.promote(found["version"], job.keys())
        found |= {"promoted": True}
        write_json(kept, found)
    return found


def _earlier(job: Job, number: int) -> Manifest | None:
    """What was published of this run before a kill."""
    for version in reversed(job.registry.versions()):
        manifest = job.registry.manifest(version)
        if manifest.privacy.get("run") == job.offer(number):
            return manifest
    return None


def _publish(job: Job, number: int) -> Manifest:
    run, task = job.run(number), Task.read(job.run(number) / "coordinator")
    shared = read_arrays(run / "coordinator" / "model.safetensors")[0]
    said = _statement(job, number, task)
    payload = json.loads((run / "payload.json").read_text())
    before = job.registry.open(payload["model_version"])
    model = _finish(job)(served(job.specification, shared), before)
    facts = summary(job.specification, said) | {"job": job.id, "run": job.offer(number)}
    files = pack_model(model, before.items, said)
    return job.registry.publish(files, Terms(0, int(job.clock()), summary=facts), job.keys())


def _statement(job: Job, number: int, task: Task) -> dict[str, Any]:
    """What may be claimed of the result."""
    run, packages = job.run(number), environment()
    rounds = rounds_of(run)
    facts = StatementFacts(
        rounds=len(rounds),
        engine="devices",
        nodes=job.specification.job.cohort.target,
        users_per_node=1,
        aggregator="secagg",
        least_nodes=job.specification.floor,
        staleness=job.specification.job.staleness,
        exact_numbers=() if task.privacy else ("loss", "examples", "norms before clipping", "number clipped"),
        code=f"fedrec {packages['fedrec']}",
        config_hash=task.config_hash,
        packages=packages,
        **ledger_facts(run, task.privacy),
    )
    write_statement(run, statement(task.privacy.plan if task.privacy else None, facts))
    return statement_of(run)


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """Records of the rounds of a run that were summed, in order."""
    path = run / "coordinator" / "rounds.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in records if not each.get("abandoned") and not each.get("lost")]


def _failing(job: Job, number: int, made: Manifest) -> list[str]:
    """Why the gates do not let a version be promoted."""
    gates = job.specification.job.gates
    least = min((int(each["nodes"]) for each in rounds_of(job.run(number))), default=0)
    epsilon = made.privacy.get("epsilon")
    found = []
    if least < gates.min_participants:
        found.append(
            f"min_participants: {least} devices in the smallest sum, expected {gates.min_participants}"
        )
    if gates.max_epsilon is not None and (epsilon is None or epsilon > gates.max_epsilon):
        found.append(f"max_epsilon: the run has epsilon {epsilon}, expected at most {gates.max_epsilon:g}")
    return found + _command(gates, job.registry.path(made.version))


def _command(gates: GatesSection, folder: Path) -> list[str]:
    """What the operator's own gate says against a packed model."""
    if not gates.command:
        return []
    name = gates.command[0]
    try:
        ended = subprocess.run(
            [*gates.command, str(folder)],
            capture_output=True,
            text=True,
            timeout=gates.command_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"command: {name} took longer than {gates.command_seconds:g} s"]
    except OSError as error:
        return [f"command: {name} cannot be started ({error.strerror})"]
    if ended.returncode == 0:
        return []
    last = " ".join((ended.stderr or ended.stdout).split())[-_LONGEST:]
    return [f"command: {name} ended with {ended.returncode} ({last or 'nothing printed'})"]


def _finish(job: Job) -> Any:
    """From what was trained and the champion to what is published."""
    path = job.specification.job.finish
    if path is None:
        return _as_trained
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"job.finish is {path!r} and cannot be imported ({error}): make it importable"
        ) from error


def _as_trained(trained: ServingModel, champion: Package) -> ServingModel:
    return trained
