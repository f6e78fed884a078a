"""The charge of a session: of one round, in the right distance to the last one, on disk or not made at all."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import ServiceError, StoreError, StoreFull
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.terms.participation import Book
from fedrec_client.terms.task_evaluation import Price
from fedrec_client.training import participations
from fedrec_client.training._charge import Charge, Job

NAME = "ab" * 16


def job(cycle: int | None = 2) -> Job:
    plan = {"unit": "user", "trust": "distributed"}
    return Job(NAME, {"cycle": cycle, "expires": 2e9, "node": {"privacy": {"plan": plan}}}, Price(1.5, 1e-6))


def charge(store: Any, cycle: int | None = 2, stopped: bool = False) -> Charge:
    return Charge(job(cycle), store, threading.RLock(), lambda: 1e9, lambda: stopped)


@given(st.integers(1, 5), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_rounds_of_one_device_keep_their_distance(cycle: int, rounds: list[int]) -> None:
    store, taken = MemoryStore(), list[int]()
    for round_ in rounds:
        made = charge(store, cycle)
        try:
            made.of_round(round_)
        except ServiceError:
            assert taken and round_ < taken[-1] + cycle
            continue
        assert not taken or round_ >= taken[-1] + cycle
        made()
        made.of_round(round_)  # the later questions of the same cohort
        taken.append(round_)
    known = participations.read(store, NAME)
    assert (known.count, known.last_round) == (len(taken), taken[-1])
    assert [entry["round"] for entry in Book(store).entries("charged")] == taken


def test_a_cohort_has_one_round() -> None:
    made = charge(MemoryStore())
    made.of_round(3)
    with pytest.raises(ServiceError, match="one cohort has one"):
        made.of_round(5)


def test_nothing_is_charged_after_a_stop_or_the_end() -> None:
    store = MemoryStore()
    with pytest.raises(ServiceError, match="stopped"):
        charge(store, stopped=True)()
    ended = charge(store)
    assert ended.end() is False
    with pytest.raises(ServiceError, match="stopped"):
        ended()
    assert not Book(store).entries() and not participations.read(store, NAME).count


def test_a_charge_that_cannot_be_kept_is_not_made() -> None:
    class Full(MemoryStore):
        def append(self, log: str, value: bytes) -> None:
            raise StoreFull("no room")

    store = Full()
    made = charge(store)
    made.of_round(1)
    with pytest.raises(StoreError, match="cannot be kept: no room"):
        made()
    assert made.end() is False
