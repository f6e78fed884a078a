"""A run that begins from a model that is there, and not from its recommender's first one.

Out of scope: whether the model fits the run's items.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import write_arrays
from fedrec.core.updates import State
from fedrec.recommenders.registry import build
from fedrec.rounds.build import chain_of
from fedrec_server.rounds._checkpoints import CHECKPOINT
from fedrec_server.rounds.task import Progress, Standing, Task


def begin_from(folder: Path, task: Task, shared: State) -> None:
    """Let the coordinator of a new run begin from this model; its optimiser and its stages begin anew.

    Args:
        folder: the coordinator's, with no checkpoint yet.
        task: of the run.
        shared: the model.

    Raises:
        RunError: the model has other arrays than the run's.
    """
    recommender = build(task.model)
    like = recommender.init_shared(task.n_items, task.settings.seed, None)
    if {name: values.shape for name, values in shared.items()} != {
        name: values.shape for name, values in like.items()
    }:
        raise RunError("the model to begin from has other arrays than this run's: begin without it")
    plan = task.privacy.plan if task.privacy else None
    rule = task.rounds.aggregation_rule.rule()
    chain = chain_of(task.settings, plan, gradient=recommender.gradient_rounds, rule=rule)
    standing = Standing(shared, recommender.init_server(shared), chain.init(), Progress("refit"))
    write_arrays(folder / CHECKPOINT, standing.arrays(), asdict(standing.progress))
