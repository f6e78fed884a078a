"""One of ten nodes sends poisoned updates: a robust rule keeps what is learned, the sum does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import write_run
from cohort_helpers import Job, LocalCohorts
from conftest import planted

from fedrec.core.errors import ConfigError, RoundAbandoned
from fedrec.core.messages import Failure, Reply, Request
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.rounds.aggregation import RuleSettings
from fedrec.rounds.settings import RoundSettings
from fedrec_client.node.node_folder import open_node
from fedrec_server.rounds.coordinator import open_coordinator
from fedrec_simulations.experiments.config import parse_config

NODES, ROUNDS, POISONED = 10, 40, "3"
MODEL = MfConfig(embedding_size=8, learning_rate=0.2)
EVALUATION = EvaluationSettings(bootstrap=20)


class PoisonedExchange:
    """Ten nodes in this process, one of which turns its update around and sends it `boost` times as long."""

    def __init__(self, folder: Path, boost: float) -> None:
        self._nodes = {path.name: open_node(path) for path in sorted((folder / "nodes").iterdir())}
        self._boost = boost

    def nodes(self) -> list[str]:
        return sorted(self._nodes)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return {node: self._answer(node, request) for node, request in requests.items()}

    def _answer(self, node: str, request: Request) -> Reply:
        reply = self._nodes[node].handle(request)
        if request.kind != "train" or node != POISONED or not self._boost:
            return reply
        update = (-self._boost * reply.arrays["update"]).astype(np.float32)
        return replace(reply, arrays={"update": update})


def prepare(folder: Path, split: Split, rule: RuleSettings, **rounds: object) -> Path:
    fields = {"rounds": ROUNDS, "deadline_seconds": 5.0, "aggregation_rule": rule} | rounds
    settings = RoundSettings(**fields)  # type: ignore[arg-type]
    return write_run(folder, split, MODEL, nodes=NODES, rounds=settings, evaluation=EVALUATION)


def quality(folder: Path, split: Split, rule: RuleSettings, boost: float) -> float:
    prepare(folder, split, rule)
    outcome = open_coordinator(folder / "coordinator", PoisonedExchange(folder, boost)).run()
    return float(outcome.result["test"]["metrics"]["all"]["full/ndcg@10"]["value"])


def planted_split(users: int = 30) -> Split:
    """Four groups of users, of which every node hosts some; the last item of each is held out."""
    interactions = planted(n_users=users, n_items=40, seed=1)
    age = interactions.batch(np.arange(interactions.n_users)).age
    return Split(interactions.select(age > 0), None, interactions.select(age == 0))


@pytest.fixture(scope="module")
def wide() -> Split:
    return planted_split(300)


def rule(kind: str, **settings: float) -> RuleSettings:
    return RuleSettings.model_validate({"kind": kind} | settings)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, wide: Split) -> float:
    """NDCG@10 of ten honest nodes under the sum."""
    return quality(tmp_path_factory.mktemp("clean"), wide, rule("sum"), 0.0)


def test_the_sum_is_ruined_by_one_node(tmp_path: Path, wide: Split, clean: float) -> None:
    assert clean > 0.45
    assert quality(tmp_path, wide, rule("sum"), 30.0) < 0.7 * clean


@pytest.mark.parametrize(
    "robust",
    [rule("trimmed_mean", trim=0.1), rule("median"), rule("krum", keep=7), rule("norm_filter")],
    ids=lambda r: str(r.kind),
)
def test_a_robust_rule_keeps_the_quality(
    tmp_path: Path, wide: Split, clean: float, robust: RuleSettings
) -> None:
    assert quality(tmp_path, wide, robust, 30.0) > 0.9 * clean


def test_too_few_replies_abandon_the_round(tmp_path: Path, wide: Split) -> None:
    folder = prepare(tmp_path, wide, rule("krum", dishonest=0.4))
    with pytest.raises(RoundAbandoned, match="expected at least 11"):
        open_coordinator(folder / "coordinator", PoisonedExchange(folder, 0.0)).run()


def test_a_coordinator_refuses_a_rule_that_cannot_see_replies(tmp_path: Path) -> None:
    """Under secure aggregation and a privacy plan, whatever the configuration let pass."""
    folder = tmp_path / "coordinator"
    job = Job.of(4, 6)
    changed = {"aggregation_rule": rule("median")}
    job.config = job.config.model_copy(
        update={"federation": job.config.federation.model_copy(update=changed)}
    )
    job.write(folder)
    sites = PoisonedExchange(prepare(tmp_path / "nodes", planted_split(), rule("sum")), 0)
    with pytest.raises(ConfigError, match=r"secure aggregation shows their sum alone.*one user changes"):
        open_coordinator(folder, sites, devices=LocalCohorts(job, []).devices())


@pytest.mark.parametrize(
    ("privacy", "rounds", "message"),
    [
        ({"unit": "none", "aggregator": "secagg"}, {"clip_norm": 1.0}, "secure aggregation shows their sum"),
        (
            {"unit": "user", "aggregator": "sealed", "epsilon": 3.0},
            {},
            "does not bound what one user changes",
        ),
        ({"unit": "none", "aggregator": "sealed"}, {"nodes": 4}, "expected at least 5"),
        ({"unit": "none", "aggregator": "sealed"}, {"nodes": 10}, None),
        ({"unit": "none", "aggregator": "plain", "insecure": True}, {"nodes": 10}, None),
    ],
)
def test_a_configuration_says_what_a_rule_does_not_fit(
    privacy: dict[str, object], rounds: dict[str, object], message: str | None
) -> None:
    values = {
        "model": {"kind": "mf"},
        "privacy": privacy,
        "federation": {"aggregation_rule": "krum"} | rounds,
    }
    if message is None:
        config = parse_config(values)
        assert config.federation.aggregation_rule.kind == "krum" and not config.one_node_suffices
        return
    with pytest.raises(ConfigError, match=message):
        parse_config(values)
