"""The command line: makes catalogue, service and devices, and serves the page until Ctrl-C or SIGTERM.

Exit status: 0 when it was told to end while it served, 130 when before that, 1 when it could not start.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import uvicorn

from fedrec.core.errors import FedrecError
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from films.catalogue import Catalogue, start_model
from films.federation import Together
from films.journal import Journal
from films.people import Person
from films.services import POPULATION, LoopbackService, ModelService, OfflineService
from films.web import App

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
#: Answers that are being given when the app is told to end may take so long.
GRACE_SECONDS = 2
NAMES = ("Ada", "Ben", "Chiara", "Dev", "Esra", "Femi", "Greta", "Hiro")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    serves = False
    try:
        with told_to_end(), socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", options.port))
            port = listener.getsockname()[1]
            _say("training the start model on the bundled data")
            with running(options.folder, options.people, port, offline=options.offline) as app:
                serves = True
                _say(f"open http://127.0.0.1:{port} (Ctrl-C ends it)")
                config = uvicorn.Config(
                    app.asgi(),
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    lifespan="off",
                    ws="none",
                    timeout_graceful_shutdown=GRACE_SECONDS,
                )
                uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return 0 if serves else INTERRUPTED
    except (FedrecError, OSError) as error:
        print(f"films: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    return 0


@contextmanager
def told_to_end() -> Iterator[None]:
    """SIGINT and SIGTERM end what is inside, once and alike; further ones change nothing, until the process is over.

    Uvicorn puts its own handlers in the place of these and, when it has ended, raises the signal again for them.

    Raises:
        KeyboardInterrupt: a signal came.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(each, end) for each in SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, handler)


@contextmanager
def running(
    folder: Path,
    people: int,
    port: int,
    *,
    offline: bool = False,
    start: Callable[[], tuple[ServingModel, Items]] = start_model,
) -> Iterator[App]:
    """Service and devices, switched on; off at the end.

    Args:
        folder: of everything; used again by the next start, except with `offline`.
        people: how many.
        port: under which the page will be reached.
        offline: without network and training, in a folder that is thrown away.
        start: makes the start model.
    """
    with ExitStack() as stack:
        if offline:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="films-")))
        made = start()
        catalogue, journal = Catalogue(made[1]), Journal(folder / "journal.log")
        service: ModelService = OfflineService(made) if offline else LoopbackService(folder / "service", made)
        stack.callback(service.stop)
        persons = []
        for k, name in enumerate(NAMES[:people], 1):
            person = Person(
                k,
                name,
                folder / "devices" / str(k),
                POPULATION,
                service.root,
                service.connect,
                service.connect_training,
                catalogue,
                journal,
            )
            stack.callback(person.close)
            persons.append(person)
            person.check_for_update()
            person.refresh()
        together = Together(service, persons, journal)
        stack.callback(together.stop)
        yield App(persons, service, together, journal, frozenset({f"127.0.0.1:{port}", f"localhost:{port}"}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="films", description="An example app: films, people, their devices."
    )
    parser.add_argument("--people", type=int, default=4, choices=range(2, len(NAMES) + 1), metavar="2..8")
    parser.add_argument("--port", type=int, default=8080, help="on 127.0.0.1; 0: a free one")
    parser.add_argument("--folder", type=Path, default=Path("runs/films"), help="kept for the next start")
    parser.add_argument("--offline", action="store_true", help="no network, no training, nothing kept")
    return parser


def _say(text: str) -> None:
    print(f"films: {text}", flush=True)  # noqa: T201 - a command line
