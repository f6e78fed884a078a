"""Counters: what a year of them costs, what a retry costs, and how far one liar moves a sum."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_helpers import Place, limits
from wire_helpers import POPULATION

from fedrec.core.errors import ServerBusy, ServiceError
from fedrec.wire.counters import DAYS_TRIED, EPSILON, GREATEST, LEAST, MOST, NAMES, SCALE, bounded
from fedrec.wire.repository import Lifetimes
from fedrec_client import Client, Consent
from fedrec_client.app._metrics import noised
from fedrec_client.store._vault import FileVault
from fedrec_client.store.sqlite import SqliteStore
from fedrec_client.terms.metrics_budget import PENDING, exhausted, spent
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import Policy
from fedrec_client.testing import DAY, NOW, FakePlatform, FakeService, make_client, store_of
from fedrec_server.service._metric_sums import MetricSums
from fedrec_server.service._quotas import DailyQuota, SeenTokens

NOON = NOW - NOW % DAY + DAY // 2
POLICY = Policy()
LIFETIME = POLICY.max_metrics_epsilon_lifetime


@pytest.fixture
def service() -> Iterator[FakeService]:
    made = FakeService(lifetimes=Lifetimes(*[1e5] * 5))  # what is signed outlives every test here
    yield made
    made.end()


def make(folder: Path, service: FakeService, platform: FakePlatform, **settings: object) -> Client:
    client = make_client(folder, service, platform, **settings)
    client.set_consent(Consent(metrics=True))
    return client


def live(client: Client, platform: FakePlatform, days: int) -> None:
    """Some use every day, and a check for an update."""
    for _ in range(days):
        platform.pass_time(DAY)
        client.log_event("impression", item="film-1")
        client.check_for_update()


# On the device.


def test_no_report_leaves_beyond_the_budget_of_a_lifetime(tmp_path: Path, service: FakeService) -> None:
    platform = FakePlatform(NOON)
    client = make(tmp_path, service, platform)
    most_in_a_period = 0
    for _ in range(6):
        before = len(service.metrics)
        live(client, platform, 30)
        most_in_a_period = max(most_in_a_period, len(service.metrics) - before)
    report = client.privacy_report()
    assert len(service.metrics) * EPSILON == report.metrics_epsilon == LIFETIME
    assert most_in_a_period * EPSILON <= POLICY.max_metrics_epsilon_period
    assert f"{LIFETIME:g} of {LIFETIME:g} for life" in report.as_text()


def test_an_observer_who_links_all_reports_learns_no_more_than_the_budget(
    tmp_path: Path, service: FakeService
) -> None:
    """Two users, one at the maximum every day and one without use: no number of days tells them apart for sure."""
    sums = []
    for user in (0, 1):
        platform = FakePlatform(NOON)
        client = make(tmp_path / str(user), service, platform)
        for day in range(150):  # the budget of a lifetime is spent by then
            platform.pass_time(DAY)
            use = 0 if exhausted(Book(store_of(client)), POLICY, platform.clock) else MOST * user
            for k in range(use):
                client.log_event("impression", item=f"film-{k}", event_id=f"{day}-{k}")
            client.check_for_update()
        reports = service.metrics
        service.metrics = []
        assert len(reports) <= LIFETIME / EPSILON
        sums.append(np.mean([each["impressions"] for each in reports]))
    # Of so many reports the mean has this standard error; a year of them would have had a fifth of it.
    error = SCALE * math.sqrt(2) / math.sqrt(LIFETIME / EPSILON)
    assert error >= MOST and abs(sums[0]) < 7 * error and abs(sums[1] - MOST) < 7 * error


def test_what_is_sent_again_is_the_same_report_and_is_charged_once(
    tmp_path: Path, service: FakeService
) -> None:
    platform = FakePlatform(NOON)
    client = make(tmp_path, service, platform)
    took: list[tuple[str, dict[str, float]]] = []
    true_send = service.send_metrics

    def cut(population: str, version: int, counters: dict[str, float], token: str) -> None:
        took.append((token, dict(counters)))
        if len(took) == 2:
            true_send(population, version, counters, token)  # it counted, but the answer is lost
        if len(took) < 4:
            raise ServiceError("cut")
        true_send(population, version, counters, token)

    service.send_metrics = cut  # type: ignore[method-assign, assignment]
    for _ in range(4):
        client.check_for_update()
        assert client.privacy_report().metrics_epsilon == EPSILON
        platform.pass_time(DAY)
    assert len(took) == 4 and all(each == took[0] for each in took) and len(service.metrics) == 1
    client.check_for_update()
    assert client.privacy_report().metrics_epsilon == 2 * EPSILON and took[4] != took[0]


def test_a_report_is_charged_on_disk_before_it_leaves(tmp_path: Path, service: FakeService) -> None:
    FileVault.create(tmp_path)
    seen: list[float] = []

    def look(*_: object) -> None:
        client.close()  # as a kill would: what is on disk now is all there is
        with make_client(tmp_path, service, FakePlatform(NOON), store=SqliteStore.open(tmp_path)) as other:
            seen.append(other.privacy_report().metrics_epsilon)
            assert store_of(other).get(PENDING) is not None
        raise ServiceError("killed")

    service.send_metrics = look  # type: ignore[method-assign]
    client = make(tmp_path, service, FakePlatform(NOON), store=SqliteStore.open(tmp_path))
    client.check_for_update()
    assert seen == [EPSILON]


def test_a_report_that_is_never_taken_is_given_up_and_stays_charged(
    tmp_path: Path, service: FakeService
) -> None:
    platform = FakePlatform(NOON)
    client = make(tmp_path, service, platform)
    tokens: list[str] = []

    def busy(_p: str, _v: int, _c: object, token: str) -> None:
        tokens.append(token)
        raise ServerBusy("enough", (60.0, 120.0))

    service.send_metrics = busy  # type: ignore[method-assign, assignment]
    for _ in range(2 * (DAYS_TRIED + 1)):
        client.check_for_update()
        platform.pass_time(DAY)
    assert sorted(Counter(tokens).values()) == [DAYS_TRIED + 1] * 2
    assert client.privacy_report().metrics_epsilon == 2 * EPSILON


def test_withdrawing_drops_what_waits_and_deleting_does_not_refill_the_budget(
    tmp_path: Path, service: FakeService
) -> None:
    FileVault.create(tmp_path)
    platform = FakePlatform(NOON)
    client = make(tmp_path, service, platform, store=SqliteStore.open(tmp_path))
    service.send_metrics = lambda *_: (_ for _ in ()).throw(ServiceError("cut"))  # type: ignore[method-assign]
    client.check_for_update()
    assert store_of(client).get(PENDING) is not None
    client.set_consent(Consent())
    assert store_of(client).get(PENDING) is None
    for _ in range(3):
        receipt = client.delete_data()
        assert client.privacy_report().metrics_epsilon == EPSILON
        assert any("budget" in each for each in receipt.remaining)
    client.close()


def test_deleting_some_events_drops_a_report_that_was_made_of_them(
    tmp_path: Path, service: FakeService
) -> None:
    client = make(tmp_path, service, FakePlatform(NOON))
    service.send_metrics = lambda *_: (_ for _ in ()).throw(ServiceError("cut"))  # type: ignore[method-assign]
    client.check_for_update()
    assert store_of(client).get(PENDING) is not None
    client.delete_data(since=NOON - 2 * DAY)
    assert store_of(client).get(PENDING) is None and client.privacy_report().metrics_epsilon == EPSILON


def test_a_damaged_book_allows_no_report(tmp_path: Path, service: FakeService) -> None:
    client = make(tmp_path, service, FakePlatform(NOON))
    store_of(client).append("repairs", json.dumps({"id": "a", "lost": {"records": 0, "entries": 1}}).encode())
    client.check_for_update()
    assert service.metrics == [] and spent(Book(store_of(client))) == math.inf
    assert "unknown" in client.privacy_report().as_text()


def test_a_clock_that_runs_ahead_spends_the_budget_no_further(tmp_path: Path, service: FakeService) -> None:
    platform = FakePlatform(NOON)
    client = make(tmp_path, service, platform)
    for step in range(200):
        platform.clock = NOON + (step % 7) * 31 * DAY * step
        client.check_for_update()
    assert len(service.metrics) * EPSILON <= LIFETIME


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(-(10**9), 10**9), min_size=1))
def test_no_report_exceeds_its_bounds_whatever_was_counted(counts: dict[str, int]) -> None:
    assert all(LEAST <= value <= GREATEST for value in noised(counts).values())
    assert all(LEAST <= value <= GREATEST for value in noised(counts, 1e-4).values())


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_value_counts_within_the_bounds_or_not_at_all(value: float) -> None:
    if math.isfinite(value):
        assert LEAST <= bounded(value) <= GREATEST
        assert bounded(value) == value or not LEAST < value < GREATEST
    else:
        with pytest.raises(ValueError, match="finite"):
            bounded(value)


def test_the_second_cut_hardly_ever_touches_an_honest_value() -> None:
    """P(|noise| > t) = 2 p^(t+1) / (1 + p), and the bias of the cut, from the same distribution."""
    decay = math.exp(-1 / SCALE)
    noise = np.arange(-20_000, 20_001)
    mass = (1 - decay) / (1 + decay) * decay ** np.abs(noise)
    for count in (0, MOST):
        cut = np.clip(count + noise, LEAST, GREATEST)
        assert mass[cut != count + noise].sum() < 0.006
        assert abs((mass * (cut - count)).sum()) < 0.03


# At the service.


@given(
    st.lists(
        st.dictionaries(st.sampled_from([*NAMES, "other"]), st.floats(allow_nan=True), max_size=4),
        max_size=30,
    )
)
def test_a_report_moves_a_sum_by_no_more_than_an_honest_one_can(
    tmp_path_factory: pytest.TempPathFactory, reports: list[dict[str, float]]
) -> None:
    sums = MetricSums(tmp_path_factory.mktemp("sums"))
    counted = sum(sums.add(1, each) for each in reports)
    for of_day in sums._sums.values():
        for total, number in of_day["1"].values():
            assert number <= counted and number * LEAST <= total <= number * GREATEST


def test_one_liar_moves_a_sum_by_one_days_maximum(tmp_path: Path) -> None:
    """Many reports, fresh tokens, one address and one app, over real sockets; another address counts as well."""
    place = Place.make(tmp_path)
    with place.start(limits()) as running:
        liar = place.connect(running)
        for k in range(30):
            try:
                liar.send_metrics(POPULATION, 1, dict.fromkeys(NAMES, 1e12), f"{k:032x}")
            except ServerBusy:
                assert k
        liar.close()
    (of_day,) = json.loads((place.registry.folder / "metrics.json").read_text()).values()
    assert of_day == {"1": {name: [GREATEST, 1] for name in NAMES}}


def test_the_same_report_again_is_counted_once_and_answered(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with place.start(limits(reports_per_address=5)) as running:
        transport = place.connect(running)
        for _ in range(4):
            transport.send_metrics(POPULATION, 1, {"clicks": 3.0}, "ab" * 16)
        for k in range(4):
            transport.send_metrics(POPULATION, 1, {"clicks": 1.0}, f"{k:032x}")
        with pytest.raises(ServerBusy, match="enough"):
            transport.send_metrics(POPULATION, 1, {"clicks": 1.0}, "cd" * 16)
        transport.send_metrics(POPULATION, 1, {"clicks": 3.0}, "ab" * 16)
        transport.close()
    (of_day,) = json.loads((place.registry.folder / "metrics.json").read_text()).values()
    assert of_day == {"1": {"clicks": [7.0, 5]}}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-2, 3)), max_size=80))
def test_a_quota_holds_for_each_day_and_a_clock_put_back_begins_none(asked: list[tuple[str, int]]) -> None:
    now = [10.0 * DAY]
    quota = DailyQuota(2, 6, 4, lambda: now[0])
    taken: Counter[tuple[int, str]] = Counter()
    latest = -1
    for key, days in asked:
        now[0] = max(now[0] + days * DAY / 3, 0.0)
        latest = max(latest, int(now[0] // DAY))
        taken[latest, key] += quota.take(key)
    for day in {each for each, _ in taken}:
        of_day = [count for (when, _), count in taken.items() if when == day]
        assert max(of_day) <= 2 and sum(of_day) <= 6 and sum(map(bool, of_day)) <= 4


def test_a_quota_keeps_no_address() -> None:
    quota = DailyQuota(1, 10, 10)
    quota.take("192.0.2.7")
    assert "192.0.2.7" not in repr(vars(quota))


def test_tokens_are_known_for_as_long_as_a_device_tries() -> None:
    now = [100.0 * DAY]
    seen = SeenTokens(3, lambda: now[0])
    assert seen.add("a") and not seen.add("a") and "a" in seen
    now[0] += (DAYS_TRIED + 1) * DAY
    assert seen.add("b") and not seen.add("a")
    now[0] -= 50 * DAY
    assert not seen.add("a") and seen.add("c") and not seen.add("d")
    now[0] += 80 * DAY
    assert seen.add("d") and "a" not in seen
