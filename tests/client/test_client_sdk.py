"""The client as an app sees it: a dozen lines, no network where none is due, the last click counts."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fedrec.core.errors import ConsentRequired, DataError, Rollback, RunError, ServiceError
from fedrec_client import AsyncClient, AtMost, Client, Consent, EpsilonGreedy, MemoryStore, Pin, Retention
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import DAY, NOW, FakePlatform, FakeService, make_client, store_of


@pytest.fixture
def service() -> FakeService:
    made = FakeService()
    made.publish()
    return made


@pytest.fixture
def client(tmp_path: Path, service: FakeService) -> Client:
    made = make_client(tmp_path, service)
    made.check_for_update()
    return made


def test_a_dozen_lines(tmp_path: Path, service: FakeService) -> None:
    with make_client(tmp_path, service) as client:
        client.check_for_update()
        first = client.recommend(n=5)
        assert [each.source for each in first] == ["popular"] * 5
        assert [each.item for each in first] == [f"film-{k}" for k in range(5)]
        client.log_event("play", item=first.items[0].item, rec=first.id)
        second = client.recommend(n=5)
        assert [each.source for each in second] == ["model"] * 5
        assert first.items[0].item not in [each.item for each in second]
        reasons = client.explain(second.items[0].item, second)
        assert [because.item for because in reasons.because] == ["film-0"]
        assert reasons.base + sum(b.contribution for b in reasons.because) == pytest.approx(
            reasons.score, rel=1e-4
        )
        assert len(client.similar("film-0", n=3)) == 3
        assert "Nothing has left" in client.privacy_report().as_text()


def test_no_call_takes_an_id_of_a_user() -> None:
    for kind in (Client, AsyncClient):
        for name, member in inspect.getmembers(kind, callable):
            if not name.startswith("_"):
                assert not {p for p in inspect.signature(member).parameters if "user" in p or "user" in p}


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_") and name != "open"
        }

    assert calls(Client) == calls(AsyncClient)
    assert {*calls(Client)} >= {
        *("set_consent", "recommend", "log_event", "similar", "explain", "check_for_update", "eligible"),
        *("train_if_eligible", "privacy_report", "export_data", "delete_data", "status"),
    }


def test_the_asynchronous_baseline(tmp_path: Path, service: FakeService) -> None:
    async def use() -> None:
        settings = {
            "population": "test",
            "trust": service.trust,
            "server": service,
            "store": MemoryStore(),
        }
        async with await AsyncClient.open(tmp_path, platform=FakePlatform(), **settings) as client:
            await client.set_consent(Consent(train=True))
            assert client.consent.train
            assert (await client.check_for_update()) is not None
            rec, _ = await asyncio.gather(client.recommend(n=3), client.status())
            await client.log_event("like", item=rec.items[0].item, rec=rec.id)
            assert (await client.eligible()).codes == ("data",)
            with pytest.raises(DataError, match="training_server"):
                await client.train_if_eligible()
            assert len((await client.explain(rec.items[1].item)).because) == 1
            assert await client.similar("film-1", 2)
            assert (await client.privacy_report()).events == 1
            assert await client.export_data(tmp_path / "mine.jsonl") > 1
            assert (await client.delete_data()).events == 1

    asyncio.run(use())


def test_recommending_touches_no_network(tmp_path: Path, service: FakeService) -> None:
    client = make_client(tmp_path, service)
    client.check_for_update()
    service.offline = True
    rec = client.recommend(3)
    client.log_event("play", item=rec.items[0].item)
    client.recommend(3)
    client.explain(rec.items[1].item)
    client.similar(rec.items[1].item)
    assert len(service.check_ins) == 1
    with pytest.raises(ServiceError, match="cannot be reached"):
        client.check_for_update()
    assert "cannot be reached" in client.status().last_error
    again = make_client(tmp_path / "other", None)
    again._transport = None
    with pytest.raises(ServiceError, match="no server"):
        again.check_for_update()


def test_wishes_go_through(client: Client) -> None:
    assert {each.item for each in client.recommend(4, candidates=["film-3", "film-9", "no-such"])} == {
        "film-3",
        "film-9",
    }
    assert client.recommend(4, candidates=["no-such"]).unknown == ("no-such",)
    rules = [Pin("film-30", 2), AtMost("drama", 1)]
    made = client.recommend(6, rules=rules, deny=["action"], exploration=EpsilonGreedy(0.5))
    assert made.items[1].item == "film-30" and made.items[1].source == "pinned"
    with pytest.raises(DataError, match="there are n, candidates"):
        client.recommend(genre="drama")


def test_hidden_and_disliked_items_never_return_until_liked(client: Client) -> None:
    best = client.recommend(1).items[0].item
    for kind in ("hide", "dislike"):
        client.log_event(kind, item=best)
        assert best not in [each.item for each in client.recommend(50)]
        assert best not in [each.item for each in client.recommend(50, exclude_seen=False)]
        client.log_event("like", item=best)
        assert best in [each.item for each in client.recommend(50, exclude_seen=False)]
    client.log_event("rating", item=best, value=1)
    assert best not in [each.item for each in client.recommend(50, exclude_seen=False)]


def test_impressions_and_clicks_join_their_list(client: Client) -> None:
    rec = client.recommend(10, exploration=EpsilonGreedy(1.0, 1.0))
    client.log_event("impression", item=rec.items[3].item, rec=rec.id, context={"screen": "home"})
    client.log_event("view", item="elsewhere", rec=rec.id)
    client.log_event("view", item="film-1", rec="of yesterday")
    shown, strange, old = store_of(client).events()
    assert shown.recommendation == rec.id
    assert dict(shown.context) == {
        "screen": "home",
        "place": 4,
        "propensity": rec.items[3].propensity,
        "source": rec.items[3].source,
        "model_version": 1,
    }
    assert not strange.context and not old.context and old.recommendation == "of yesterday"


def test_items_the_model_does_not_know_are_kept_until_it_does(client: Client, service: FakeService) -> None:
    from fedrec_client.testing import small_items

    client.log_event("play", item="film-70")
    assert client.recommend(3).items[0].source == "popular"
    service.publish(items=small_items(80))
    client.check_for_update()
    assert client.recommend(3).items[0].source == "model"


def test_an_app_can_show_what_is_kept(client: Client) -> None:
    client.log_event("rating", item="film-2", value=4)
    client.log_event("hide", item="film-3")
    assert [each.item for each in client.events()] == ["film-2", "film-3"]
    assert [each.value for each in client.events(types=["rating"])] == [4]


def test_an_event_told_twice_or_late(client: Client) -> None:
    assert client.log_event("hide", item="film-1", event_id="x", time=NOW) == "x"
    client.log_event("like", item="film-1", event_id="x", time=NOW + 1)
    client.log_event("like", item="film-1", time=NOW - 5)  # told late: the later hide stands
    assert "film-1" not in [each.item for each in client.recommend(50, exclude_seen=False)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "plays", "item": "a"},
        {"type": "play", "item": ""},
        {"type": "rating", "item": "a"},
        {"type": "custom", "item": "a"},
        {"type": "play", "item": "a", "event_id": "not allowed"},
        {"type": "play", "item": "a", "time": float("nan")},
    ],
)
def test_events_that_cannot_be_are_one_clear_line(client: Client, wrong: dict[str, object]) -> None:
    with pytest.raises(DataError) as caught:
        client.log_event(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert client.privacy_report().events == 0


def test_consent_is_asked_in_every_call(client: Client) -> None:
    client.log_event("like", item="film-7")
    client.set_consent(Consent(personalize=False))
    with pytest.raises(ConsentRequired, match="personalize"):
        client.log_event("play", item="film-1")
    assert {each.source for each in client.recommend(10)} == {"popular"}
    assert client.explain("film-1").because == ()
    with pytest.raises(ConsentRequired, match="train"):
        client.train_if_eligible()
    history = client.privacy_report().consent_history
    assert [each["personalize"] for each in history] == [False]


def test_consent_outlives_a_restart(tmp_path: Path, service: FakeService) -> None:
    FileVault.create(tmp_path)
    for wanted in (Consent(train=True), Consent(personalize=False)):
        with make_client(tmp_path, service, store=SqliteStore.open(tmp_path)) as client:
            client.set_consent(wanted)
        with make_client(tmp_path, service, store=SqliteStore.open(tmp_path)) as client:
            assert client.consent == wanted


def test_counters_leave_once_a_day_with_noise_and_only_with_consent(
    tmp_path: Path, service: FakeService
) -> None:
    platform = FakePlatform(clock=NOW - NOW % DAY + DAY + 1000)
    client = make_client(tmp_path, service, platform)
    client.check_for_update()
    rec = client.recommend(5)
    for each in rec:
        client.log_event("impression", item=each.item, rec=rec.id)
    platform.pass_time(DAY)
    client.check_for_update()
    assert service.metrics == []
    client.set_consent(Consent(metrics=True))
    client.check_for_update()
    client.check_for_update()
    (sent,) = service.metrics
    assert set(sent) == {"impressions", "clicks", "hides"}
    report = client.privacy_report()
    assert report.metrics_epsilon == 1.0 and "counters with noise" in report.as_text()
    assert not {"token", "id"} & set(vars(service.check_ins[0]))  # a check-in says nothing of who asks


def test_noise_of_counters_has_its_distribution() -> None:
    from fedrec_client.app import _metrics as metrics

    drawn = np.array([metrics.noised({"a": 5})["a"] - 5 for _ in range(20_000)])
    decay = np.exp(-1 / 20)
    assert drawn.mean() == pytest.approx(0, abs=5 * drawn.std() / 20_000**0.5)
    assert np.mean(drawn == 0) == pytest.approx((1 - decay) / (1 + decay), rel=0.25)
    assert np.var(drawn) == pytest.approx(2 * decay / (1 - decay) ** 2, rel=0.1)


def test_everything_can_be_taken_out_and_deleted(tmp_path: Path, service: FakeService) -> None:
    FileVault.create(tmp_path)
    with make_client(tmp_path, service, store=SqliteStore.open(tmp_path)) as client:
        client.check_for_update()
        client.set_consent(Consent(train=True))
        client.log_event("like", item="film-3")
        store_of(client).put("training/abc", b'{"identity": "secret"}')
        lines = [json.loads(line) for line in _exported(client, tmp_path)]
        assert {"event", "record", "entry"} == {line["kind"] for line in lines}
        assert "secret" not in [line.get("json") for line in lines]
        with pytest.raises(DataError, match="there already"):
            client.export_data(tmp_path / "mine.jsonl")
        key = (tmp_path / "store.key").read_bytes()
        receipt = client.delete_data()
        assert "export_data" in receipt.remaining[1]
        assert receipt.events == 1 and receipt.key_destroyed and receipt.remaining[0] == "the public model"
        assert (tmp_path / "store.key").read_bytes() != key
        assert client.consent == Consent() and client.privacy_report().events == 0
        assert client.status().model_version == 1 and client.recommend(3).items
        kept = service.keep()
        service.publish(version=2)
        client.check_for_update()
        client.delete_data()
        service.replay(kept)
        with pytest.raises(Rollback):  # deleting opens no way back to older models
            client.check_for_update()


def _exported(client: Client, folder: Path) -> list[str]:
    client.export_data(folder / "mine.jsonl")
    assert (folder / "mine.jsonl").stat().st_mode & 0o077 == 0
    return (folder / "mine.jsonl").read_text().splitlines()


def test_a_part_can_be_deleted(client: Client) -> None:
    for day in range(4):
        client.log_event("like", item=f"film-{day}", time=NOW + day * DAY)
    receipt = client.delete_data(since=NOW + 2 * DAY)
    assert receipt.events == 2 and receipt.key_destroyed
    assert client.privacy_report().events == 2
    assert {because.item for because in client.explain("film-9").because} == {"film-0", "film-1"}


def test_the_spent_budget_survives_a_deletion(client: Client) -> None:
    from fedrec_client.terms.participation import Book

    Book(store_of(client)).note("charged", NOW, campaign="a", epsilon=2.5, delta=1e-6)
    receipt = client.delete_data()
    assert "cannot be recalled" in receipt.remaining[1]
    report = client.privacy_report()
    assert report.lifetime.epsilon == 2.5 and report.period.epsilon == 2.5 and report.lifetime.rounds == 1
    client.delete_data()
    assert client.privacy_report().lifetime.epsilon == 2.5


def test_a_clock_that_jumps_deletes_nothing_in_a_hurry(tmp_path: Path, service: FakeService) -> None:
    platform, store = FakePlatform(), MemoryStore()
    with make_client(tmp_path, service, platform, store) as client:
        client.log_event("like", item="film-1")
        for jump in (20 * 365 * DAY, -20 * 365 * DAY, 3 * 365 * DAY):
            platform.clock += jump
            client = make_client(tmp_path, service, platform, store)
            assert client.privacy_report().events == 1
        platform.clock = NOW
        for _ in range(70):  # real time: a year and more, one start a week
            platform.clock += 7 * DAY
            client = make_client(tmp_path, service, platform, store)
        assert client.privacy_report().events == 0


def test_retention_by_number(tmp_path: Path, service: FakeService) -> None:
    store = MemoryStore()
    with make_client(tmp_path, service, store=store) as client:
        for k in range(6):
            client.log_event("like", item=f"film-{k}", time=NOW + k)
    client = make_client(tmp_path, service, store=store, retention=Retention(None, 2))
    assert client.privacy_report().events == 2


def test_threads_recommend_while_models_change(client: Client, service: FakeService) -> None:
    problems: list[BaseException] = []
    done = threading.Event()

    def use() -> None:
        try:
            while not done.is_set():
                rec = client.recommend(5, exclude_seen=False)
                assert len(rec) == 5
                client.log_event("view", item=rec.items[0].item, rec=rec.id)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        service.publish()
        client.check_for_update()
    done.set()
    for thread in threads:
        thread.join()
    assert not problems and client.status().model_version == 9


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"population": "Movies EN"}, DataError),
        ({"trust": b"short"}, RunError),
        ({"trust": b'{"signed": {"_type": "timestamp"}}'}, RunError),
        ({"trust": "no-such.pub"}, RunError),
        ({"ca": "x"}, DataError),
    ],
)
def test_wrong_openings_are_one_clear_line(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    settings = {"population": "test", "trust": FakeService().trust, "store": MemoryStore()} | change
    with pytest.raises(error) as caught:
        Client.open(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_without_a_model_there_is_nothing_to_show(tmp_path: Path) -> None:
    client = make_client(tmp_path)
    assert len(client.recommend(5)) == 0
    client.log_event("play", item="film-1")
    for call in (lambda: client.similar("film-1"), lambda: client.explain("film-1")):
        with pytest.raises(DataError, match="no model yet"):
            call()
    assert client.status().model_state == "none"


def test_what_verifies_signatures_is_loaded_by_an_update_and_not_before(tmp_path: Path) -> None:
    """Importing, opening, recommending and logging need none of it, and no network."""
    (tmp_path / "root.json").write_bytes(FakeService().trust)
    lazy = ("tuf", "securesystemslib", "urllib3", "requests", "grpc", "torch")
    code = (
        "import sys; from fedrec_client import Client, MemoryStore\n"
        "client = Client.open('device', population='test', trust='root.json', store=MemoryStore())\n"
        "client.recommend(5); client.log_event('play', item='x'); client.status(); client.privacy_report()\n"
        f"print([name for name in {lazy} if name in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    seen = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert seen.stdout.strip() == "[]"


def test_importing_the_sdk_is_light() -> None:
    heavy = ("torch", "flwr", "grpc", "scipy", "pydantic", "numba", "opacus")
    code = (
        "import sys, pathlib, tempfile, fedrec_client.testing as t\n"
        "service = t.FakeService(); service.publish()\n"
        "client = t.make_client(pathlib.Path(tempfile.mkdtemp()), service)\n"
        "client.check_for_update(); rec = client.recommend(5)\n"
        "client.log_event('play', item=rec.items[0].item); client.explain(rec.items[1].item)\n"
        "client.privacy_report()\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
