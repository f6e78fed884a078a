"""The privacy statement of a run: the facts are gathered from its folder, and `privacy.json` and a page written.

Out of scope: what the statement says of them (`fedrec.privacy.statement`), and how the page looks (`privacy_page`).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.statement import AuditFacts, Statement, StatementFacts, statement, write_statement
from fedrec.privacy.terms import PrivacyTerms
from fedrec_server.operations.ledger_facts import ledger_facts
from fedrec_server.rounds.task import Task
from fedrec_simulations.engines.in_process import FULL_PROTOCOL_NODES
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.privacy_page import write_privacy_page


def write_privacy(run: RunFolder) -> Statement:
    """Write `privacy.json` and `privacy.html` into the folder of a run; every run has them, private or not.

    Raises:
        RunError: the run is not finished.
        LedgerTampered: the server's ledger does not hold together.
    """
    made = statement_of(run)
    write_statement(run.path, made)
    write_privacy_page(run.path / "privacy.html", made)
    return made


def statement_of(run: RunFolder) -> Statement:
    """The statement of a finished run; raises what `write_privacy` raises."""
    terms = Task.read(run.path / "coordinator").privacy
    return statement(terms.plan if terms else None, facts_of(run, terms))


def facts_of(run: RunFolder, terms: PrivacyTerms | None) -> StatementFacts:
    """What was so in a finished run."""
    config, environment = run.config, json.loads((run.path / "environment.json").read_text())
    evaluated = run.result.get("test") is not None
    others = ledger_facts(run.path, terms)
    engine = json.loads((run.path / "command.json").read_text())["engine"]
    return StatementFacts(
        rounds=int(run.result["rounds"]),
        engine=engine,
        nodes=len(run.node_folders()),
        users_per_node=_fewest_users(run),
        aggregator=config.privacy.aggregator,
        least_nodes=config.secagg.min_nodes if config.privacy.aggregator == "secagg" else 0,
        simulated=engine == "in-process" and len(run.node_folders()) > FULL_PROTOCOL_NODES,
        metrics=("noised" if terms else "exact") if evaluated else "none",
        held_data=config.evaluation.held_data,
        selected=any(record["phase"] == "tuning" for record in run.records),
        audit=_audit(run.path / "audit.json", terms),
        exact_numbers=() if terms else ("loss", "examples", "norms before clipping", "number clipped"),
        code=f"fedrec {environment['fedrec']}",
        config_hash=hashlib.sha256((run.path / "config.json").read_bytes()).hexdigest(),
        packages=environment,
        **others,
    )


def _audit(path: Path, terms: PrivacyTerms | None) -> AuditFacts | None:
    """What an audit of this very plan found, if there was one.

    Raises:
        RunError: the file is none of `fedrec privacy audit`'s, or is about another plan.
    """
    if terms is None or not path.exists():
        return None
    try:
        report = next(r for r in json.loads(path.read_text())["audits"] if r["bug"] is None)
        plan = PrivacyPlan.model_validate_json(json.dumps(report["plan"]))
        game = next(g for g in report["games"] if g["game"] == "directions")
        facts = AuditFacts(
            lower_bound=game["eps_lower_best"],
            estimate=game["eps_estimate"],
            canaries=game["n_canaries"],
            largest_bound=_finite(game["largest_bound_possible"]),
            view=game["view"],
            verdict=report["verdict"],
        )
    except (ValueError, KeyError, StopIteration) as error:
        raise RunError(f"{path} is no audit ({error!r}): write it with `fedrec privacy audit`") from error
    if plan.model_copy(update={"noise_seed": None}) != terms.plan.model_copy(update={"noise_seed": None}):
        raise RunError(f"{path} is about another plan than this run's: audit the run's own configuration")
    return facts


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _fewest_users(run: RunFolder) -> int:
    split, nodes = run.split, len(run.node_folders())
    if nodes == 1:
        return split.train.n_users
    return min(split.shard(k, nodes).train.n_users for k in range(nodes))
