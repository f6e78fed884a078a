"""The example app in a real browser: by mouse and by keyboard, on a phone and on a desk, and one job to its end.

With FEDREC_SCREENSHOTS=docs/images the pictures of the tutorial are written anew.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from browser import Page, browser
from PIL import Image

from fedrec_client.terms.participation import Book
from fedrec_client.testing import store_of
from films import federation
from films.catalogue import start_model
from films.command import running
from films.web import App

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.needs("chromium"),
]
DESK, PHONE = (1440, 900), (390, 844)
PICTURES = os.environ.get("FEDREC_SCREENSHOTS")
TASTES = ("Crime", "Sci-Fi", "Romance", "Horror")
Tab = Callable[[], Page]


class Site:
    """The app, served on a free port of loopback."""

    def __init__(self, app: App, server: uvicorn.Server, port: int) -> None:
        self.app, self.server, self.url = app, server, f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


def serve(folder: Path, people: int, *, offline: bool, port: int = 0) -> Iterator[Site]:
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    with running(folder, people, port, offline=offline, start=start_model) as app:
        server = uvicorn.Server(uvicorn.Config(app.asgi(), log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Site(app, server, port)
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from serve(tmp_path_factory.mktemp("films"), 4, offline=True)


@pytest.fixture
def offline(served: Site) -> Site:
    """Everybody looks at a list."""
    for person in served.app.people:
        person.look("list")
    return served


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(federation, "JOIN_SECONDS", 60.0)  # a busy computer must not part the devices
    yield from serve(tmp_path, 4, offline=False)


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.js("scrollTo(0, 0)")
        time.sleep(1.4)  # marks of what is new have faded
        path = Path(PICTURES) / f"example-app-{name}.png"
        page.screenshot(path)
        with Image.open(path) as image:  # a palette is enough and takes half the room
            image.convert("RGB").quantize(
                256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
            ).save(path)


def begin(page: Page, number: int, genre: str) -> None:
    page.click(f'#person-{number} [data-key="begin-{genre}"]')
    page.wait(f"!document.querySelector('#person-{number} .begin')")


def look(page: Page, number: int, tab: str) -> None:
    page.click(f'#person-{number} [data-key="tab-{tab}"]')
    page.wait(f"document.querySelector('#person-{number} [data-key=tab-{tab}][aria-current]')")


def switch(page: Page, number: int, what: str) -> None:
    """Switch something on."""
    page.click(f'#person-{number} [data-key="switch-{what}"]')
    page.wait(f"document.querySelector('#person-{number} [data-key=switch-{what}][aria-checked=true]')")


def fits(page: Page) -> bool:
    return bool(page.js("document.documentElement.scrollWidth <= innerWidth"))


def names(page: Page, number: int) -> list[str]:
    return list(
        page.js(
            f"[...document.querySelectorAll('#person-{number} .films h3')].map(e => e.firstChild.data.trim())"
        )
    )


#: Text whose contrast to what lies behind it is below 4.5 (WCAG AA), where the colour behind is plain.
PALE = """(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith("color(")
    ? [255 * m[0], 255 * m[1], 255 * m[2], m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1] };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c } return [255, 255, 255] };
  const pale = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility({visibilityProperty: true}) || e.closest(":disabled, .unseen, .skip")) continue;
    const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e).slice(0, 3));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) pale.push(`${e.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return pale })()"""
#: Notes what moves without the reader's doing.
SHIFTS = """globalThis.jumped = []; new PerformanceObserver(list => { for (const each of list.getEntries())
  if (!each.hadRecentInput) jumped.push({value: each.value, at: each.startTime, what: each.sources.map(
    s => `${s.node?.outerHTML?.slice(0, 80)} ${s.previousRect.y} ${s.currentRect.y}`)})
  }).observe({type: "layout-shift", buffered: true})"""
#: Buttons and fields without a name.
NAMELESS = """[...document.querySelectorAll("button, input:not([type=hidden]), select, a, summary")].filter(e =>
  !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length)).map(e => e.outerHTML.slice(0, 120))"""


def test_every_page_fits_reads_well_and_has_names(offline: Site, tab: Tab) -> None:
    page = tab()
    page.look(*DESK)
    page.goto(offline.url)
    for number, genre in enumerate(TASTES[:3], 1):
        begin(page, number, genre)
    for number, shown in ((1, "privacy"), (2, "device"), (3, "rated"), (4, "search")):
        look(page, number, shown)
    for dark in (False, True):
        for size, phone in ((DESK, False), (PHONE, True), ((820, 1180), True)):
            page.look(*size, dark=dark, phone=phone)
            page.goto(offline.url)
            assert fits(page) and page.js(PALE) == [] and page.js(NAMELESS) == [], (dark, size)
    assert page.js("document.querySelectorAll('main, h1').length") == 2
    assert page.problems == []


def test_by_keyboard_alone(offline: Site, tab: Tab) -> None:
    """Tab walks to a star of the first film, Enter rates it; focus stays in the column."""
    page = tab()
    page.look(*DESK)
    page.goto(offline.url)
    first = names(page, 4)[0]
    page.js("document.querySelector('#person-3 [data-key=more]').focus()")
    for _ in range(40):
        page.press("Tab", 9)
        if page.js("document.activeElement.matches('#person-4 .films .star[value=\"5\"]')"):
            break
    page.press("Enter", 13, "\r")
    page.wait("document.querySelector('#person-4 .changed')")
    assert first not in names(page, 4) and page.js("document.activeElement.closest('#person-4') !== null")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.problems == []


def test_on_a_phone_one_person_at_a_time(offline: Site, tab: Tab) -> None:
    page = tab()
    page.look(*PHONE, phone=True)
    page.goto(offline.url)
    visible = "[...document.querySelectorAll('.device')].filter(e => e.checkVisibility()).map(e => e.dataset.number)"
    assert page.js(visible) == ["1"]
    page.click('[data-show="3"]')
    assert page.js(visible) == ["3"] and page.js("location.search") == "?person=3"
    look(page, 3, "search")
    page.click("#person-3 input[type=search]")
    page.type("godf")
    page.wait("document.querySelector('#person-3 .films').innerText.includes('Godfather')")
    assert page.js("document.activeElement.value") == "godf"  # typing goes on while pieces are swapped
    page.click("#person-3 [aria-label='5 stars']")
    page.wait("document.querySelector('#person-3 .star.lit')")
    smallest = page.js(
        "Math.min(...[...document.querySelectorAll('#person-3 button')].filter(e => e.checkVisibility())"
        ".map(e => Math.min(e.getBoundingClientRect().height)))"
    )
    assert smallest >= 36 and fits(page)
    assert page.problems == []


def test_reasons_open_and_stay_open_and_nothing_jumps(offline: Site, tab: Tab) -> None:
    page = tab()
    page.look(*DESK)
    page.goto(offline.url)
    if page.js("!!document.querySelector('#person-1 .begin')"):
        begin(page, 1, TASTES[0])
    page.js(SHIFTS)
    page.click("#person-1 .why summary")
    assert page.wait("document.querySelector('#person-1 .why[open] .sum')")
    offline.app.people[0].refresh()  # something happens elsewhere
    seen = offline.app.people[0].revision
    page.wait(f"document.querySelector('#person-1 .who').dataset.revision == {seen}")
    assert page.js("document.querySelector('#person-1 .why').open")
    jumped = page.js("globalThis.jumped")
    assert sum(each["value"] for each in jumped) < 0.05, jumped
    assert page.problems == []


def test_without_scripts_every_button_still_works(offline: Site, tab: Tab) -> None:
    page = tab()
    page.look(*DESK)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.goto(offline.url)
    before = len(offline.app.people[1].opinions())
    page.click("#person-2 .film [aria-label='4 stars']")
    page.wait("location.search === '?person=2' && document.readyState === 'complete'")
    assert len(offline.app.people[1].opinions()) == before + 1
    look(page, 2, "privacy")
    assert "What left this device" in page.text("#person-2") and "Nothing" in page.text("#person-2 .big")


def test_deletion_shows_its_receipt(offline: Site, tab: Tab) -> None:
    page = tab()
    page.look(*DESK)
    page.goto(offline.url)
    look(page, 4, "privacy")
    page.click("#person-4 details.danger summary")
    page.click('#person-4 [data-key="really"]')
    page.wait("document.querySelector('#person-4 .receipt')")
    assert "key is destroyed" in page.text("#person-4 .receipt")
    assert not offline.app.people[3].opinions() and page.problems == []


def test_an_open_tab_is_renewed_while_its_search_field_has_the_focus(offline: Site, tab: Tab) -> None:
    """And what is being typed stays."""
    page, ben = tab(), offline.app.people[1]
    page.look(*DESK, still=True)
    page.goto(offline.url)
    look(page, 1, "search")
    look(page, 2, "privacy")
    page.click('#person-1 [data-key="query"]')
    page.type("ra")
    ben.training = True
    Book(store_of(ben.client)).note("charged", time.time(), job="ab" * 16, round=1, epsilon=600.0, delta=1e-6)
    try:
        page.wait("document.querySelector('#person-2').innerText.includes('ε 600 of')")
    finally:
        ben.training = False
    assert page.js("document.activeElement.dataset.key") == "query"
    assert page.js("document.activeElement.value") == "ra"
    assert page.problems == []


def test_tabs_say_that_the_app_was_stopped_and_load_anew_when_it_is_there_again(
    tmp_path: Path, tab: Tab
) -> None:
    page, port = tab(), 0
    for k in range(2):
        site = serve(tmp_path / str(k), 2, offline=True, port=port)
        made = next(site)
        if not k:
            port = int(made.url.rstrip("/").rpartition(":")[2])
            page.look(*DESK, still=True)
            page.goto(made.url)
            page.js("globalThis.here = 1")
        page.wait("document.getElementById('away').hidden && document.readyState === 'complete'")
        if k:
            page.wait("!globalThis.here")  # the page of the new start: its buttons work
            look(page, 1, "privacy")
        for _ in site:
            raise AssertionError("served twice")
        page.wait("!document.getElementById('away').hidden")


def test_people_train_together_and_see_their_lists_change(online: Site, tab: Tab) -> None:
    """Events, joining, rounds under secure aggregation, a signed version, verified updates, changed lists."""
    page, app = tab(), online.app
    page.look(*DESK, still=True)
    page.goto(online.url)
    for number, genre in enumerate(TASTES, 1):
        begin(page, number, genre)
    assert page.js("document.querySelector('[data-key=train]').disabled")
    for number in (1, 2, 3, 4):
        look(page, number, "privacy")
        switch(page, number, "train")
    for number in (1, 2, 4):
        look(page, number, "list")
    page.click("#person-1 .why summary")
    picture(page, "before")
    before = {number: names(page, number) for number in (1, 2, 4)}
    page.click('[data-key="train"]')
    page.wait("document.querySelector('.stages .now')")
    page.wait("document.querySelector('.journal').innerText.includes('computes its update')", 60)
    picture(page, "training")
    page.wait(
        "document.querySelector('.stages .done:last-child') || document.querySelector('.stages .failed')", 240
    )
    assert not app.together.progress.failed, app.together.progress.text
    assert "Model version 2" in page.text("#service") and "4 devices learned together" in page.text(
        "#service"
    )
    for number in (1, 2, 4):
        page.wait(
            f"document.querySelector('#person-{number} .changed')?.innerText.includes('model version 2')"
        )
    assert any(names(page, number) != before[number] for number in before)
    assert page.js("document.querySelectorAll('.mark').length") > 0
    picture(page, "after")
    page.look(*DESK, dark=True)
    picture(page, "dark")
    page.look(*PHONE, phone=True)
    picture(page, "phone-list")
    page.click('[data-show="3"]')
    picture(page, "phone-privacy")
    assert "2 rounds of training" in page.text("#person-3 .left") and "ε 600" in page.text("#person-3")
    for person in app.people:
        report = person.client.privacy_report()
        assert report.lifetime.epsilon == pytest.approx(600, rel=0.01) and report.bytes_up > 1_000
        assert all(entry["aggregator"] == "secagg" for entry in report.left)
    said = app.journal.path.read_text()
    places = [said.index(text) for text in STORY]
    assert places == sorted(places), said
    assert page.problems == []
    if PICTURES:
        (Path(PICTURES) / "example-app.log").write_text(said)


STORY = (
    "ratings kept, sealed; nothing sent",
    "agreed to training together",
    "opened for 4 devices",
    "has joined; waits for the others",
    "computes its update on its own ratings",
    "round 1: only the sum of 4 updates",
    "round 2: only the sum of 4 updates",
    "version 2 signed and promoted",
    "version 2 fetched",
    "list changed",
)
