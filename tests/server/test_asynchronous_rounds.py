"""Rounds that overlap: staleness, weights, drops, and that the order of completion decides everything."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_helpers import EASE, MF, LocalOffers, Operator, in_thread, model_digest, specification

from fedrec.core.errors import ConfigError
from fedrec.core.updates import UpdateSum
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.work import Worker
from fedrec_server.rounds.asynchronous import weighted


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator.make(tmp_path)


class Order(LocalOffers):
    """Rounds are opened in this order, whatever they are at work on meanwhile."""

    def __init__(self, order: list[int], job: Job) -> None:
        super().__init__(fate=self._fate, others=True)
        self._order, self._job, self._changed = order, job, threading.Condition()

    def _fate(self, kind: str, round_: int, user: int) -> bool:
        if kind != "unmask":
            return True
        mine = self._order.index(round_)
        with self._changed:
            while len(rounds_of(self._job.run(1))) < mine:
                self._changed.wait(0.02)
        return True


def run(operator: Operator, order: list[int], staleness: int) -> tuple[Job, list[dict[str, Any]]]:
    job = operator.job(specification(MF, staleness=staleness))
    found: list[str] = []
    thread = in_thread(lambda: found.append(Worker(job, Order(order, job)).work()))
    thread.join(60)
    assert found == ["published"]
    return job, rounds_of(job.run(1))


def test_a_sum_that_is_too_old_is_dropped_and_counts(operator: Operator) -> None:
    job, rounds = run(operator, [2, 3, 1, 4, 5, 6], 1)
    assert [each["round"] for each in rounds] == [2, 3, 1, 4, 5, 6]
    assert [each["staleness"] for each in rounds] == [0, 0, 2, 1, 1, 1]
    assert [each["applied"] for each in rounds] == [True, True, False, True, True, True]
    assert not list((job.run(1) / "coordinator" / "flights").glob("*"))
    told = json.loads((job.run(1) / "privacy.json").read_text())["released"]
    assert told["staleness"] == 1 and "Up to 2 cohorts" in told["text"][-1]


def test_the_order_of_completion_decides_the_model(operator: Operator) -> None:
    first, _ = run(operator, [2, 1, 3, 4, 6, 5], 1)
    again, _ = run(operator, [2, 1, 3, 4, 6, 5], 1)
    other, _ = run(operator, [1, 2, 3, 4, 5, 6], 1)
    assert model_digest(first) == model_digest(again) != model_digest(other)


@given(st.integers(0, 50), st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_a_sum_weighs_less_with_its_age(staleness: int, values: list[float]) -> None:
    total = UpdateSum({"a": np.array(values)}, users=4, noise_std=2.0)
    found = weighted(total, staleness)
    assert np.allclose(found.blocks["a"] * np.sqrt(1.0 + staleness), values)
    assert found.noise_std == pytest.approx(2.0 / np.sqrt(1.0 + staleness)) and found.users == 4
    assert total.blocks["a"].tolist() == values
    if staleness == 0:
        assert found.blocks["a"].tolist() == values


def test_a_round_that_fails_is_made_again_and_costs_no_other(operator: Operator) -> None:
    failed: list[int] = []

    def fate(kind: str, round_: int, user: int) -> bool:
        if kind == "share" and round_ in (2, 5) and failed.count(round_) < 4:
            failed.append(round_)
            return False
        return True

    job = operator.job(specification(MF, staleness=2))
    assert Worker(job, LocalOffers(fate=fate, others=True)).work() == "published"
    assert sorted(each["round"] for each in rounds_of(job.run(1))) == [1, 2, 3, 4, 5, 6]
    assert failed == [2] * 4 + [5] * 4 or sorted(failed) == [2] * 4 + [5] * 4


def test_a_pause_lets_go_of_all_cohorts_and_no_round_counts_twice(operator: Operator) -> None:
    job, asked, held = operator.job(specification(MF, staleness=2)), threading.Event(), threading.Event()

    def fate(kind: str, round_: int, user: int) -> bool:
        if kind == "train" and round_ >= 3:
            asked.set()
            held.wait(60)
        return True

    world, found = LocalOffers(fate=fate, others=True), []
    thread = in_thread(lambda: found.append(Worker(job, world).work()))
    assert asked.wait(60)
    job.pause()
    thread.join(30)
    held.set()
    assert found == ["paused"]
    job.resume()
    assert Worker(job, LocalOffers(others=True)).work() == "published"
    assert sorted(each["round"] for each in rounds_of(job.run(1))) == [1, 2, 3, 4, 5, 6]


def test_a_model_that_needs_its_rounds_in_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="one after the other"):
        specification(EASE, staleness=1)
