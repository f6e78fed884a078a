"""Variants of one experiment, each with its few candidates for what must be tuned, compared user by user.

The candidate is chosen on the validation item; one that diverges is out. Every candidate is evaluated on the test
item once, and only the figures of the chosen one are shown. Differences to the first variant come with 95 % intervals
of a paired bootstrap over users: replicates weigh the same users alike in every run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import EXPERIMENTS, paths
from fedrec.core.errors import RoundAbandoned
from fedrec.evaluation.sums import MetricSums
from fedrec_simulations.engines.held_data import held_sums
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

METRICS = ("full/ndcg@10", "full/recall@20", "sampled/hr@10")
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """A name, and the settings of the model to be tried."""

    name: str
    candidates: Sequence[Overrides]


@dataclass(frozen=True)
class Result:
    """How a candidate did.

    Attributes:
        model: its settings.
        validation: what it was chosen by.
        rounds: of the final fit.
        sums: on the test item.
        seconds: CPU, of choosing the number of rounds and of the final fit.
        bytes_up: per user and round.
    """

    model: Overrides
    validation: float
    rounds: int
    sums: MetricSums
    seconds: float
    bytes_up: float


def load(name: str, data: Path | None) -> tuple[Config, Prepared]:
    """An experiment such as `ml-100k-sasrec`, its data read."""
    dataset = name.rsplit("-", 1)[0]
    overrides = [] if data is None or dataset == "movietweetings" else paths(data.resolve(), dataset)
    config = load_config((EXPERIMENTS / f"{name}.toml").resolve(), overrides)
    return config, prepare(config)


def changed(config: Config, model: Overrides, federation: Overrides) -> Config:
    """Another configuration; sections within the model are replaced whole."""
    plain = config.model_dump(mode="json")
    plain["model"] |= model
    plain["federation"] |= federation
    return Config.model_validate(plain)


def compare(
    config: Config,
    prepared: Prepared,
    variants: Sequence[Variant],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Result]:
    """Every variant's result, by name."""
    out = {}
    for variant in variants:
        tried = []
        for model in variant.candidates:
            try:
                tried.append(_run(changed(config, model, {}), prepared, model))
                say(f"{variant.name}: {tried[-1].validation:.4f} {model}")
            except RoundAbandoned as error:
                say(f"{variant.name}: {error} {model}")
        out[variant.name] = max(tried, key=lambda result: result.validation)
    return out


def _run(config: Config, prepared: Prepared, model: Overrides) -> Result:
    with tempfile.TemporaryDirectory(prefix="fedrec-variants-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepared, 1, share_split=False)
        started = time.process_time()
        outcome = run_in_process(folder.path)
        seconds = time.process_time() - started
        sums = held_sums(folder, outcome.shared, outcome.rounds)
        # Closed forms choose no number of rounds and look at no validation item.
        (validation,) = (outcome.result["validation"] or {"none": 0.0}).values()
        up = folder.records[-1]["bytes_up_per_user"]
        return Result(model, validation, outcome.rounds, sums, seconds, up)


def value(sums: MetricSums, metric: str, groups: Sequence[int] = (0, 1, 2)) -> float:
    """Mean over the users of some groups by history length."""
    pick = list(groups)
    return float(sums.metrics[metric][pick, 0].sum() / sums.users[pick, 0].sum())


def difference(
    one: MetricSums, other: MetricSums, metric: str, groups: Sequence[int] = (0, 1, 2)
) -> tuple[float, float, float]:
    """`one` minus `other`, and its 95 % interval."""
    pick = list(groups)
    means = [s.metrics[metric][pick].sum(axis=0) / s.users[pick].sum(axis=0) for s in (one, other)]
    apart = means[0] - means[1]
    low, high = np.quantile(apart[1:], [0.025, 0.975])
    return float(apart[0]), float(low), float(high)


def table(results: Mapping[str, Result], metric: str = METRICS[0]) -> str:
    """Markdown: all metrics, differences of the first one, and the users' CPU and bytes."""
    first = next(iter(results.values()))
    lines = [
        f"| variant | {' | '.join(METRICS)} | {metric}: difference (95 %) | rounds | kB up | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        values = " | ".join(f"{value(result.sums, m):.4f}" for m in METRICS)
        apart, low, high = difference(result.sums, first.sums, metric)
        shown = "" if result is first else f"{apart:+.4f} ({low:+.4f} to {high:+.4f})"
        size = f"{result.bytes_up / 1e3:,.0f}"
        lines.append(f"| {name} | {values} | {shown} | {result.rounds} | {size} | {result.seconds:.0f} |")
    return "\n".join(lines)
