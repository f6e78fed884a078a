"""The centralised baseline of a run: the same recommender, data, split and evaluate, trained where all data lies.

It is what the price of federating is measured against. Its number of epochs is chosen on the validation part,
as the federation's number of rounds is, and it looks at the test part once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.messages import Phase
from fedrec.core.recommender import Recommender
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.evaluation.report import EvaluationReport, build_report
from fedrec.neural.recommender import NeuralRecommender
from fedrec.recommenders.registry import build
from fedrec_simulations.experiments.config import Config

#: Epochs tried for models that are trained step by step.
EPOCHS = (5, 10, 20, 40)


@dataclass(frozen=True)
class Baseline:
    """How the centralised baseline did.

    Attributes:
        report: on the test part.
        epochs: passes over the data; what a federation calls rounds.
        fit_seconds: of the final fit alone.
    """

    report: EvaluationReport
    epochs: int
    fit_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"test": self.report.as_dict(), "epochs": self.epochs, "fit_seconds": self.fit_seconds}


def fit_baseline(
    config: Config,
    split: Split,
    categories: NDArray[np.float32] | None = None,
    features: NDArray[np.float32] | None = None,
) -> Baseline:
    """Choose epochs, fit on training and validation part, evaluate on the test part.

    Raises:
        DataError: the split has no test part.
    """
    if split.test is None:
        raise DataError("the split has no test part: the centralised baseline cannot be evaluated")
    recommender = build(config.model)
    epochs = _choose(config, recommender, split, features)
    started = time.perf_counter()
    shared, local = recommender.fit(split.learnable("refit"), config.federation.seed, epochs, features)
    seconds = time.perf_counter() - started
    report = _evaluate(config, recommender, shared, local, split, "refit", config.evaluation, categories)
    return Baseline(report, epochs, seconds)


def _choose(
    config: Config, recommender: Recommender, split: Split, features: NDArray[np.float32] | None
) -> int:
    if recommender.fixed_rounds is not None:
        return recommender.fixed_rounds
    if recommender.round_is_sweep or split.validation is None:
        return config.federation.rounds
    if isinstance(recommender, NeuralRecommender):
        return _choose_on_the_way(config, recommender, split, features)
    best = (-1.0, EPOCHS[0])
    for epochs in EPOCHS:
        shared, local = recommender.fit(split.train, config.federation.seed, epochs, features)
        settings = config.evaluation.quick()
        values = _evaluate(config, recommender, shared, local, split, "tuning", settings, None).values()
        best = max(best, (values[config.federation.select_metric], epochs))
    return best[1]


def _choose_on_the_way(
    config: Config, recommender: NeuralRecommender, split: Split, features: NDArray[np.float32] | None
) -> int:
    """One training run that is evaluated as often, and given up as soon, as the federation's is, in epochs."""
    rules, settings = config.federation, config.evaluation.quick()
    every = max(1, round(rules.evaluate_every * rules.sampling_rate))
    last = max(1, round(rules.rounds * rules.sampling_rate))
    best, stale = (-1.0, last), 0
    sweeps = recommender.sweeps(split.train, rules.seed, features)
    for epoch, (shared, local) in zip(range(1, last + 1), sweeps, strict=False):
        if epoch % every and epoch != last:
            continue
        values = _evaluate(config, recommender, shared, local, split, "tuning", settings, None).values()
        score = values[rules.select_metric]
        stale = 0 if score > best[0] else stale + 1
        best = max(best, (score, epoch), key=lambda entry: entry[0])
        if rules.patience is not None and stale >= rules.patience:
            break
    return best[1]


def _evaluate(
    config: Config,
    recommender: Recommender,
    shared: dict[str, NDArray[Any]],
    local: dict[str, NDArray[Any]],
    split: Split,
    phase: Phase,
    settings: EvaluationSettings,
    categories: NDArray[np.float32] | None,
) -> EvaluationReport:
    target = split.target(phase)
    assert target is not None
    history = split.batch(split.history(phase))
    seed = config.federation.seed
    return build_report(
        evaluate(recommender, shared, local, history, split.batch(target), settings, seed, categories)
    )
