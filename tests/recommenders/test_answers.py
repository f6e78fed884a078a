"""Probabilities of rankers evaluated in a federation: sums over devices, in the clear and in secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import batch
from test_deepfm import SMALL, rated
from test_neural_models import model

from fedrec.core.errors import ConfigError, ProtocolError
from fedrec.core.interactions import Catalog, Interactions
from fedrec.data.split import Split
from fedrec.evaluation._ranking_metrics import RankerSums
from fedrec.evaluation.answers import Ranker, evaluate_answers
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.evaluation.report import build_report
from fedrec.evaluation.sums import MetricSums
from fedrec.recommenders.ctr.deepfm import DeepFm
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.page import write_page
from fedrec_simulations.report.summary import Summary

EVALUATED = EvaluationSettings(bootstrap=0, probabilities=True)


def parts(data: Interactions) -> Split:
    """The last event of everyone is the test part, the one before chooses."""
    back = np.concatenate([np.arange(n)[::-1] for n in data.counts])
    return Split(data.select(back > 1), data.select(back == 1), data.select(back == 0))


def make_ranker(**settings: Any) -> DeepFm:
    found = model("deepfm", context=True, **SMALL, **settings)
    assert isinstance(found, DeepFm) and isinstance(found, Ranker)
    return found


def test_ratings_are_asked_for_at_their_moment_and_nothing_else_is() -> None:
    split, ranker = parts(rated()), make_ranker(target="rating")
    shared, local = ranker.fit(split.train, 0, 3)
    history, target = split.batch(split.train), split.batch(split.validation)
    sums = evaluate_answers(ranker, shared, history, target, split.train.n_items, 0)
    p = ranker.predict(shared, history, target.item[:, None], target.time)[:, 0]
    np.testing.assert_allclose(
        sums.report()["rmse"], np.sqrt(np.square(p - ranker.share(target.value)).mean()), rtol=1e-5
    )
    assert sums.totals[0] == len(target)
    whole = build_report(evaluate(ranker, shared, local, history, target, EVALUATED, 0, chunk_users=7))
    assert whole.answers["rmse"] == pytest.approx(sums.report()["rmse"])
    # No one has both classes, and what cannot be said is left out.
    assert "auc_within" not in whole.answers
    assert json.loads(json.dumps(whole.as_dict(), allow_nan=False))["answers"]["log_loss"] > 0


def test_a_click_stands_beside_as_many_strangers_as_in_training() -> None:
    """Of someone who has all items but two, no third stranger is made up."""
    ranker = make_ranker(negatives=3)
    shared = ranker.init_shared(8, 0)
    history, target = batch([[0, 1], list(range(5))]), batch([[2, 3], [5]])
    sums = evaluate_answers(ranker, shared, history, target, 8, 0)
    # Two events beside three strangers each; one beside the two that are left.
    assert sums.totals[0] == 2 * 4 + 3
    assert sums.positive.sum() == 3 and sums.report()["outcome"] == pytest.approx(3 / 11)
    assert evaluate_answers(ranker, shared, history, batch([[], []]), 8, 0).totals[0] == 0


def test_impossible_answers_are_refused() -> None:
    like = MetricSums.empty(EVALUATED, 30)
    arrays = like.to_arrays()
    assert MetricSums.from_arrays(arrays, like).answers is not None
    with pytest.raises(ProtocolError, match="different settings"):
        MetricSums.from_arrays(
            arrays, MetricSums.empty(EVALUATED.model_copy(update={"probabilities": False}), 30)
        )
    spoiled = {
        "lacks": {name: a for name, a in arrays.items() if name != "answer/hit"},
        "answer/hit of shape": arrays | {"answer/hit": np.zeros(3)},
        "positive answers": arrays | {"answer/positive": np.ones(len(arrays["answer/positive"]))},
        "log loss": arrays | {"answer/totals": np.array([1.0, 1e6, 0, 0, 0])},
        "squared error": arrays | {"answer/totals": np.array([0, 0, 5.0, 0, 0])},
        "areas": arrays | {"answer/totals": np.array([0, 0, 0, 0, -1.0])},
    }
    for words, wrong in spoiled.items():
        with pytest.raises(ProtocolError, match=words):
            MetricSums.from_arrays(wrong, like)


def test_only_rankers_are_asked() -> None:
    ranker = model("sasrec", embedding_size=4)
    with pytest.raises(ConfigError, match="train a ranker"):
        evaluate(ranker, {}, {}, batch([[0]]), batch([[1]]), EVALUATED, 0)
    plain: dict[str, Any] = {"privacy": {"unit": "none", "aggregator": "plain", "insecure": True}}
    with pytest.raises(ConfigError, match="train a ranker"):
        parse_config(plain | {"model": {"kind": "sasrec"}, "evaluation": {"probabilities": True}})
    with pytest.raises(ConfigError, match=r"set evaluation\.probabilities"):
        parse_config(
            plain | {"model": {"kind": "deepfm"}, "federation": {"select_metric": "answers/likelihood"}}
        )


# Whole runs ------------------------------------------------------------------------------------------------


def laid_out(folder: Path, aggregator: str) -> tuple[RunFolder, Config, Prepared]:
    split = parts(rated())
    privacy: dict[str, Any] = {"unit": "none", "aggregator": aggregator}
    rules = {"rounds": 8, "evaluate_every": 4, "nodes": 4, "clip_norm": 5.0}
    config = Config.model_validate(
        {
            "name": aggregator,
            "data": {"ratings": True},
            "model": {"kind": "deepfm", "target": "rating", "context": True, **SMALL},
            "federation": rules | {"select_metric": "answers/likelihood"},
            "evaluation": {"bootstrap": 20, "probabilities": True},
            "privacy": privacy | ({"insecure": True} if aggregator == "plain" else {}),
        }
    )
    prepared = Prepared(split, Catalog.bare(split.train.item_ids), {"name": "planted"})
    return RunFolder.create(folder, config, prepared, 4), config, prepared


def test_the_coordinator_chooses_rounds_by_them_and_sees_sums_alone(tmp_path: Path) -> None:
    clear, config, prepared = laid_out(tmp_path / "clear", "plain")
    hidden, *_ = laid_out(tmp_path / "hidden", "secagg")
    one, other = run_in_process(clear.path), run_in_process(hidden.path)
    looks = [r["validation"] for r in clear.records if "validation" in r]
    assert [look["answers/likelihood"] for look in looks] == pytest.approx(
        [np.exp(-look["answers/log_loss"]) for look in looks]
    )
    best = max(looks, key=lambda look: look["answers/likelihood"])
    assert one.rounds == other.rounds == 4 * (1 + looks.index(best))
    found, secret = (each.result["test"]["answers"] for each in (one, other))
    assert secret == pytest.approx(found, abs=2e-3) and found["calibration"] < 0.3
    # The baseline's figures stand beside them, and the page shows both.
    baseline = fit_baseline(config, prepared.split).report
    assert baseline.answers.keys() == found.keys()
    page = write_page(tmp_path / "page.html", [Summary(clear)]).read_text()
    assert "How likely it said it was" in page and f"{found['log_loss']:.4f}" in page


def test_sums_of_parts_are_the_sums_of_all() -> None:
    split, ranker = parts(rated()), make_ranker(target="rating")
    shared = ranker.init_shared(split.train.n_items, 0)
    history, target = split.batch(split.train), split.batch(split.validation)
    whole = evaluate_answers(ranker, shared, history, target, 30, 0)
    total = RankerSums.empty()
    for rows in np.array_split(np.arange(len(history)), 5):
        total = total.merge(evaluate_answers(ranker, shared, history.take(rows), target.take(rows), 30, 0))
    for name, values in whole.to_arrays().items():
        np.testing.assert_allclose(total.to_arrays()[name], values, atol=1e-5)
