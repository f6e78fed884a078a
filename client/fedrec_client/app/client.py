"""The client object that an app embeds: recommendations from data that stays on the device.

    with Client.open(folder, population="movies-en", trust="root.json", server="models.example.org:443") as client:
        rec = client.recommend(n=20)
        client.log_event("play", item="tt0133093", rec=rec.id)

No call takes an id of a user. Consent is asked inside each call. `recommend`, `similar`, `explain` and `log_event`
never touch a network; `check_for_update` and `train_if_eligible` do, when the app calls them and never by
themselves. Safe for several threads. Out of scope: how lists are made (`fedrec.ranking`), what is checked of a new
model (`model_updates`), how training is carried out (`training`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedrec.core.errors import DataError, ServiceError
from fedrec.ranking.pipeline import RecommendationRequest
from fedrec_client.app import _server_calls as server_calls
from fedrec_client.app._client_state import ClientState, Setup
from fedrec_client.app._lists import Lists, make_request
from fedrec_client.app._privacy_report import PrivacyReport, make_report
from fedrec_client.store.base import Receipt, Retention, Store
from fedrec_client.store.events import Event, EventType, Scalar
from fedrec_client.store.exporting import export_lines, write_lines
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.eligibility import Conditions, eligible
from fedrec_client.terms.participation import Book
from fedrec_client.terms.platform import Platform
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.results import (
    Eligibility,
    ModelInfo,
    Reasons,
    Recommendation,
    Similar,
    Status,
    TrainingReport,
)
from fedrec_client.updates.transport import Transport

if TYPE_CHECKING:  # loaded when a session begins
    from fedrec_client.training.device_service import DeviceService

#: So long `close` waits for a training session to note its end.
CLOSE_SECONDS = 3.0


class Client:
    """See the module; build it with `open`."""

    def __init__(
        self,
        setup: Setup,
        store: Store,
        transport: Transport | None,
        training: DeviceService | None = None,
    ) -> None:
        self._transport, self._training = transport, training
        self._state = ClientState(setup, store)
        self._lists = Lists(self._state)
        self._network, self._stop = threading.Lock(), threading.Event()
        self._session, self._closed = threading.Lock(), False

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        population: str,
        trust: str | Path | bytes,
        server: str | Transport | None = None,
        training_server: str | DeviceService | None = None,
        platform: Platform | None = None,
        store: Store | None = None,
        policy: Policy | None = None,
        retention: Retention | None = None,
        passphrase: str | None = None,
        start_model: str | Path | None = None,
        repair: bool = False,
        **connection: Any,
    ) -> Self:
        """The client of a folder; the first time it is made. Nothing is sent.

        Args:
            folder: of this app on this device.
            population: whose models, e.g. "movies-en".
            trust: root metadata of the repository, as bytes or as the file `root.json`.
            server: "host:port" of a model service, "https://..." of its files on any web server, a transport, or
                None: never ask.
            training_server: "host:port" of a device service, a connection to one, or None: never train.
            platform: tells the state of the device.
            store: None: sealed on disk in the folder.
            policy: limits on training.
            retention: which events are kept.
            passphrase: wraps the store's key.
            start_model: folder of a signed model that the app brings (`fedrec-server model bundle`), used while
                there is no other.
            repair: recover what is sound of a damaged store.
            connection: for servers given as text: see `GrpcChannel`, `HttpsFiles`.

        Raises:
            StoreError: the store is locked, damaged or cannot be written.
            DataError: the population cannot be one.
            RunError: the root metadata cannot be read.
        """
        setup = Setup.make(
            folder,
            population,
            trust,
            platform=platform,
            policy=policy,
            retention=retention,
            passphrase=passphrase,
            start_model=start_model,
        )
        server_calls.check_connection(connection, server, training_server)
        transport = server_calls.connect(server, connection)
        training = server_calls.connect_training(training_server, connection)
        return cls(setup, store or setup.open_store(repair=repair), transport, training)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a training session that is under way, let the connection go, close the store."""
        self._closed = True
        self._stop.set()
        # It returns within 100 ms, when it has noted its end.
        ended = self._session.acquire(timeout=CLOSE_SECONDS)
        try:
            with self._state.lock:
                for connection in (self._transport, self._training):
                    if connection is not None:
                        connection.close()
                self._store.close()
        finally:
            if ended:
                self._session.release()

    # Consent

    @property
    def consent(self) -> Consent:
        """As it is."""
        return self._state.consent

    def set_consent(self, consent: Consent) -> None:
        """Set what the user agrees to; withdrawing training ends a session and deletes all that is queued."""
        if self.consent.train and not consent.train:
            self._stop.set()
        self._state.set_consent(consent)

    # Recommendations

    def recommend(
        self,
        n: int = 20,
        request: RecommendationRequest | None = None,
        **constraints: Any,
    ) -> Recommendation:
        """A list for this user; no network.

        Args:
            n: length.
            request: the whole request, in the place of n and `constraints`.
            constraints: fields of `RecommendationRequest`: candidates, exclude, exclude_seen, allow, deny, rules,
                diversity, exploration, freshness, half_life_days.

        Raises:
            DataError: a constraint is not valid.
        """
        return self._lists.recommend(request or make_request(n, constraints))

    def similar(self, item: str, n: int = 10) -> tuple[Similar, ...]:
        """Items like one; the same for everyone.

        Raises:
            DataError: the model does not know the item, or there is no model.
        """
        return self._lists.similar(item, n)

    def explain(self, item: str, rec: Recommendation | None = None) -> Reasons:
        """Why an item has its score, from this user's own history; contributions and base add up to the score.

        Args:
            item: of the model.
            rec: list in which it was shown; when another model made it, the answer would be about other scores.

        Raises:
            DataError: the model does not know the item, there is no model, or the list was made by another.
        """
        return self._lists.explain(item, rec)

    # Events

    def log_event(
        self,
        type: str | EventType,
        item: str,
        *,
        value: float | None = None,
        rec: str | None = None,
        time: float | None = None,
        event_id: str | None = None,
        name: str | None = None,
        context: Mapping[str, Scalar] | None = None,
    ) -> str:
        """Keep what the user did, on this device only; it counts in the next recommendation.

        Args:
            type: "impression", "view", "play", "purchase", "like", "dislike", "rating", "hide" or "custom".
            item: the app's id; the model need not know it.
            value: a rating from 0 to 5, seconds played, a price.
            rec: id of the recommendation in which it was shown: joins place, propensity and model to the event.
            time: seconds since 1970; None: now.
            event_id: the app's own, so that telling twice is harmless; None: a fresh one.
            name: of a custom event.
            context: small facts of the app.

        Returns:
            The event's id.

        Raises:
            ConsentRequired: the user does not want to be remembered.
            DataError: the event cannot be one.
            StoreError: it was not kept.
        """
        self.consent.need("personalize")
        event = Event.of(
            type,
            item,
            self._state.now() if time is None else time,
            stamped=time is None,
            value=value,
            recommendation=rec,
            name=name,
            context={**(context or {}), **self._lists.shown(rec, item)},
            id=event_id,
        )
        self._state.add(event)
        return event.id

    def events(self, types: Collection[EventType] | None = None) -> list[Event]:
        """What is kept of the user, oldest first; for the app's own pages, like a list of what was rated."""
        with self._state.lock:
            return self._store.events(types=types)

    # Models

    def check_for_update(self) -> ModelInfo | None:
        """Ask the service for a newer model and take it into use; None when there is none.

        Raises:
            UpdateRejected: what came is refused, by its subclass; the model in use serves on.
            ServiceError: the service cannot be reached or is busy; the model in use serves on.
        """
        transport = self._service()
        try:
            with self._network, self._state.noting_errors():
                info = server_calls.update(self._state, transport)
                self._state.last_error = ""
        finally:  # time that passes counts, too, while a service hides what is new
            with self._state.lock:
                self._state.tidy_up()
        return info

    # Training

    def eligible(self, conditions: Conditions | None = None) -> Eligibility:
        """Whether this device may train now, with all reasons against it; tells no one."""
        state = self._state
        with state.lock:
            book = Book(state.store)
            return eligible(state.device(), book, state.setup.policy, conditions or Conditions())

    def train_if_eligible(
        self,
        conditions: Conditions | None = None,
        deadline_seconds: float = 60.0,
        token: str = "",
        on_step: Callable[[str], None] | None = None,
    ) -> TrainingReport:
        """Take part in rounds of a training job, if there is one, this device may, and the app's policy allows it.

        Blocks for at most the deadline; `stop_training`, withdrawing consent and `close` end it within 100 ms. A
        round is charged when the masked vector is about to leave; a session that ends before that costs nothing, and
        says so in its report.

        Args:
            conditions: under which the device trains; None: the usual ones.
            deadline_seconds: for the whole call.
            token: of the app's own login, where the operator asks for one to join; single use.
            on_step: told what happens, from another thread: "waiting", "joined", and the kind of each question.

        Raises:
            ConsentRequired: the user has not agreed to training.
            DataError: the client was opened without a training server.
            ServiceError: the service cannot be reached or is busy.
            UpdateRejected: the task is not genuine.
            EnvironmentProblem: the model needs a package that is not installed here.
        """
        self.consent.need("train")
        if self._training is None:
            raise DataError("this client has no training_server: give its address to Client.open")
        transport, service = self._service(), self._training
        verdict = self.eligible(conditions)
        if not verdict.ok:
            why = f"not eligible: {'; '.join(verdict.reasons)}"
            return TrainingReport(False, 0, 0, 0.0, self._state.setup.now(), why)
        with self._network, self._session, self._state.noting_errors():
            self._stop.clear()
            return server_calls.train(
                self._state,
                transport,
                service,
                deadline_seconds,
                lambda: self._closed or self._stop.is_set() or not self.consent.train,
                token=token,
                on_step=on_step,
            )

    def stop_training(self) -> None:
        """End a session that is under way in another thread."""
        self._stop.set()

    # The user's rights

    def privacy_report(self) -> PrivacyReport:
        """What left this device, when, how protected, and what it cost of the budget."""
        with self._state.lock:
            setup = self._state.setup
            return make_report(self._store, self.consent, setup.policy, setup.now())

    def export_data(self, path: str | Path) -> int:
        """Everything kept about the user as JSON lines into a new file for its owner only; how many lines.

        Raises:
            DataError: the file exists or cannot be written.
        """
        with self._state.lock:
            lines = list(export_lines(self._store))
        write_lines(Path(path).expanduser(), lines)
        return len(lines)

    def delete_data(self, since: float | None = None, item: str | None = None) -> Receipt:
        """Delete everything kept about the user, or the events from a time on, of one item, or both.

        What is deleted was sealed under a key that is destroyed: once this returns, no file of the store and no copy
        of one from before opens to it. What stays: the public model, and the sum of what was spent of the privacy
        budget, which no deletion can take back; the receipt says so.

        Args:
            since: seconds since 1970; None: from the beginning.
            item: the app's id; None: of any.

        Raises:
            StoreFull: there is no room for what stays; nothing was deleted.
            StoreError: it was cut off; it goes on when the client is opened again.
        """
        self._stop.set()
        with self._state.lock:
            if since is not None or item is not None:
                self._lists.forget_user()
                return self._state.delete_events(since, item)
            self._lists.forget()
            return self._state.erase()

    def status(self) -> Status:
        """For bug reports: versions and states; no item, no event."""
        return self._state.status(connected=self._transport is not None)

    # Inside

    @property
    def _store(self) -> Store:
        return self._state.store

    def _service(self) -> Transport:
        if self._transport is None:
            raise ServiceError("this client has no server: open it with server=")
        return self._transport
