"""The README's first command, and the floor below which its quality must not fall."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import ask


@pytest.mark.slow
@pytest.mark.numeric
def test_demo_trains_compares_recommends_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = ask(capsys, "demo", "--out", str(tmp_path / "demo"))
    assert code == 0
    values = {run["name"]: run["test"]["metrics"]["all"] for run in document["runs"]}
    baselines = {run["name"]: run["baseline"]["test"]["metrics"]["all"] for run in document["runs"]}
    best = values["item-knn"]
    # What the recommender must reach on MovieTweetings 5-core, leave-one-out.
    assert best["sampled/hr@10"]["value"] >= 0.66
    assert best["sampled/ndcg@10"]["value"] >= 0.45
    assert best["full/ndcg@10"]["value"] >= 0.093
    for name in ("popularity", "item-knn", "ease"):
        own, baseline = values[name], baselines[name]
        assert own["full/ndcg@10"]["value"] == pytest.approx(baseline["full/ndcg@10"]["value"], abs=1e-3)
    for name in ("item-knn", "ease", "ials", "mf"):
        popular = values["popularity"]["full/ndcg@10"]
        assert values[name]["full/ndcg@10"]["value"] > popular["value"]
    # Epsilon 3 per user, noise from a cryptographic generator: a new draw each time, sd about .0007.
    assert values["dp-ease"]["full/ndcg@10"]["value"] >= 0.09
    assert len(document["example"]["recommendations"]) == 10
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "NO DIFFERENTIAL PRIVACY" in page and "http-equiv" not in page
    assert 'src="http' not in page and 'href="http' not in page
