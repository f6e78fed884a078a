"""One cell, run: a real run folder, the real coordinator and node, evaluated as any run is.

Runs in processes of its own, so everything here is a function of picklable values. Out of scope: which cells there
are, what becomes of results.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from fedrec.core.errors import FedrecError
from fedrec.core.interactions import Interactions
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.report import EvaluationReport, build_report
from fedrec.recommenders.registry import build
from fedrec_simulations.engines.held_data import held_sums
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.sweep._costs import of_run
from fedrec_simulations.sweep._local_only import evaluate_local_only
from fedrec_simulations.sweep.cells import Cell, CellResult
from fedrec_simulations.sweep.data import SweepData, read_data


def run_cell(cell: Cell, scratch: Path) -> CellResult:
    """Train and evaluate one cell; an error that is fedrec's own becomes part of the result.

    Args:
        cell: what to run.
        scratch: an existing folder, in which a folder of the cell comes and goes.
    """
    started = time.perf_counter()
    folder = scratch / cell.key[:16]
    try:
        data = read_data(cell.data)
        result = _local_only(cell, data) if cell.local_only else _federated(cell, data, folder)
    except FedrecError as error:
        return CellResult(cell.key, error=" ".join(str(error).split()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return replace(result, seconds=round(time.perf_counter() - started, 3))


def _federated(cell: Cell, data: SweepData, folder: Path) -> CellResult:
    # Left over where the machine went down within this cell.
    shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder.create(folder, cell.config, data.prepared(), nodes=1, share_split=False)
    outcome = run_in_process(folder)
    test = outcome.result["test"]
    report = build_report(held_sums(run, outcome.shared, outcome.rounds))
    metrics = _named("", report, "all") | _named("small/", report, "few")
    if test is not None and test.get("noised"):
        metrics |= {f"released/{name}": mean["value"] for name, mean in test["metrics"]["all"].items()}
        metrics |= {f"released_std/{name}": std for name, std in test["noise_std"].items()}
    users = {"all": report.n_users["all"], "small": report.n_users["few"], "tail": 0}
    if len(data.tail):
        report = _tail(cell, data, run, outcome.rounds)
        metrics |= _named("tail/", report, "all")
        users["tail"] = report.n_users["all"]
    return CellResult(cell.key, metrics, users, of_run(folder))


def _tail(cell: Cell, data: SweepData, run: RunFolder, rounds: int) -> EvaluationReport:
    """Only held-out items of the long tail count as right; everything else unseen is an candidate."""
    (node,) = run.nodes()
    history = data.split.batch(data.split.history("refit"))
    local = node.local_state(run.model, "refit", rounds)
    target = data.split.batch(data.tail)
    model = build(cell.config.model)
    return build_report(
        evaluate(
            model, run.model, local, history, target, cell.config.evaluation, cell.config.federation.seed
        )
    )


def _local_only(cell: Cell, data: SweepData) -> CellResult:
    def evaluate_sampled(part: Interactions) -> EvaluationReport:
        history = data.split.batch(data.split.history("refit"))
        target = data.split.batch(part)
        settings, seed = cell.config.evaluation, cell.config.federation.seed
        return build_report(evaluate_local_only(history, target, data.categories, settings, seed))

    assert data.split.test is not None
    report = evaluate_sampled(data.split.test)
    metrics = _named("", report, "all") | _named("small/", report, "few")
    users = {"all": report.n_users["all"], "small": report.n_users["few"], "tail": 0}
    if len(data.tail):
        tail = evaluate_sampled(data.tail)
        metrics |= _named("tail/", tail, "all")
        users["tail"] = tail.n_users["all"]
    return CellResult(cell.key, metrics, users)


def _named(prefix: str, report: EvaluationReport, group: str) -> dict[str, float]:
    return {prefix + name: estimate.value for name, estimate in report.metrics.get(group, {}).items()}
