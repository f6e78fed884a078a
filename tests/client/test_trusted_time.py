"""Clocks that can be set at will: put back, they revive nothing; once ahead, they do not outlive a later word."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import opened

from fedrec.wire.repository import Lifetimes
from fedrec_client import Client, Consent, MemoryStore, Policy, Retention
from fedrec_client.store import Store
from fedrec_client.store.events import Event, EventType
from fedrec_client.store.timeline import Timeline, in_order
from fedrec_client.store.training_profile import Profile
from fedrec_client.store.trusted_time import MAX_AHEAD_SECONDS, STEP_SECONDS, Times, TrustedTime
from fedrec_client.terms.participation import CLOCK, Book
from fedrec_client.testing import DAY, NOW, FakePlatform, FakeService, make_client

YEAR = 365 * DAY
PERIOD = Policy().period_seconds


def charged(store: Store, clock: float, signed: float = NOW) -> Book:
    """A book with the whole budget of a period, spent right after a signature."""
    TrustedTime(store).accept(signed)
    book = Book(store)
    book.note("charged", clock, epsilon=4.0, delta=1e-6)
    return book


def spent(book: Book, now: float) -> bool:
    return any("of this period" in reason for reason in Policy().exhausted(book, now))


# The budget of a period ----------------------------------------------------------------------------------


def test_a_clock_set_ahead_frees_no_budget() -> None:
    book = Book(MemoryStore())
    book.note("charged", NOW, epsilon=4.0, delta=1e-6)
    for clock in (NOW + DAY, NOW + 31 * DAY, NOW + 100 * YEAR, NOW - YEAR):
        assert spent(book, clock), "no signature has come: nothing tells that a period has passed"
    book = charged(MemoryStore(), NOW)
    for clock in (NOW + DAY, NOW + 31 * DAY, NOW + 100 * YEAR, NOW - YEAR):
        assert spent(book, clock)
        assert book.spent_within(PERIOD, clock).epsilon == 4.0


def test_a_period_is_over_when_clock_and_signatures_say_so() -> None:
    store = MemoryStore()
    book = charged(store, NOW + 3600)
    TrustedTime(store).accept(NOW + 31 * DAY)
    assert spent(book, NOW + 29 * DAY), "the clock does not say so"
    assert not spent(book, NOW + 31 * DAY) and book.spent_within(PERIOD, NOW + 31 * DAY).epsilon == 0
    assert book.spent().epsilon == 4.0
    book.note("charged", NOW + 31 * DAY, epsilon=4.0, delta=1e-6)
    assert spent(book, NOW + 31 * DAY) and spent(book, NOW - YEAR) and spent(book, NOW + YEAR)


def test_a_clock_put_back_before_a_charge_does_not_make_it_old() -> None:
    store = MemoryStore()
    book = charged(store, NOW - 31 * DAY)
    assert spent(book, NOW) and spent(book, NOW + 29 * DAY)
    assert book.last_time == NOW


def test_a_clock_put_back_after_a_charge_does_not_make_it_old() -> None:
    """The book notes the clock, and believes it no further back than the signature before the charge."""
    store = MemoryStore()
    book = charged(store, NOW + 20 * DAY, signed=NOW + 20 * DAY)
    book.correct(NOW - 20 * DAY)
    assert book.entries(CLOCK) and book.last_time == NOW + 20 * DAY
    TrustedTime(store).accept(NOW + 49 * DAY)
    assert spent(book, NOW + 49 * DAY)
    TrustedTime(store).accept(NOW + 51 * DAY)
    assert not spent(book, NOW + 51 * DAY)


def test_a_charge_under_a_clock_that_was_ahead_is_not_kept_for_years(tmp_path: Path) -> None:
    platform, service, store = FakePlatform(), FakeService("test"), MemoryStore()
    service.publish()
    with make_client(tmp_path, service, platform, store) as client:
        client.check_for_update()
        platform.clock = NOW + 10 * YEAR
        Book(store).note("charged", platform.clock, epsilon=4.0, delta=1e-6)
        assert spent(Book(store), platform.clock)
    platform.clock = NOW + 2 * DAY
    with make_client(tmp_path, service, platform, store) as client:
        assert Book(store).last_time == NOW + 2 * DAY, "the device may take part again a day later"
        assert spent(Book(store), platform.clock)
        platform.clock = NOW + 33 * DAY
        assert spent(Book(store), platform.clock)
        service.publish(clock=platform.clock)
        client.check_for_update()
        assert not spent(Book(store), platform.clock)


def test_the_dates_of_charges_survive_a_deletion(tmp_path: Path) -> None:
    store = MemoryStore()
    charged(store, NOW)
    with make_client(tmp_path, None, FakePlatform(NOW + 5 * DAY), store) as client:
        client.delete_data()
        assert spent(Book(store), NOW + 29 * DAY) and spent(Book(store), NOW + YEAR)
        TrustedTime(store).accept(NOW + 31 * DAY)
        assert not spent(Book(store), NOW + 31 * DAY)


clocks = st.integers(-40, 40).map(lambda day: NOW + day * DAY)


@given(st.lists(clocks, max_size=6), st.lists(clocks, max_size=6), clocks)
def test_no_clock_frees_a_charge_before_a_period_has_been_signed(
    before: list[float], after: list[float], charge: float
) -> None:
    """Any clocks at all, under signatures that are true: a day before the charge, and less than a period after it."""
    store = MemoryStore()
    time = TrustedTime(store)
    time.accept(NOW - DAY)
    book = Book(store)
    for clock in before:
        time.step(clock)
        book.correct(clock)
    book.note("charged", charge, epsilon=4.0, delta=0.0)
    time.accept(NOW - DAY + PERIOD - 1)
    for clock in after:
        time.step(clock)
        book.correct(clock)
        assert spent(book, clock)


@given(st.lists(clocks, max_size=6), clocks)
def test_no_clock_keeps_a_charge_once_all_agree(wrong: list[float], charge: float) -> None:
    """Whatever the clock was: once it is right again and a period was signed after that, the charge is over."""
    store = MemoryStore()
    book = Book(store)
    for clock in wrong:
        book.correct(clock)
    book.note("charged", charge, epsilon=4.0, delta=0.0)
    book.correct(NOW)
    later = NOW + PERIOD + DAY
    TrustedTime(store).accept(later)
    assert not spent(book, later)


# What has expired ----------------------------------------------------------------------------------------


def test_a_model_that_has_expired_is_not_revived_by_a_clock_put_back(tmp_path: Path) -> None:
    platform, service, store = (
        FakePlatform(),
        FakeService("test", lifetimes=Lifetimes(models=5)),
        MemoryStore(),
    )
    service.publish()
    client = make_client(tmp_path, service, platform, store)
    client.check_for_update()
    assert client.status().model_state == "good"
    platform.clock = NOW + 6 * DAY
    client = make_client(tmp_path, service, platform, store)
    assert client.status().model_state == "expired"
    for back in (1, 100, 4000):
        platform.clock = NOW - back * DAY
        client = make_client(tmp_path, service, platform, store)
        assert client.status().model_state == "expired" and "model" in client.eligible().codes
    platform.clock = NOW + 7 * DAY
    service.publish(clock=platform.clock)
    client.check_for_update()
    assert client.status().model_state == "good"


def test_a_clock_that_was_ahead_once_locks_no_device_out(tmp_path: Path) -> None:
    platform, service, store = (
        FakePlatform(),
        FakeService("test", lifetimes=Lifetimes(models=30)),
        MemoryStore(),
    )
    service.publish()
    make_client(tmp_path, service, platform, store).check_for_update()
    platform.clock = NOW + 10 * YEAR
    assert make_client(tmp_path, service, platform, store).status().model_state == "expired"
    platform.clock = NOW + DAY
    client = make_client(tmp_path, service, platform, store)
    assert client.status().model_state == "good"
    service.publish(clock=platform.clock)
    assert client.check_for_update() is not None and client.status().model_state == "good"


@given(
    st.lists(st.tuples(st.sampled_from(["accept", "step"]), st.floats(-1e10, 1e10)), max_size=12),
    st.floats(-1e10, 1e10),
)
def test_the_floor_never_falls_and_is_never_far_ahead_of_signatures(
    script: list[tuple[str, float]], clock: float
) -> None:
    times = Times()
    for what, value in script:
        after = times.accept(value) if what == "accept" else times.step(value)
        assert after.floor >= times.floor and after.signed >= times.signed
        assert after.floor <= max(times.floor, after.signed) + STEP_SECONDS
        assert after.floor <= after.signed + MAX_AHEAD_SECONDS
        times = after
    store = MemoryStore()
    assert TrustedTime(store).now(clock) == clock
    assert times.floor == -math.inf or times.floor >= times.signed


def test_time_that_passes_while_the_app_is_open_is_not_hurried_by_its_clock(tmp_path: Path) -> None:
    """An app that asks for updates all day, under a clock that is ahead: retention does not run away."""
    platform, service, store = FakePlatform(), FakeService("test"), MemoryStore()
    service.publish()
    client = make_client(tmp_path, service, platform, store, retention=Retention(30 * DAY, None))
    client.log_event("like", item="film-1")
    platform.clock = NOW + 25 * DAY
    service.publish(clock=platform.clock)
    for _ in range(20):
        client.check_for_update()
    assert len(client.events()) == 1
    assert TrustedTime(store).times.believed <= NOW + STEP_SECONDS


# Words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [NOW + 10 * YEAR, NOW - 10 * YEAR])
def test_the_last_word_on_consent_counts_whatever_the_clock_said(tmp_path: Path, first: float) -> None:
    platform = FakePlatform(first)
    opening = {"population": "a", "trust": FakeService("a").trust, "platform": platform}
    with Client.open(tmp_path, **opening) as client:
        client.set_consent(Consent(train=True))
        platform.clock = NOW
        client.set_consent(Consent(train=False))
    for clock in (NOW, first, NOW + 20 * YEAR):
        platform.clock = clock
        with Client.open(tmp_path, **opening) as client:
            assert not client.consent.train
    with Client.open(tmp_path, **opening) as client:
        platform.clock = NOW - YEAR
        client.set_consent(Consent(train=True))
        assert client.consent.train
        assert [word["train"] for word in client.privacy_report().consent_history] == [True, False, True]


@pytest.mark.parametrize("first", [NOW + 10 * YEAR, NOW, NOW - 10 * YEAR])
@pytest.mark.parametrize("second", [NOW + 10 * YEAR, NOW, NOW - 10 * YEAR])
def test_the_last_word_on_an_item_counts_whatever_the_clock_said(
    tmp_path: Path, first: float, second: float
) -> None:
    platform, service, store = FakePlatform(first), FakeService("test"), MemoryStore()
    every_age = {"retention": Retention(None, None)}
    with make_client(tmp_path, service, platform, store, **every_age) as client:
        client.log_event("hide", item="film-1")
        platform.clock = second
        client.log_event("like", item="film-1")
        assert client._state.profile.liked == ("film-1",)
    for clock in (NOW, first, second):
        platform.clock = clock
        with make_client(tmp_path, service, platform, store, **every_age) as client:
            assert client._state.profile.liked[-1] == "film-1" and not client._state.profile.against
            client.log_event("like", item="film-2", time=NOW - 30 * YEAR)  # told late: read anew
            assert client._state.profile.liked[-1] == "film-1"


words = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.floats(NOW - YEAR, NOW + YEAR)), min_size=1, max_size=12
)


@given(words, st.floats(NOW - YEAR, NOW + YEAR))
def test_stamped_words_follow_each_other_as_they_were_told(
    told: list[tuple[int, bool, float]], now: float
) -> None:
    events = [
        Event(EventType.LIKE if likes else EventType.HIDE, str(item), time, stamped=True)
        for item, likes, time in told
    ]
    profile = Profile(event for _, event in in_order(events, now))
    last = {item: likes for item, likes, _ in told}
    assert {*profile.liked} == {str(item) for item, likes in last.items() if likes}
    assert profile.against == {str(item) for item, likes in last.items() if not likes}


def test_an_event_of_a_clock_that_was_ahead_expires_with_those_around_it() -> None:
    ahead = Event(EventType.LIKE, "a", NOW + 10 * YEAR, id="ahead", stamped=True)
    after = Event(EventType.LIKE, "b", NOW, id="after", stamped=True)
    timeline = Timeline.of([ahead, after])
    assert timeline.expired(Retention(DAY, None), NOW) == []
    assert {*timeline.expired(Retention(DAY, None), NOW + 2 * DAY)} == {"ahead", "after"}
    newest = Event(EventType.LIKE, "c", NOW + DAY, id="newest", stamped=True)
    assert Timeline.of([ahead, after, newest]).expired(Retention(None, 1), NOW + DAY) == ["ahead", "after"]


def test_an_event_is_not_stamped_earlier_than_what_is_known_to_have_passed(tmp_path: Path) -> None:
    platform, service, store = FakePlatform(), FakeService("test"), MemoryStore()
    service.publish()
    make_client(tmp_path, service, platform, store).check_for_update()
    platform.clock = 0.0  # a device without a battery for its clock
    client = make_client(tmp_path, service, platform, store)
    client.log_event("like", item="film-1")
    platform.clock = NOW + DAY
    client = make_client(tmp_path, service, platform, store)
    assert [event.time for event in client.events()] == [NOW]


def test_stamps_outlive_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    event = Event(EventType.LIKE, "a", NOW, id="a", stamped=True)
    store.add_event(event)
    store.close()
    store = opened(tmp_path)
    assert store.arrivals() == [event]
    store.close()
    shutil.rmtree(tmp_path)
