"""Hyper-parameters chosen on the validation part, with the nodes' own round code.

The test part is dropped before anything else is done, so no choice can depend on it. Out of scope: the final fit
(`fedrec train` with the configuration found).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec.core.messages import Request
from fedrec.data.split import Split
from fedrec.evaluation.report import build_report
from fedrec.evaluation.sums import MetricSums
from fedrec.recommenders.registry import build
from fedrec.rounds.formats import read_update
from fedrec.secagg.terms import PlainTerms
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_simulations.experiments.config import Config


@dataclass(frozen=True)
class Trial:
    """One configuration, evaluated on the validation part.

    Attributes:
        overrides: what differs from the configuration given, as `a.b=c`.
        config: the whole configuration.
        rounds: the best number of rounds.
        validation: metrics at that round.
        seconds: of training and evaluating.
    """

    overrides: tuple[str, ...]
    config: Config
    rounds: int
    validation: dict[str, float]
    seconds: float

    @property
    def score(self) -> float:
        """The metric by which configurations are chosen."""
        return self.validation[self.config.federation.select_metric]


def combinations(grid: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of `a.b=1,2` lines as overrides `a.b=1`; one empty combination without a grid.

    Raises:
        ConfigError: a line is no such thing.
    """
    axes = []
    for line in grid:
        key, sign, values = line.partition("=")
        options = [value.strip() for value in values.split(",")]
        if not sign or not key.strip() or not all(options):
            raise ConfigError(
                f"--grid {line!r}: expected key=value,value, for example --grid model.reg=100,200"
            )
        axes.append([f"{key.strip()}={value}" for value in options])
    return list(itertools.product(*axes))


def without_test(split: Split) -> Split:
    """The split as tuning may see it.

    Raises:
        ConfigError: it has no validation part.
    """
    if split.validation is None:
        raise ConfigError("tuning needs a validation part: set split.validation = true")
    return replace(split, test=None)


def run_trials(
    configs: Sequence[tuple[tuple[str, ...], Config]],
    split: Split,
    jobs: int = 1,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Evaluate every configuration, the best first.

    Args:
        configs: overrides and the configuration that they lead to; all with one data and split section.
        split: as `without_test` returns it.
        jobs: processes.
        on_trial: called as results come.

    Raises:
        ConfigError: the split holds a test part.
    """
    if split.test is not None:
        raise ConfigError("tuning was given a test part: pass the split through without_test")
    if any(config.privacy.unit != "none" for _, config in configs):
        raise ConfigError(
            "tuning trains without noise, so it cannot evaluate a privacy target: use `fedrec privacy sweep` with "
            "sweep.evaluate = 'validation'"
        )
    trials = []
    for trial in _results(configs, split, jobs):
        on_trial(trial)
        trials.append(trial)
    return sorted(trials, key=lambda trial: -trial.score)


def _results(configs: Sequence[tuple[tuple[str, ...], Config]], split: Split, jobs: int) -> Iterator[Trial]:
    if jobs == 1 or len(configs) == 1:
        yield from (evaluate(overrides, config, split) for overrides, config in configs)
        return
    # Forking a process with compiled kernels' threads may hang it.
    with ProcessPoolExecutor(min(jobs, len(configs)), get_context("spawn")) as pool:
        overrides, each = zip(*configs, strict=True)
        yield from pool.map(evaluate, overrides, each, itertools.repeat(split))


def evaluate(overrides: tuple[str, ...], config: Config, split: Split) -> Trial:
    """Train on the training part round by round, evaluating as the coordinator does while it chooses rounds."""
    started = time.perf_counter()
    best: tuple[float, int, dict[str, float]] = (-1.0, 0, {})
    stale, patience = 0, config.federation.patience
    for round_, values in _rounds(config, split):
        score = values[config.federation.select_metric]
        stale = 0 if score > best[0] else stale + 1
        best = max(best, (score, round_, values), key=lambda entry: entry[0])
        if patience is not None and stale >= patience:
            break
    return Trial(overrides, config, best[1], best[2], time.perf_counter() - started)


def _rounds(config: Config, split: Split) -> Iterator[tuple[int, dict[str, float]]]:
    """Validation metrics of every round that is evaluated."""
    recommender, rules = build(config.model), config.federation
    n_items, users = split.train.n_items, split.train.n_users
    settings = config.evaluation.quick()
    node = Node(
        split,
        config.model,
        config.node_settings(),
        settings,
        LocalStore(None),
        aggregation=PlainTerms(insecure=True),
    )
    like = MetricSums.empty(settings, n_items)
    shared = recommender.init_shared(n_items, rules.seed)
    server = recommender.init_server(shared)
    last = recommender.fixed_rounds or rules.rounds
    for number in range(1, last + 1):
        reply = node.handle(Request("train", number, "tuning", shared, {"persist": False}))
        total = read_update(reply, recommender.layout(n_items, number), users, rules.clip_norm)
        if total.users:
            shared, server = recommender.apply(shared, server, total)
        if number % rules.evaluate_every == 0 or number == last:
            answer: dict[str, Any] = node.handle(Request("evaluate", number, "tuning", shared)).arrays
            yield number, build_report(MetricSums.from_arrays(answer, like, users)).values()
