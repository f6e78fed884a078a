"""One small run on all three engines: the same round code must give the same model."""

from __future__ import annotations

from pathlib import Path

import flower_helpers
import numpy as np
import pytest

from fedrec.learning.settings import RoundSettings
from fedrec.privacy.ledger import Ledger
from fedrec_server.coordinator import Outcome
from fedrec_simulations.engines.deployment import run_deployment
from fedrec_simulations.engines.flower import run_flower
from fedrec_simulations.engines.in_process import run_in_process

ROUNDS = RoundSettings(rounds=2, deadline_seconds=90)
NODES = 3


def _assert_same(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.finished and outcome.rounds == reference.rounds
    for name, values in reference.shared.items():
        np.testing.assert_allclose(outcome.shared[name], values, rtol=1e-4, atol=1e-6)
    expected = reference.result["test"]["metrics"]["all"]
    for name, estimate in outcome.result["test"]["metrics"]["all"].items():
        assert estimate["value"] == pytest.approx(expected[name]["value"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.deployment
def test_three_engines_one_model(tmp_path: Path) -> None:
    reference = run_in_process(flower_helpers.lay_out(tmp_path / "one", 1, ROUNDS))
    spread = run_in_process(flower_helpers.lay_out(tmp_path / "spread", NODES, ROUNDS))
    simulated = run_flower(flower_helpers.lay_out(tmp_path / "simulated", NODES, ROUNDS), NODES)
    deployed = run_deployment(flower_helpers.lay_out(tmp_path / "deployed", NODES, ROUNDS), NODES)
    _assert_same(spread, reference)
    # The same shards: only the order of summing differs, and sums are in double precision.
    _assert_same(simulated, spread)
    _assert_same(deployed, spread)
    np.testing.assert_allclose(simulated.shared["item_table"], spread.shared["item_table"], atol=1e-7)
    np.testing.assert_allclose(deployed.shared["item_table"], spread.shared["item_table"], atol=1e-7)


@pytest.mark.slow
@pytest.mark.deployment
def test_private_rounds_are_the_same_in_process_and_under_flower(tmp_path: Path) -> None:
    """Integers: the same bits, however they were carried; and every node has booked its own releases."""
    spread = run_in_process(flower_helpers.lay_out(tmp_path / "spread", NODES, ROUNDS, trust="distributed"))
    folder = flower_helpers.lay_out(tmp_path / "simulated", NODES, ROUNDS, trust="distributed")
    simulated = run_flower(folder, NODES)
    _assert_same(simulated, spread)
    np.testing.assert_array_equal(simulated.shared["item_table"], spread.shared["item_table"])
    for book in [folder / "coordinator", *(folder / "nodes" / str(k) for k in range(NODES))]:
        with Ledger.open(book / "ledger", read_only=True) as ledger:
            (account,) = ledger.accounts()
            assert sorted(ledger.charged(account, "run")) == [1, 2]
