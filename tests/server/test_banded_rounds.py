"""Whole private runs with correlated noise: resumed with the same noise, and none of it is left at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cli_helpers
import numpy as np
import pytest
from test_private_rounds import Killed, Nodes, prepare, records

from fedrec.core.errors import ConfigError
from fedrec.core.files import read_arrays
from fedrec.data.split import Split
from fedrec.privacy.ledger import Account, Ledger
from fedrec_server.operations.privacy_terms import plan_of
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.coordinator import open_coordinator
from fedrec_server.rounds.task import Task
from fedrec_simulations.experiments.config import parse_config

BANDED: dict[str, Any] = {"mechanism": "banded", "options": {"cycle": 2}, "rate": 0.25}
PAST = "mechanism/past"


def past_of(folder: Path) -> np.ndarray:
    arrays, _ = read_arrays(folder / "coordinator" / "checkpoint.safetensors")
    (name,) = (name for name in arrays if name.endswith(PAST))
    return np.asarray(arrays[name])


def test_every_round_is_charged_and_no_noise_is_left(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, **BANDED)
    kept = []

    class Watched(Nodes):
        def exchange(self, requests: Any, deadline_seconds: float) -> Any:
            if (folder / "coordinator" / "checkpoint.safetensors").exists():
                kept.append(past_of(folder).shape)
            return super().exchange(requests, deadline_seconds)

    outcome = open_coordinator(folder / "coordinator", Watched(folder)).run()
    plan = Task.read(folder / "coordinator").privacy.plan  # type: ignore[union-attr]
    assert outcome.finished and np.isfinite(outcome.shared["item_table"]).all()
    assert plan.mechanism_name == "banded" and plan.sampling == "cyclic" and plan.epsilon() <= 5.0
    parameters = plan.parameters
    assert [shape for shape in kept if shape[0]] == [(1, parameters)] * 2, (
        "the noise of one round, between rounds"
    )
    assert past_of(folder).size == 0
    assert [record["noise_std"] for record in records(folder)] == [plan.noise_std(r) for r in (1, 2, 3)]
    with Ledger.open(folder / "coordinator" / "ledger", read_only=True) as ledger:
        assert sorted(ledger.charged(Account("each of the users of the federation", "planted"), "run")) == [
            1,
            2,
            3,
        ]


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_a_killed_coordinator_continues_the_same_noise(
    tmp_path: Path, split: Split, round_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a seed, to the bit: what earlier rounds added is taken back by later ones, before or after a kill."""
    models = []
    for name in ("whole", "killed"):
        folder = prepare(tmp_path / name, split, noise_seed=3, **BANDED)
        if name == "killed":
            real = Charges.charge

            def charge(self: Charges, number: int, digest: str, real: Any = real) -> None:
                if number == round_:
                    raise Killed
                real(self, number, digest)

            with monkeypatch.context() as patch:
                patch.setattr(Charges, "charge", charge)
                with pytest.raises(Killed):
                    open_coordinator(folder / "coordinator", Nodes(folder)).run()
        models.append(open_coordinator(folder / "coordinator", Nodes(folder)).run().shared)
    for name in models[0]:
        np.testing.assert_array_equal(models[0][name], models[1][name])


def configured(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"name": "file", "path": "events.csv", "timestamp_column": "time"},
        "split": {"validation": False},
        "model": {"kind": "mf", "embedding_size": 4},
        "federation": {"rounds": 6, "sampling_rate": 0.25, "nodes": 3} | sections.get("federation", {}),
        "privacy": {
            "unit": "user",
            "mechanism": "banded",
            "options": {"cycle": 3},
            "epsilon": 8.0,
            "force": True,
            "aggregator": "secagg",
        }
        | sections.get("privacy", {}),
        "secagg": sections.get("secagg", {}),
    } | ({"model": sections["model"]} if "model" in sections else {})


def test_a_run_under_secure_aggregation_from_its_configuration(tmp_path: Path) -> None:
    """The server sees the sum of the masked integers alone, and adds the correlated noise to it."""
    settings = {
        "federation.rounds": "6",
        "federation.sampling_rate": "0.25",
        "split.validation": "false",
        "privacy.unit": "user",
        "privacy.mechanism": "banded",
        "privacy.options": "{ cycle = 3 }",
        "privacy.epsilon": "8.0",
        "privacy.force": "true",
        "privacy.aggregator": "secagg",
        "privacy.insecure": "false",
    }
    out, changes = tmp_path / "out", [f"--set={key}={value}" for key, value in settings.items()]
    assert cli_helpers.run("train", cli_helpers.write_config(tmp_path), "--out", out, *changes) == 0
    said = json.loads((out / "privacy.json").read_text())
    assert said["private"] and "correlated over rounds" in said["mechanism"]["noise"]
    assert said["sampling"]["implemented"] == "cyclic" and said["guarantee"]["epsilon"] <= 8.0
    assert said["adversary_and_trust"]["aggregator"] == "secagg"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"secagg": {"dense_parameters": 20}},
            "raise federation.shard_parameters, or secagg.dense_parameters",
        ),
        ({"federation": {"compression": {"rank": 2}}}, "send whole updates"),
        (
            {
                "model": {"kind": "popularity"},
                "federation": {"sampling_rate": 1.0},
                "privacy": {"options": {}},
            },
            "no steps of one sum",
        ),
        ({"privacy": {"options": {}}}, "set privacy.options.cycle"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_is_laid_out(changes: dict[str, Any], message: str) -> None:
    config = parse_config(configured(**changes))
    with pytest.raises(ConfigError, match=message):
        plan_of(config, 60, 30)
