"""The example app at the level of HTTP: what its pages show, what they refuse, and that people share nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import (
    AggregationRefused,
    ConsentRequired,
    DataError,
    FedrecError,
    RegistryError,
    ServerBusy,
)
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.ranking.popular import Popular, Selected
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights
from fedrec.wire.package import Terms, pack_model
from fedrec_client import Conditions, Consent, MemoryStore, Policy
from fedrec_client.terms.eligibility import Device, eligible
from fedrec_client.terms.participation import Book
from fedrec_client.terms.results import TrainingReport
from fedrec_client.testing import FakePlatform, store_of
from fedrec_client.training.session import ENDINGS
from fedrec_server.jobs.job import Job
from films import federation
from films.catalogue import TASTES, Catalogue, held_back
from films.command import running
from films.device import CAREFUL
from films.layer import LAYER_WEIGHT, layered
from films.people import Person
from films.services import POPULATION, LoopbackService
from films.web import HEADERS, App
from films.words import NOT_NOW, REFUSED, NotNowError, ended, not_now, refused, trouble

ADDRESS = "127.0.0.1:8080"


def all_errors(kind: type[FedrecError] = FedrecError) -> set[type[FedrecError]]:
    return {kind}.union(*(all_errors(each) for each in kind.__subclasses__()))


HOSTILE = '<script>alert("x")</script> & Sons'
GROUPS, FILMS = len(TASTES), 72


def small_start() -> tuple[ServingModel, Items]:
    """Films of genre g speak for films of genre g; the first of all is the most popular and has a hostile title."""
    genre = np.arange(FILMS) % GROUPS
    weights = np.where(genre[:, None] == genre[None, :], 0.1, 0.001).astype(np.float32)
    weights += np.linspace(0.01, 0, FILMS, dtype=np.float32)[None, :]
    np.fill_diagonal(weights, 0)
    titles = [f"{TASTES[k % GROUPS]} Night {k} ({1940 + k})" for k in range(FILMS)]
    titles[0] = f"{HOSTILE} (1999)"
    items = Items.of(
        [f"f{k:03d}" for k in range(FILMS)],
        titles,
        [[TASTES[k % GROUPS]] for k in range(FILMS)],
        np.linspace(FILMS, 1, FILMS, dtype=np.float32),
    )
    return ItemItem(DenseWeights(FloatTable(weights)), 8.0).quantised(), items


class Site:
    """The pages, asked for as a browser does."""

    def __init__(self, app: App) -> None:
        self._asgi = app.asgi()

    def get(self, url: str, **call: Any) -> httpx.Response:
        return self._call("GET", url, **call)

    def post(self, url: str, **call: Any) -> httpx.Response:
        return self._call("POST", url, **call)

    def _call(self, method: str, url: str, **call: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._asgi)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{ADDRESS}") as client:
                return await client.request(method, url, **call)

        return asyncio.run(ask())


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with running(tmp_path, 3, 8080, offline=True, start=small_start) as made:
        yield made


@pytest.fixture
def page(app: App) -> Site:
    return Site(app)


def post(page: Site, app: App, path: str, **fields: str) -> Any:
    return page.post(path, data={"token": app.token, **fields})


def shown(person: Person) -> list[str]:
    return [place.item for place in person.rec]


def test_every_answer_forbids_what_is_not_its_own(page: Site, app: App) -> None:
    paths = (
        "/",
        "/live",
        "/static/app.js",
        "/static/app.css",
        "/static/icons.svg",
        "/nothing",
        "/people/1/rate",
    )
    for path in paths:
        answer = page.get(path)
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value], (path, name)
    assert "unsafe" not in HEADERS["content-security-policy"]
    assert "http" not in HEADERS["content-security-policy"]


def test_pages_have_no_inline_scripts_or_styles_and_everything_is_escaped(page: Site, app: App) -> None:
    post(page, app, "/people/1/rate", item="f000", stars="5")
    for tab in ("list", "search", "rated", "privacy", "device"):
        for number in (1, 2, 3):
            post(page, app, f"/people/{number}/look", tab=tab)
        post(page, app, "/people/3/search", query=HOSTILE)
        text = page.get("/").text
        assert "<script>" not in text and "alert(&#34;x&#34;)" in text
        assert re.findall(r"<script(.*?)>", text) == [' src="/static/app.js" defer']
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|https?://", text)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {"host": "films.example"}}, 421),
        ({"headers": {"origin": "http://127.0.0.1:9999"}}, 403),
        ({"headers": {"origin": "null"}}, 403),
        ({"data": {"item": "f001", "stars": "5"}}, 403),
        ({"data": {"token": "x" * 32, "item": "f001", "stars": "5"}}, 403),
        ({"data": {"token": "", "item": "f001", "stars": "5"}}, 403),
        ({"data": {"token": "x" * 20_000}}, 400),
        ({"url": "/people/9/rate"}, 400),
        ({"url": "/people/1/nothing"}, 400),
        ({"url": "/train", "data": {}}, 403),
        ({"url": "/people/1/export", "data": {}}, 403),
        ({"url": "/people/1/delete", "data": {}}, 403),
    ],
)
def test_forms_that_are_not_this_pages_do_nothing(
    page: Site, app: App, changes: dict[str, Any], status: int
) -> None:
    """Each of them would be a rating, were it not for one thing."""
    call = {"url": "/people/1/rate", "data": {"token": app.token, "item": "f001", "stars": "5"}} | changes
    answer = page.post(**call)
    assert answer.status_code == status and "Traceback" not in answer.text
    assert not any(person.opinions() for person in app.people)
    assert (
        page.post("/people/1/rate", data={"token": app.token, "item": "f001", "stars": "5"}).status_code
        == 303
    )
    assert app.people[0].opinions()


def test_actions_cannot_be_asked_for_by_a_link(page: Site, app: App) -> None:
    for path in ("/people/1/delete", "/people/1/export", "/train"):
        assert page.get(path, params={"token": app.token}).status_code == 405


def test_a_rating_counts_at_once_for_its_person_alone(page: Site, app: App) -> None:
    ada, ben, _ = app.people
    others = shown(ben), ben.revision
    assert shown(ada)[:3] == ["f000", "f001", "f002"]  # what is popular
    answer = post(page, app, "/people/1/rate", item="f002", stars="5")
    assert answer.status_code == 303 and answer.headers["location"].startswith("/?person=1")
    assert all(int(item[1:]) % GROUPS == 2 for item in shown(ada)) and "f002" not in shown(ada)
    assert (shown(ben), ben.revision) == others
    event = ada.client.events()[-1]
    assert event.type == "impression"
    rating = next(event for event in ada.client.events() if event.type == "rating")
    assert rating.value == 5 and rating.context["place"] == 3
    text = page.get("/").text
    assert "Changed after you rated" in text and "Because of" in text


def test_reasons_add_up_to_the_score(page: Site, app: App) -> None:
    for item, stars in (("f002", "5"), ("f008", "4"), ("f003", "3"), ("f014", "5")):
        post(page, app, "/people/1/rate", item=item, stars=stars)
    tables = re.findall(r"<table>(.*?)</table>", page.get("/").text, re.DOTALL)
    assert len(tables) == len(app.people[0].rec)
    for table in tables:
        *parts, score = [float(value) for value in re.findall(r'class="value">([-+.\d]+)<', table)]
        assert len(parts) >= 2 and sum(parts) == pytest.approx(score, abs=0.0005 * (len(parts) + 1))


def test_what_is_hidden_or_disliked_does_not_come_back(page: Site, app: App) -> None:
    ada = app.people[0]
    post(page, app, "/people/1/hide", item="f000")
    post(page, app, "/people/1/rate", item="f001", stars="1")
    post(page, app, "/people/1/more")
    assert not {"f000", "f001"} & set(shown(ada)) and len(shown(ada)) == 24
    post(page, app, "/people/1/look", tab="rated")
    text = page.get("/").text
    assert 'class="hidden"' in text and "Rating a hidden film brings it back" in text
    post(page, app, "/people/1/rate", item="f000", stars="5")
    assert [opinion.stars for opinion in ada.opinions() if opinion.film.id == "f000"] == [5]
    assert all(int(item[1:]) % GROUPS == 0 for item in shown(ada)[:8])


def test_lists_follow_genres_variety_and_surprises(page: Site, app: App) -> None:
    ada = app.people[0]
    post(page, app, "/people/1/begin", genre="Horror")
    own = TASTES.index("Horror")
    post(page, app, "/people/1/tune", only="Crime", variety="off")
    assert {int(item[1:]) % GROUPS for item in shown(ada)} == {TASTES.index("Crime")}
    post(page, app, "/people/1/tune", only="", without="Horror", variety="off")
    assert own not in {int(item[1:]) % GROUPS for item in shown(ada)}
    post(page, app, "/people/1/tune", only="", without="", variety="much")
    assert len({int(item[1:]) % GROUPS for item in shown(ada)}) > 1
    post(page, app, "/people/1/tune", only="", without="", variety="off", explores="1")
    chances = [place.propensity for place in ada.rec]
    assert all(0 < chance < 1 for chance in chances)
    seen = set()
    for _ in range(20):  # surprises are drawn: every kind of them has its line on the page
        post(page, app, "/people/1/tune", only="", without="", variety="off", explores="1")
        assert page.get("/").status_code == 200
        seen |= {place.source for place in ada.rec}
    assert len(seen) > 1
    post(page, app, "/people/1/tune", only="Nonsense", variety="off")
    assert "that there is not" in page.get("/").text and ada.screen.only == ""


def test_searching_and_films_like_one(page: Site, app: App) -> None:
    post(page, app, "/people/2/search", query="horror nig 194")
    found = re.findall(r'data-film="(f\d+)"', page.get("/").text)
    assert {"f004"} <= set(found)
    post(page, app, "/people/2/alike", item="f004")
    text = page.get("/").text
    assert "Like Horror Night 4" in text
    like = re.findall(r'name="item" value="(f\d+)"', _piece(text, 2))
    assert like and {int(item[1:]) % GROUPS for item in like} == {4}


def _piece(text: str, number: int) -> str:
    return text.split(f'id="person-{number}"')[1].split("</article>")[0]


def test_without_personal_recommendations_nothing_is_kept_and_everybody_sees_the_same(
    page: Site, app: App
) -> None:
    ada = app.people[0]
    popular = shown(app.people[1])
    post(page, app, "/people/1/begin", genre="Crime")
    assert shown(ada) != popular
    post(page, app, "/people/1/consent", what="personalize", on="0")
    assert shown(ada) == popular
    before = len(ada.client.events())
    post(page, app, "/people/1/rate", item="f001", stars="5")
    text = page.get("/").text
    assert "Switch on personal recommendations first" in text and len(ada.client.events()) == before
    assert "disabled" in _piece(text, 1).split('class="stars"')[1][:300]
    with pytest.raises(ConsentRequired):
        ada.rate("f001", 5)
    post(page, app, "/people/1/consent", what="everything", on="1")
    assert "not asked" in page.get("/").text


def test_a_device_says_why_it_does_not_train(page: Site, app: App) -> None:
    ada = app.people[0]
    assert {"consent", "data"} == set(ada.eligible().codes)
    post(page, app, "/people/1/begin", genre="Crime")
    post(page, app, "/people/1/consent", what="train", on="1")
    assert ada.eligible().ok and app.together.willing() == [ada]
    for what in ("charging", "idle", "unmetered"):
        post(page, app, "/people/1/state", what=what, on="0")
        assert ada.eligible().codes == (what,)
        post(page, app, "/people/1/look", tab="device")
        assert f"<code>{what}</code>" in page.get("/").text
        post(page, app, "/people/1/state", what=what, on="1")
    post(page, app, "/people/1/limits", on="1")
    assert ada.policy == CAREFUL and ada.client.consent.train and len(ada.opinions()) == 5


def test_training_needs_a_service_and_enough_people(page: Site, app: App) -> None:
    post(page, app, "/train")
    assert "0 devices are ready" in app.journal.newest(1)[0].text
    for number in (1, 2, 3):
        post(page, app, f"/people/{number}/begin", genre="Crime")
        post(page, app, f"/people/{number}/consent", what="train", on="1")
    post(page, app, "/train")
    assert "--offline" in app.journal.newest(1)[0].text and not app.together.progress.running


OPERATORS = "federation.min_nodes = 3 at 127.0.0.1:8443; start more nodes, then --resume"


@pytest.mark.parametrize("kind", sorted(all_errors(), key=lambda kind: kind.__name__))
def test_what_an_error_means_is_told_without_an_operators_words(kind: type[FedrecError]) -> None:
    extra: dict[type[FedrecError], Any] = {ServerBusy: ((60.0, 120.0),), AggregationRefused: ("replay",)}
    said = trouble(kind(OPERATORS, *extra.get(kind, ())))
    if not issubclass(kind, DataError | NotNowError):  # which this app's own forms and buttons raise
        assert not any(word in said for word in ("federation.", "node", "127.0.0.1", "--resume"))


def test_every_reason_of_the_sdk_has_words_for_people() -> None:
    device = Device(Consent(), FakePlatform(), Path(), 0, "none", 0.0)
    device.platform.is_charging = device.platform.is_idle = device.platform.is_unmetered = False  # type: ignore[attr-defined]
    device.platform.free = 0  # type: ignore[attr-defined]
    book = Book(MemoryStore())
    book.note("charged", 0.0, epsilon=1e6, delta=1e-6, job="ab", rounds=1)
    codes = eligible(device, book, Policy(), Conditions()).codes
    assert set(codes) == set(NOT_NOW)
    assert [code for _, code in not_now([f"{code}: federation.x" for code in codes])] == list(codes)
    for reason in ("done", "stopped", "the server could not be reached", "something new"):
        assert ended(reason) and "server" not in ended(reason)
    assert all(ended(reason) != ended("something new") for reason in ENDINGS.values())
    said = refused([f"{code}: 3 nodes" for code in (*REFUSED, "something new")])
    assert len(said) == len(REFUSED) + 1 and not any("node" in each for each in said)


def agree(page: Site, app: App) -> None:
    for person in app.people:
        post(page, app, f"/people/{person.number}/begin", genre="Crime")
        post(page, app, f"/people/{person.number}/consent", what="train", on="1")
        post(page, app, f"/people/{person.number}/look", tab="privacy")


def test_devices_train_together_and_use_what_they_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of two rounds over gRPC: joined, computed, summed, published, fetched."""
    monkeypatch.setattr(federation, "JOIN_SECONDS", 60.0)  # a busy computer must not part the devices
    with running(tmp_path, 3, 8080, start=small_start) as app:
        page = Site(app)
        agree(page, app)
        post(page, app, "/train")
        app.together.wait(120)
        log = app.journal.path.read_text()
        assert app.together.progress.stage == len(federation.STAGES), log
        for words in (
            "has joined; waits for the others",
            "computes its update on its own ratings",
            "has sent its update, encrypted",
        ):
            assert log.count(words) >= 6
        assert all(f"round {number}: only the sum of 3 updates" in log for number in (1, 2))
        for person in app.people:
            report = person.client.privacy_report()
            assert report.lifetime.epsilon == pytest.approx(600, rel=1e-3) and len(report.left) == 2
            assert person.rec.model_version == 2 and not person.training
        assert "what up to 3 devices learned together" in page.get("/").text
        assert page.get("/").text.count("An encrypted training update in round 2") == 3


def test_training_that_fails_speaks_of_users_and_their_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three is unplugged before it joins: no model, nothing spent."""
    monkeypatch.setattr(federation, "JOIN_SECONDS", 3.0)
    monkeypatch.setattr(federation, "SUM_SECONDS", 1.0)
    with running(tmp_path, 3, 8080, start=small_start) as app:
        page = Site(app)
        agree(page, app)
        away = TrainingReport(False, 0, 0, 0.0, 0.0, "not eligible: charging: not now")
        monkeypatch.setattr(app.people[2], "train", lambda *_: away)
        post(page, app, "/train")
        app.together.wait(60)
        (job,) = Job.all(tmp_path / "service" / "jobs")
        assert app.together.progress.failed and job.record().state == "aborted"
        text = page.get("/").text
        assert "Only 2 of 3 devices came. There is no new model." in text
        assert text.count("Nothing was spent.") == 2
        assert "federation." not in text and "nodes" not in text
        for person in app.people:
            report = person.client.privacy_report()
            assert report.lifetime.epsilon == 0 and not report.left and not person.training
        assert app.journal.path.read_text().count("nothing was charged") == 2


def test_the_others_train_without_a_device_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four has the limits of a real app: it says why it refuses, and is charged nothing."""
    monkeypatch.setattr(federation, "JOIN_SECONDS", 3.0)
    with running(tmp_path, 4, 8080, start=small_start) as app:
        page = Site(app)
        agree(page, app)
        post(page, app, "/people/4/limits", on="1")
        post(page, app, "/train")
        app.together.wait(120)
        log = app.journal.path.read_text()
        assert app.together.progress.stage == len(federation.STAGES), log
        assert all(f"round {number}: only the sum of 3 updates" in log for number in (1, 2))
        assert "Refused to train" in page.get("/").text
        spent = [person.client.privacy_report().lifetime.epsilon for person in app.people]
        assert min(spent[:3]) > 0 and spent[3] == 0


def test_an_open_tab_sees_a_charge_when_it_is_made(page: Site, app: App) -> None:
    """In the middle of training, between the person's pressing a button and the end of the session."""
    post(page, app, "/people/1/look", tab="privacy")
    ada = app.people[0]
    ada.training = True
    known = page.get("/live").json()["revisions"]
    assert page.get("/live", params=known).json()["pieces"] == {}
    Book(store_of(ada.client)).note(
        "charged",
        time.time(),
        job="ab" * 16,
        round=1,
        epsilon=600.0,
        delta=1e-6,
        aggregator="secagg",
        rounds=1,
    )
    told = page.get("/live", params=known).json()
    assert set(told["pieces"]) == {"person-1", "service"}
    assert "ε 600 of" in told["pieces"]["person-1"] and "is leaving in job" in told["pieces"]["person-1"]
    assert "Nothing</p>" not in told["pieces"]["person-1"]
    assert page.get("/live", params=told["revisions"]).json()["pieces"] == {}


def test_open_tabs_notice_that_the_app_was_started_again(tmp_path: Path) -> None:
    told = []
    for folder in ("one", "two"):
        with running(tmp_path / folder, 2, 8080, offline=True, start=small_start) as app:
            told.append(Site(app).get("/live").json()["revisions"])
    assert told[0]["person-1"] == told[1]["person-1"] and told[0]["app"] != told[1]["app"]


def test_export_holds_everything_and_deletion_leaves_nothing(page: Site, app: App) -> None:
    ada = app.people[0]
    post(page, app, "/people/1/rate", item="f007", stars="4")
    answer = post(page, app, "/people/1/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="ada.jsonl"'
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert any("f007" in json.dumps(line) and "rating" in json.dumps(line) for line in lines)
    key = (ada.folder / "store.key").read_bytes() if (ada.folder / "store.key").exists() else None
    post(page, app, "/people/1/delete")
    assert ada.receipt is not None and ada.receipt.key_destroyed and ada.receipt.events > 0
    assert not ada.opinions() and ada.receipt.id in page.get("/").text
    if key is not None:
        assert (ada.folder / "store.key").read_bytes() != key


def test_only_what_has_changed_comes_back(page: Site, app: App) -> None:
    first = page.get("/live").json()
    assert set(first["pieces"]) == {"person-1", "person-2", "person-3", "service", "journal"}
    assert page.get("/live", params=first["revisions"]).json()["pieces"] == {}
    post(page, app, "/people/2/rate", item="f001", stars="5")
    after = page.get("/live", params=first["revisions"]).json()
    assert set(after["pieces"]) == {"person-2", "service", "journal"} and not after["busy"]
    swapped = page.post(
        "/people/1/look",
        data={"token": app.token, "tab": "device"},
        headers={"x-pieces": "&".join(f"{name}={value}" for name, value in after["revisions"].items())},
    ).json()
    assert set(swapped["pieces"]) == {"person-1", "service"}
    assert "Kept on this device" in swapped["pieces"]["person-1"]


def test_the_log_names_no_film_that_was_rated(page: Site, app: App) -> None:
    for action in ("rate", "hide"):
        post(page, app, f"/people/1/{action}", item="f013", stars="5")
    name = app.people[0].catalogue["f013"].name
    said = app.journal.path.read_text()
    assert "1 rating kept, sealed; nothing sent" in said and name not in said
    assert app.journal.path.stat().st_mode & 0o077 == 0


def test_marks_say_what_moved(app: App) -> None:
    ada = app.people[0]
    assert set(ada.marks().values()) == {0}
    ada.rate("f001", 5)  # genre 1 comes up, what was popular goes down
    marks = ada.marks()
    now = shown(ada)
    for place, item in enumerate(now):
        before = ["f000", *(f"f{k:03d}" for k in range(2, 8))]  # of which the rated one is left out
        assert marks[item] == (before.index(item) - place if item in before else None)
    assert None in marks.values()


@pytest.mark.parametrize(
    "call", [("rate", "f999", 5), ("rate", "f001", 0), ("rate", "f001", 6), ("hide", "")]
)
def test_films_and_stars_that_there_are_not_are_refused(app: App, call: tuple[Any, ...]) -> None:
    with pytest.raises(DataError):
        getattr(app.people[0], call[0])(*call[1:])


CATALOGUE = Catalogue(small_start()[1])


@given(st.text(max_size=40))
def test_any_text_can_be_searched_for(text: str) -> None:
    words = re.findall(r"\w+", text.casefold())
    found = CATALOGUE.search(text)
    assert len(found) <= 12 and (words or not found)
    for film in found:
        title = re.findall(r"\w+", f"{film.name} {film.year}".casefold())
        assert all(any(word.startswith(start) for word in title) for start in words)


def test_titles_are_taken_apart() -> None:
    film = CATALOGUE["f000"]
    assert (film.name, film.year) == (HOSTILE, "1999") and unescape(film.name) == film.name
    assert [film.id for film in CATALOGUE.search("night 1999")] == ["f059"]
    assert [film.id for film in CATALOGUE.search("sons script")] == ["f000"]


def test_weights_of_popular_films_are_held_back() -> None:
    weights = np.ones((3, 3), np.float32)
    out = held_back(weights, np.array([100.0, 1.0, 0.0], np.float32))
    assert np.allclose(out[0], [1.0, 100**0.4, 100**0.4])


def test_the_layer_adds_what_was_learned_and_nothing_else() -> None:
    start = small_start()[0]
    assert isinstance(start, ItemItem)
    places = np.array([5, 40, 2])
    learned = np.array([[0, 0.5, -0.25], [0.5, 0, 0.125], [-0.25, 0.125, 0]], np.float32)
    trained = Selected(ItemItem(DenseWeights(FloatTable(learned))), places, np.zeros(FILMS, np.float32))
    made = layered(start, trained)
    everything = np.arange(FILMS)
    before, after = start.weights.features(everything), made.weights.features(everything)  # type: ignore[attr-defined]
    expected = before.copy()
    expected[np.ix_(places, places)] += np.float32(LAYER_WEIGHT) * learned
    assert np.allclose(after, expected, atol=0.004)  # of 8 bits
    untouched = np.setdiff1d(everything, places)
    assert np.array_equal(after[untouched], before[untouched])


def test_a_layer_of_another_kind_is_refused() -> None:
    popular = Popular(np.ones(FILMS, np.float32))
    with pytest.raises(RegistryError, match="this app knows"):
        layered(small_start()[0], popular)
    with pytest.raises(RegistryError, match="this app knows"):
        layered(popular, Selected(small_start()[0], np.arange(FILMS), np.ones(FILMS)))


def test_the_real_service_hands_out_a_newer_version_and_is_there_again_after_a_restart(
    tmp_path: Path,
) -> None:
    """gRPC with certificates of both sides, a registry on disk, stores on disk."""
    with running(tmp_path, 2, 8080, start=small_start) as app:
        service = app.service
        assert isinstance(service, LoopbackService)
        ada, root = app.people[0], service.root
        ada.rate("f002", 5)
        assert not ada.check_for_update()
        files = pack_model(*small_start(), {})
        made = service._registry.publish(files, Terms(0, int(time.time())), service._keys)
        service._registry.promote(made.version, service._keys)
        assert ada.check_for_update() and ada.rec.model_version == made.version == 2
        assert ada.change.cause == "with model version 2" and set(ada.marks().values()) == {0}
    with running(tmp_path, 2, 8080, start=small_start) as app:
        ada, ben = app.people
        assert app.service.root == root and app.service.manifest().population == POPULATION
        assert ada.rec.model_version == ben.rec.model_version == 2
        assert [opinion.film.id for opinion in ada.opinions()] == ["f002"] and not ben.opinions()
