"""One real Flower simulation: the same rounds as in process, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import flower_helpers
import numpy as np
import pytest
from small_models import FEATURES, model_of

from fedrec.core.errors import ConfigError, RunError
from fedrec.core.processes import marked
from fedrec.privacy.ledger import Ledger
from fedrec.rounds.settings import RoundSettings
from fedrec_simulations.engines import flower as engine
from fedrec_simulations.engines.flower import run_flower
from fedrec_simulations.engines.in_process import run_in_process

ROUNDS = RoundSettings(rounds=2, deadline_seconds=60)


@pytest.mark.slow
def test_simulation_gives_the_model_of_the_in_process_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A mark of this test's own: another simulation may run on the machine.
    monkeypatch.setattr(engine, "MARK", f"simulated-{os.getpid()}")
    # Secure: secrets go from process to process in Flower's node state, and integers sum to the same bits. Private:
    # every node books its own releases.
    flower = flower_helpers.lay_out(tmp_path / "flower", 4, ROUNDS, secure=True, trust="distributed")
    here = flower_helpers.lay_out(tmp_path / "here", 4, ROUNDS, secure=True, trust="distributed")
    events: list[dict[str, object]] = []
    running: list[int] = []

    def note(event: dict[str, object]) -> None:
        events.append(event)
        running.append(len(marked(engine.MARK)))

    outcome = run_flower(flower, 4, on_event=note)
    baseline = run_in_process(here)
    assert min(running) > 2
    assert outcome.finished and outcome.rounds == 2
    assert [event["round"] for event in events if "round" in event] == [1, 2]
    assert all(event["nodes"] == 4 and not event["failures"] for event in events)
    for name, values in baseline.shared.items():
        np.testing.assert_array_equal(outcome.shared[name], values)
    assert outcome.result["test"] == baseline.result["test"]
    for book in [flower / "coordinator", *(flower / "nodes" / str(k) for k in range(4))]:
        with Ledger.open(book / "ledger", read_only=True) as ledger:
            (account,) = ledger.accounts()
            # Two rounds, and the release of metrics.
            assert sorted(ledger.charged(account, "run")) == [1, 2, 3]
    assert not marked(engine.MARK)


@pytest.mark.slow
def test_a_stopped_simulation_goes_on_under_another_engine(tmp_path: Path) -> None:
    flower = flower_helpers.lay_out(tmp_path / "flower", 2, ROUNDS)
    here = flower_helpers.lay_out(tmp_path / "here", 2, ROUNDS)
    seen: list[dict[str, object]] = []
    stopped = run_flower(flower, 2, on_event=seen.append, stop=lambda: True)
    assert (stopped.finished, stopped.rounds) == (False, 1)
    outcome, baseline = run_in_process(flower), run_in_process(here)
    assert outcome.finished
    for name, values in baseline.shared.items():
        np.testing.assert_allclose(outcome.shared[name], values, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_ranker_with_features_is_simulated_too(tmp_path: Path) -> None:
    rounds = RoundSettings(rounds=1, deadline_seconds=60)
    how = {"secure": True, "model": model_of("deepfm"), "features": FEATURES}
    outcome = run_flower(flower_helpers.lay_out(tmp_path / "flower", 3, rounds, **how), 3)
    baseline = run_in_process(flower_helpers.lay_out(tmp_path / "here", 3, rounds, **how))
    for name, values in baseline.shared.items():
        np.testing.assert_array_equal(outcome.shared[name], values)
    assert outcome.result["test"] == baseline.result["test"]


def test_nothing_is_left_after_an_interruption(tmp_path: Path) -> None:
    mark = f"interrupted-{os.getpid()}"
    with pytest.raises(KeyboardInterrupt), engine.simulation_superlink(tmp_path / "superlink.log", mark):
        assert marked(mark)
        raise KeyboardInterrupt
    assert not marked(mark)


def test_more_than_a_thousand_nodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard of users"):
        run_flower(tmp_path, 1001)


def test_a_run_laid_out_for_other_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected 2"):
        run_flower(flower_helpers.lay_out(tmp_path, 3, ROUNDS), 2)
