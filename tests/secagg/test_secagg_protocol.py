"""Secure aggregation with whole cohorts: the sum is exact or there is none, and secrets do not outlive it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_helpers import STAGES, Cohort, context_of

import fedrec.secagg._keys as keys_module
import fedrec.secagg.client as client_module
import fedrec.secagg.server as server_module
from fedrec.core.errors import AggregationAborted
from fedrec.secagg.client import Client
from fedrec.secagg.messages import Arrays
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.state import ClientState

Drops = Mapping[str, Collection[int]]


def check_exact(cohort: Cohort, drops: Drops | None = None, **options: Any) -> None:
    total = cohort.run(drops, **options)
    np.testing.assert_array_equal(total, cohort.expected())


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("n", [3, 10, 50, 100])
def test_the_sum_is_exact(n: int, bits: int) -> None:
    cohort = Cohort.of(n, 33, bits=bits)
    check_exact(cohort)
    assert cohort.server.survivors == tuple(range(n)) and not cohort.refused


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("n", [10, 50, 100])
def test_a_drop_at_any_stage_leaves_an_exact_sum(n: int, stage: str) -> None:
    gone = {1, n // 2}
    cohort = Cohort.of(n, 9)
    check_exact(cohort, {stage: gone})
    late = stage in ("confirm", "unmask")
    assert set(cohort.server.survivors) == set(range(n)) - (set() if late else gone)


@pytest.mark.parametrize("two", list(itertools.combinations(STAGES, 2)))
def test_drops_at_two_stages_leave_an_exact_sum(two: tuple[str, str]) -> None:
    cohort = Cohort.of(12, 9, bits=16)
    check_exact(cohort, {two[0]: {0, 5}, two[1]: {7, 11}})


def test_drops_at_every_stage_of_three_hundred_on_a_sparse_graph() -> None:
    cohort = Cohort.of(300, 5, neighbours=60)
    drops = {
        "advertise": range(5),
        "share": range(5, 10),
        "mask": range(10, 30),
        "confirm": {40},
        "unmask": {41},
    }
    check_exact(cohort, drops)
    assert cohort.server.survivors == tuple(range(30, 300))
    assert cohort.sent["share"][100]["shares"].shape[0] == 60


@pytest.mark.parametrize("stage", STAGES[:4])
def test_three_devices_cannot_spare_one_before_the_sum_is_agreed(stage: str) -> None:
    cohort = Cohort.of(3)
    if stage == "confirm":
        check_exact(cohort, {stage: {2}})
        return
    with pytest.raises(AggregationAborted) as aborted:
        cohort.run({stage: {2}})
    assert not aborted.value.revealed


def test_three_devices_can_spare_one_at_the_end() -> None:
    check_exact(Cohort.of(3), {"unmask": {0}})


def test_too_few_opened_shares_abort_and_say_that_shares_were_given_away() -> None:
    cohort = Cohort.of(9)
    with pytest.raises(AggregationAborted) as aborted:
        cohort.run({"unmask": range(4)})
    assert aborted.value.revealed


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_or_aborted_and_never_wrong(data: st.DataObject) -> None:
    """Whoever drops out or answers nonsense, wherever."""
    n = data.draw(st.integers(3, 14), label="n")
    neighbours = data.draw(st.one_of(st.none(), st.integers(2, n)), label="k")
    fraction = data.draw(st.sampled_from([0.51, 2 / 3, 0.9]), label="t")
    bits = data.draw(st.sampled_from([16, 32]), label="bits")
    cohort = Cohort.of(
        n, data.draw(st.integers(1, 40)), neighbours=neighbours, threshold=fraction, bits=bits,
        schedule=Schedule(guarded=()),
    )  # fmt: skip
    some = st.sets(st.integers(0, n - 1), max_size=max(1, n // 3))
    drops = {stage: data.draw(some, label=stage) for stage in STAGES}
    liars = data.draw(st.dictionaries(st.sampled_from(STAGES), some, max_size=2), label="liars")

    def meddle(stage: str, place: int, reply: Arrays) -> Arrays:
        if stage == "mask" or place not in liars.get(stage, ()):
            return reply
        changed = {name: values.copy() for name, values in reply.items()}
        for values in changed.values():
            values.reshape(-1)[data.draw(st.integers(0, values.size - 1))] ^= 1
        return changed

    try:
        total = cohort.run(drops, meddle)
    except AggregationAborted:
        return
    np.testing.assert_array_equal(total, cohort.expected())


def test_every_step_may_be_taken_in_a_process_of_its_own() -> None:
    first = Cohort.of(6, 12)
    here, there = (
        Cohort(first.terms, first.identities, first.vectors, first.context) for _ in ("here", "there")
    )
    for cohort in (here, there):
        for place, identity in enumerate(cohort.identities):
            cohort.clients[place] = Client.begin(cohort.terms, identity, cohort.context, counting(place))
    answer = there.answer

    def apart(stage: str, place: int, request: Arrays) -> Arrays | None:
        reply = answer(stage, place, request)
        client = there.clients[place]
        # The generator is the same object in both: what is drawn later goes on where it was.
        there.clients[place] = Client(
            there.terms, there.identities[place], ClientState.load(client.state.dump()), client._random
        )
        return reply

    there.answer = apart  # type: ignore[method-assign]
    for cohort in (here, there):
        check_exact(cohort, {"mask": {2}})
    for stage in STAGES:
        for place, reply in there.sent[stage].items():
            for name, values in reply.items():
                np.testing.assert_array_equal(values, here.sent[stage][place][name])


def test_the_same_question_gets_the_same_bytes() -> None:
    cohort = Cohort.of(4)
    answer, seen = cohort.answer, []

    def twice(stage: str, place: int, request: Arrays) -> Any:
        one, other = answer(stage, place, request), answer(stage, place, request)
        seen.append((one, other))
        return one

    cohort.answer = twice  # type: ignore[method-assign]
    check_exact(cohort)
    for one, other in seen:
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_no_secret_is_left_when_an_attempt_is_over() -> None:
    cohort = Cohort.of(5)
    before = {i: json.loads(c.state.dump()) for i, c in cohort.clients.items()}
    check_exact(cohort)
    for place, client in cohort.clients.items():
        left = client.state.dump().decode()
        assert client.state.wiped and not client.state.held and not client.state.incoming
        assert not any(before[place][name] in left for name in ("c_key", "s_key", "seed"))


def test_what_a_step_does_not_need_any_more_is_gone_after_the_step_before() -> None:
    cohort = Cohort.of(4)
    requests: Any = {place: {} for place in cohort.clients}
    steps = (cohort.server.adverts, cohort.server.shares, cohort.server.masked)
    for stage, step in zip(STAGES, steps, strict=False):
        requests = step(cohort.replies(stage, requests, (), None))
        states = [client.state for client in cohort.clients.values()]
        assert all(bool(state.c_key) == (stage == "advertise") for state in states)
        assert all(bool(state.seed) == (stage != "mask") for state in states)
        assert all(bool(state.s_key) == (stage != "mask") for state in states)


def test_no_key_is_ever_used_twice_in_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of masks and keys of ciphertexts over many rounds and attempts with the same devices."""
    streams: list[bytes] = []
    boxes: list[bytes] = []
    add_masks, seal = client_module.add_masks, client_module.seal

    def noted(total: Any, masks: Any) -> None:
        streams.extend(key for key, _ in masks)
        add_masks(total, masks)

    def sealed(key: bytes, plaintext: bytes, bound: bytes) -> bytes:
        boxes.append(key)
        return seal(key, plaintext, bound)

    monkeypatch.setattr(client_module, "add_masks", noted)
    monkeypatch.setattr(client_module, "seal", sealed)
    first = Cohort.of(5, 4)
    for attempt in range(1, 31):
        context = context_of(first.terms, 4, attempt=attempt, round=attempt // 3)
        check_exact(Cohort(first.terms, first.identities, first.vectors, context))
    # A pair's stream is made at both its ends; each device's own at one.
    pairs, own = 30 * 10, 30 * 5
    assert len(streams) == 2 * pairs + own and len(set(streams)) == pairs + own
    assert len(boxes) == len(set(boxes)) == 30 * 20
    assert not set(streams) & set(boxes)
    assert server_module.add_masks is add_masks and keys_module.seal is seal


@pytest.mark.parametrize("bits", [16, 32])
def test_values_at_the_edges_of_the_modulus_wrap_as_integers_do(bits: int) -> None:
    cohort = Cohort.of(4, 6, bits=bits)
    edges = np.array([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**bits - 2], dtype=np.uint64)
    cohort.vectors = np.tile(edges.astype(cohort.vectors.dtype), (4, 1))
    np.testing.assert_array_equal(cohort.run(), (4 * edges % 2**bits).astype(cohort.vectors.dtype))


def counting(place: int) -> Callable[[int], bytes]:
    """Secrets that can be drawn again."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_256(f"{place} {next(numbers)}".encode()).digest(size)


def test_what_is_opened_depends_on_the_sum_alone() -> None:
    """Two sets of vectors with one sum, the same secrets: all that the server is told besides them is the same."""
    one = Cohort.of(5, 8)
    other = Cohort(one.terms, one.identities, one.vectors.copy(), one.context)
    other.vectors[0] += np.uint32(77)
    other.vectors[1] -= np.uint32(77)
    for cohort in (one, other):
        for place in range(5):
            cohort.clients[place] = Client.begin(
                cohort.terms, cohort.identities[place], cohort.context, counting(place)
            )
    np.testing.assert_array_equal(one.run(), other.run())
    for stage in ("advertise", "share", "confirm", "unmask"):
        for place, reply in one.sent[stage].items():
            for name, values in reply.items():
                np.testing.assert_array_equal(values, other.sent[stage][place][name])
    assert not np.array_equal(one.sent["mask"][0]["masked"], other.sent["mask"][0]["masked"])
