"""The HTTP layer: a page that works without scripts, and pieces of it for the script that swaps them in.

For this computer only. Every answer forbids scripts, styles and frames from elsewhere; every POST needs the token of
the page and an origin that is this one; a foreign Host is refused, which keeps a rebound name out. What is shown is
escaped by the templates. Out of scope: what the buttons do (`people`, `federation`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrec.core.errors import DataError, FedrecError
from films.catalogue import TASTES
from films.federation import Together
from films.journal import Journal
from films.people import Person
from films.services import ModelService
from films.views import choices, journal_view, person_view, service_view
from films.words import NotNowError, trouble

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
MAX_FORM_BYTES = 8_192
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # With "no-referrer" browsers send plain forms with the origin "null", which is refused below.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
#: Asked for by the script, which swaps pieces in; a form without it gets the whole page.
PIECES = "x-pieces"
Form = Mapping[str, str]


class ForeignFormError(NotNowError):
    """A form that this page did not make."""


class Guard:
    """Puts the headers on every answer and refuses what does not come from this page."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message["headers"] if pair[0].decode().lower() not in HEADERS]
                message["headers"] = [*kept, *named]
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if host not in self._hosts:
            return PlainTextResponse("this page answers on its own address only\n", 421)
        if request.method == "POST" and request.headers.get("origin", f"http://{host}") != f"http://{host}":
            return PlainTextResponse("a form of another page\n", 403)
        return None


@dataclass
class App:
    """Routes over the people of the page.

    Attributes:
        people: in order.
        service, together, journal: see there.
        hosts: names and ports under which the page is reached, e.g. "127.0.0.1:8080".
        token: that every form carries.
        start: random, so that open tabs notice that the app was started again.
    """

    people: list[Person]
    service: ModelService
    together: Together
    journal: Journal
    hosts: frozenset[str]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    start: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        self._pages = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.globals |= choices(self.people[0].catalogue) | {"token": self.token}

    def asgi(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/live", self._live),
                Route("/train", self._train, methods=["POST"]),
                Route("/people/{number:int}/export", self._export, methods=["POST"]),
                Route("/people/{number:int}/{action}", self._act, methods=["POST"]),
                Mount("/static", StaticFiles(directory=HERE / "static")),
            ],
            middleware=[Middleware(Guard, hosts=self.hosts)],
            exception_handlers={FedrecError: _told, Exception: _failed},
        )

    # Pages

    async def _page(self, request: Request) -> Response:
        shown = request.query_params.get("person", "1")
        return HTMLResponse(await run_in_threadpool(self._whole, int(shown) if shown.isdecimal() else 1))

    def _whole(self, shown: int) -> str:
        values = {
            "revisions": urlencode(self._revisions()),
            "people": [person_view(person) for person in self.people],
            "service": service_view(self.service, self.together),
            "journal": journal_view(self.journal),
            "shown": shown if any(person.number == shown for person in self.people) else 1,
        }
        return self._pages.get_template("page.html").render(values)

    def _person_piece(self, person: Person) -> str:
        return self._pages.get_template("person.html").render(person=person_view(person))

    def _service_piece(self) -> str:
        return self._pages.get_template("service.html").render(
            service=service_view(self.service, self.together)
        )

    def _journal_piece(self) -> str:
        return self._pages.get_template("journal.html").render(journal=journal_view(self.journal))

    async def _live(self, request: Request) -> Response:
        """What has changed since the page last asked."""
        known = dict(parse_qsl(request.url.query))
        return JSONResponse(await run_in_threadpool(self._changed, known))

    def _changed(self, known: Mapping[str, str]) -> dict[str, Any]:
        # Read before what they stand for: what changes in between is asked for again.
        revisions, pieces = self._revisions(), {}
        for person in self.people:
            if known.get(f"person-{person.number}") != revisions[f"person-{person.number}"]:
                pieces[f"person-{person.number}"] = self._person_piece(person)
        if known.get("service") != revisions["service"]:
            pieces["service"] = self._service_piece()
        if known.get("journal") != revisions["journal"]:
            pieces["journal"] = self._journal_piece()
        return {"pieces": pieces, "revisions": revisions, "busy": self.together.progress.running}

    def _revisions(self) -> dict[str, str]:
        """By piece; and of the app, which is another after every start and numbers its pieces anew."""
        people = {f"person-{person.number}": person.state for person in self.people}
        told = "-".join(people.values())
        service = {"service": f"{self.together.revision}-{told}", "journal": str(self.journal.last)}
        return people | service | {"app": self.start}

    # Actions

    async def _act(self, request: Request) -> Response:
        form = await self._form(request)
        person = self._person(request)
        action = ACTIONS.get(request.path_params["action"])
        if action is None:
            raise DataError("no such button")
        person.message = ""
        try:
            await run_in_threadpool(action, person, form)
        except FedrecError as error:
            log.info("%s: %s", request.path_params["action"], error)
            person.message = trouble(error)
            person.revision += 1
        return await self._answer(request, f"/?person={person.number}#person-{person.number}")

    async def _train(self, request: Request) -> Response:
        await self._form(request)
        try:
            await run_in_threadpool(self.together.start)
        except FedrecError as error:
            log.info("job not opened: %s", error)
            self.journal.service("Training", f"not opened: {trouble(error)}")
        return await self._answer(request, "/")

    async def _export(self, request: Request) -> Response:
        await self._form(request)
        person = self._person(request)
        name = f"{person.name.lower()}.jsonl"
        return Response(
            await run_in_threadpool(person.export),
            media_type="application/x-ndjson",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    async def _answer(self, request: Request, page: str) -> Response:
        if PIECES not in request.headers:
            return RedirectResponse(page, 303)
        known = dict(parse_qsl(request.headers[PIECES]))
        return JSONResponse(await run_in_threadpool(self._changed, known))

    async def _form(self, request: Request) -> Form:
        """The fields of a form that carries the token.

        Raises:
            ForeignFormError: it does not.
            DataError: it is too large.
        """
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > MAX_FORM_BYTES:
                raise DataError("a form that is too large")
        form = dict(parse_qsl(content.decode(errors="replace"), keep_blank_values=True))
        if not secrets.compare_digest(form.get("token", "").encode(), self.token.encode()):
            raise ForeignFormError("a form without this page's token: load the page again")
        return form

    def _person(self, request: Request) -> Person:
        number = request.path_params["number"]
        for person in self.people:
            if person.number == number:
                return person
        raise DataError("no such person")


def _search(person: Person, form: Form) -> None:
    person.search(form.get("query", ""))
    person.look("search")


def _begin(person: Person, form: Form) -> None:
    if form.get("genre") not in TASTES:
        raise DataError("a taste that there is not: choose one of those offered")
    person.begin_with(form["genre"])


def _tune(person: Person, form: Form) -> None:
    person.tune(form.get("only", ""), form.get("without", ""), form.get("variety", "off"), "explores" in form)


def _update(person: Person, form: Form) -> None:
    if not person.check_for_update():
        person.message = "There is no newer model."
        person.revision += 1


def _delete(person: Person, form: Form) -> None:
    person.delete()


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 3 else 0


ACTIONS: dict[str, Callable[[Person, Form], None]] = {
    "rate": lambda person, form: person.rate(form.get("item", ""), _number(form.get("stars", ""))),
    "hide": lambda person, form: person.hide(form.get("item", "")),
    "begin": _begin,
    "look": lambda person, form: person.look(form.get("tab", "")),
    "alike": lambda person, form: person.look_alike(form.get("item", "")),
    "search": _search,
    "tune": _tune,
    "more": lambda person, form: person.lengthen(),
    "consent": lambda person, form: person.consent_to(**{_consent(form): form.get("on") == "1"}),
    "state": lambda person, form: person.set_state(form.get("what", ""), form.get("on") == "1"),
    "limits": lambda person, form: person.set_careful(form.get("on") == "1"),
    "update": _update,
    "delete": _delete,
}


def _consent(form: Form) -> str:
    what = form.get("what", "")
    if what not in ("personalize", "train", "metrics"):
        raise DataError("a question that is not asked")
    return what


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, FedrecError)
    return PlainTextResponse(f"{trouble(error)}\n", 403 if isinstance(error, ForeignFormError) else 400)


async def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse("something went wrong; see the log of the app\n", 500)
