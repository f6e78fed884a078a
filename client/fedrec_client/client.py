"""The client object that an app embeds: recommendations from data that stays on the device.

    with Client.open(folder, population="movies-en", trust="root.pub", server="models.example.org:443") as client:
        rec = client.recommend(n=20)
        client.log_event("play", item="tt0133093", rec=rec.id)

No call takes an id of a person. Consent is asked inside each call. `recommend`, `similar`, `explain` and `log_event`
never touch a network; `check_for_update` and `train_if_eligible` do, when the app calls them and never by
themselves. Safe for several threads. Out of scope: how lists are made (`fedrec.ranking`), what is checked of a new
model (`model_updates`), how training is carried out (`training`).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedrec import __version__
from fedrec.errors import DataError, FedrecError, ServiceError, StoreError
from fedrec.ranking.best import best
from fedrec.ranking.pipeline import Ranked, Wanted, rank
from fedrec.ranking.serving import History, Person
from fedrec.wire.files import atomic_write
from fedrec.wire.manifest import check_population
from fedrec.wire.signing import KEY_BYTES, read_public
from fedrec_client import metrics
from fedrec_client.consent import Consent, read_consent, write_consent
from fedrec_client.eligibility import Conditions, Device, eligible
from fedrec_client.events import Event, EventType, Scalar
from fedrec_client.model_updates import RECORD as MODELS_RECORD
from fedrec_client.model_updates import Models, Served
from fedrec_client.participation import Book
from fedrec_client.platform import Platform, SystemPlatform
from fedrec_client.policy import Policy
from fedrec_client.privacy_report import PrivacyReport, make_report
from fedrec_client.profile import Profile
from fedrec_client.results import (
    Because,
    Eligibility,
    ModelInfo,
    Reasons,
    Recommendation,
    Recommended,
    Similar,
    Status,
    TrainingReport,
)
from fedrec_client.store.base import Receipt, Retention, Store
from fedrec_client.store.exporting import export_lines
from fedrec_client.store.sqlite import SqliteStore
from fedrec_client.store.vault import open_vault
from fedrec_client.transport import CheckIn, CheckInAnswer, Transport

DAY = 86_400.0
#: Lists whose places are remembered, to join what happens to them.
RECENT_LISTS = 200
#: Time that retention believes in moves at most so far at once: a clock that jumps ahead deletes nothing for it.
MAX_CLOCK_STEP = 7 * DAY
CLOCK, TOKEN, METRICS_DAY = "clock", "token", "metrics"
#: Records whose values are keys and are never exported.
SECRETS = ("training/",)


class Client:
    """See the module; build it with `open`."""

    def __init__(
        self,
        folder: Path,
        population: str,
        root: bytes,
        store: Store,
        transport: Transport | None,
        platform: Platform,
        policy: Policy,
        retention: Retention,
        passphrase: str | None,
    ) -> None:
        self._folder, self._population, self._root = folder, population, root
        self._store, self._transport, self._platform = store, transport, platform
        self._policy, self._retention, self._passphrase = policy, retention, passphrase
        self._rng = np.random.default_rng()
        self._lock, self._network = threading.RLock(), threading.Lock()
        self._stop = threading.Event()
        self._last_error = ""
        self._consent = Consent()
        self._begin()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        population: str,
        trust: str | Path | bytes,
        server: str | Transport | None = None,
        platform: Platform | None = None,
        store: Store | None = None,
        policy: Policy | None = None,
        retention: Retention | None = None,
        passphrase: str | None = None,
        repair: bool = False,
        **connection: Any,
    ) -> Self:
        """The client of a folder; the first time it is made. Nothing is sent.

        Args:
            folder: of this app on this device.
            population: whose models, e.g. "movies-en".
            trust: public root key: its 32 bytes, or a file of 64 hexadecimal digits.
            server: "host:port" of a model service, a transport, or None: never ask anybody.
            platform: tells the state of the device.
            store: None: sealed on disk in the folder.
            policy: limits on training.
            retention: which events are kept.
            passphrase: wraps the store's key.
            repair: recover what is sound of a damaged store.
            connection: for a server given as text: see `GrpcTransport`.

        Raises:
            StoreError: the store is locked, damaged or cannot be written.
            DataError: the population cannot be one.
            RunError: the root key cannot be read.
        """
        folder = Path(folder).expanduser()
        root = trust if isinstance(trust, bytes) else read_public(Path(trust).expanduser())
        if len(root) != KEY_BYTES:
            raise DataError(f"trust of {len(root)} bytes: expected the {KEY_BYTES} of a public root key")
        try:
            check_population(population)
        except FedrecError as error:
            raise DataError(str(error)) from error
        transport = _connect(server, connection)
        opened = store or SqliteStore.open(folder, open_vault(folder, passphrase), repair=repair)
        return cls(
            folder,
            population,
            root,
            opened,
            transport,
            platform or SystemPlatform(),
            policy or Policy(),
            retention or Retention(),
            passphrase,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a training session that is under way, let the connection go, close the store."""
        self._stop.set()
        with self._lock:
            if self._transport is not None:
                self._transport.close()
            self._store.close()

    # Consent

    @property
    def consent(self) -> Consent:
        """As it is."""
        return self._consent

    def set_consent(self, consent: Consent) -> None:
        """Set what the person agrees to; withdrawing training ends a session and deletes all that is queued."""
        withdrawn = self._consent.train and not consent.train
        if withdrawn:
            self._stop.set()
        with self._lock:
            with self._store.transaction():
                write_consent(self._store, consent, self._platform.now())
                if not consent.train:
                    for name in self._store.names("training/"):
                        self._store.remove(name)
            self._consent = consent

    # Recommendations

    def recommend(
        self,
        n: int = 20,
        wanted: Wanted | None = None,
        **wishes: Any,
    ) -> Recommendation:
        """A list for this person; no network.

        Args:
            n: length.
            wanted: all wishes at once, in the place of n and `wishes`.
            wishes: fields of `fedrec.ranking.pipeline.Wanted`: candidates, exclude, exclude_seen, allow, deny, rules,
                diversity, exploration, freshness, half_life_days.

        Raises:
            DataError: a wish that cannot be.
        """
        wanted = wanted or _wanted(n, wishes)
        with self._lock:
            served = self._models.served
            if served is None:
                return Recommendation(secrets.token_hex(16), (), 0)
            person, seen = self._person(served)
            against = self._profile.against if self._consent.personalize else frozenset()
        if against:
            wanted = dataclasses.replace(wanted, exclude={*wanted.exclude, *against})
        made = rank(served.shelf, person, seen, wanted, rng=self._rng, now=self._platform.now())
        return self._told(served, made)

    def similar(self, item: str, n: int = 10) -> tuple[Similar, ...]:
        """Items like one; the same for everybody.

        Raises:
            DataError: the model does not know the item, or there is no model.
        """
        served = self._served()
        place = _place(served, item)
        likeness = served.shelf.model.similar(place).astype(np.float32, copy=True)
        likeness[place] = -np.inf
        items = served.shelf.items
        return tuple(
            Similar(items.ids[k], items.titles[k], float(likeness[k])) for k in best(likeness, n).tolist()
        )

    def explain(self, item: str, rec: Recommendation | None = None) -> Reasons:
        """Why an item has its score, from this person's own history; contributions and base add up to the score.

        Args:
            item: of the model.
            rec: list in which it was shown; when another model made it, the answer would be about other scores.

        Raises:
            DataError: the model does not know the item, there is no model, or the list was made by another.
        """
        with self._lock:
            served = self._served()
            if rec is not None and rec.model_version != served.version:
                raise DataError(
                    f"the list was made by model version {rec.model_version}, {served.version} serves now: "
                    "recommend again"
                )
            place = _place(served, item)
            person, _ = self._person(served)
        told = served.shelf.model.explain(person, place)
        items = served.shelf.items
        order = np.argsort(-told.contributions, kind="stable").tolist()
        because = tuple(
            Because(items.ids[int(k)], items.titles[int(k)], float(told.contributions[at]))
            for at in order
            for k in person.history.item[at : at + 1]
        )
        return Reasons(item, items.titles[place], told.score, told.base, because)

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
        """Keep what the person did, on this device only; it counts in the next recommendation.

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
            ConsentRequired: the person does not want to be remembered.
            DataError: the event cannot be one.
            StoreError: it was not kept.
        """
        self._consent.need("personalize")
        try:
            kind = EventType(type)
        except ValueError as error:
            raise DataError(
                f"event type {type!r:.40}: expected one of {', '.join(each.value for each in EventType)}"
            ) from error
        facts: dict[str, Scalar] = {**(context or {}), **self._shown(rec, item)}
        optional = {} if event_id is None else {"id": event_id}
        event = Event(
            kind,
            item,
            self._platform.now() if time is None else time,
            value=value,
            recommendation=rec,
            name=name,
            context=facts,
            **optional,
        )
        with self._lock:
            if self._store.add_event(event):
                self._take_in(event)
        return event.id

    def events(self, types: Collection[EventType] | None = None) -> list[Event]:
        """What is kept of the person, oldest first; for the app's own pages, like a list of what was rated."""
        with self._lock:
            return self._store.events(types=types)

    # Models

    def check_for_update(self) -> ModelInfo | None:
        """Ask the service for a newer model and take it into use; None when there is none.

        Raises:
            UpdateRejected: what came is refused, by its subclass; the model in use serves on.
            ServiceError: the service cannot be reached or is busy; the model in use serves on.
        """
        transport = self._service()
        with self._network:
            try:
                answer = self._check_in(transport, trains=False)
                info = self._models.update(transport, answer.model_version) if answer.model_version else None
                self._send_metrics(transport)
            except FedrecError as error:
                self._last_error = str(error)
                raise
            self._last_error = ""
        with self._lock:
            self._tidy_up()
        return info

    # Training

    def eligible(self, conditions: Conditions | None = None) -> Eligibility:
        """Whether this device may train now, with all reasons against it; tells nobody."""
        with self._lock:
            device = Device(
                self._consent,
                self._platform,
                self._folder,
                len(self._profile),
                self._models.state,
                self._platform.now(),
            )
            return eligible(device, Book(self._store), self._policy, conditions or Conditions())

    def train_if_eligible(
        self, conditions: Conditions | None = None, deadline_seconds: float = 60.0
    ) -> TrainingReport:
        """Take part in a training campaign, if there is one, this device may, and the app's policy allows it.

        Blocks for at most the deadline; `stop_training`, withdrawing consent and `close` end it within 100 ms.

        Raises:
            ConsentRequired: the person has not agreed to training.
            ServiceError: the service cannot be reached or is busy.
            UpdateRejected: the task is not genuine.
        """
        self._consent.need("train")
        transport = self._service()
        verdict = self.eligible(conditions)
        if not verdict.ok:
            return TrainingReport(
                False, 0, 0, 0.0, self._platform.now(), f"not eligible: {'; '.join(verdict.reasons)}"
            )
        from fedrec_client.training.session import Session

        with self._network:
            self._stop.clear()
            try:
                return Session(
                    store=self._store,
                    transport=transport,
                    platform=self._platform,
                    policy=self._policy,
                    population=self._population,
                    root=self._root,
                    served=self._served(),
                    profile=self._profile,
                    check_in=lambda: self._check_in(transport, trains=True),
                    min_serial=self._models.known.serial,
                    now=self._models.now,
                    stopped=lambda: self._stop.is_set() or not self._consent.train,
                ).run(deadline_seconds)
            except FedrecError as error:
                self._last_error = str(error)
                raise

    def stop_training(self) -> None:
        """End a session that is under way in another thread."""
        self._stop.set()

    # The person's rights

    def privacy_report(self) -> PrivacyReport:
        """What left this device, when, how protected, and what it cost of the budget."""
        with self._lock:
            return make_report(self._store, self._consent, self._policy, self._platform.now())

    def export_data(self, path: str | Path) -> int:
        """Everything kept about the person as JSON lines into a new file for its owner only; how many lines.

        Raises:
            DataError: the file exists or cannot be written.
        """
        path = Path(path).expanduser()
        if path.exists():
            raise DataError(f"{path} is there already: give a new file")
        with self._lock:
            lines = list(export_lines(self._store, hidden=SECRETS))
        try:
            atomic_write(path, "".join(f"{line}\n" for line in lines).encode())
            path.chmod(0o600)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): give another") from error
        return len(lines)

    def delete_data(self, since: float | None = None) -> Receipt:
        """Delete everything kept about the person, with the key, or the events from a time on.

        What stays: the public model, and the sum of what was spent of the privacy budget, which no deletion can take
        back; the receipt says so.
        """
        self._stop.set()
        now = self._platform.now()
        with self._lock:
            if since is not None:
                count = self._store.delete_events(since)
                self._profile = Profile(self._store.events())
                self._persons.clear()
                return Receipt(secrets.token_hex(8), now, count, 0, 0, False, ("events before that time",))
            carried = Book(self._store).carry(now)
            models = self._store.get(MODELS_RECORD)
            receipt = self._store.destroy(now)
            self._store = self._fresh_store()
            with self._store.transaction():
                if models is not None:
                    self._store.put(MODELS_RECORD, models)
                if carried is not None:
                    Book(self._store).note("carried", now, **carried)
            self._begin()
        remaining = ["the public model"]
        if carried is not None:
            remaining.append(
                "the sum of the privacy budget that was spent: sums that were published cannot be recalled"
            )
        return dataclasses.replace(receipt, remaining=tuple(remaining))

    def status(self) -> Status:
        """For bug reports: versions and states; no item, no event."""
        with self._lock:
            served = self._models.served
            return Status(
                __version__,
                self._population,
                served.version if served else 0,
                self._models.state,
                dataclasses.asdict(self._consent),
                self._store.describe(),
                self._last_error,
                self._transport is not None,
            )

    # Inside

    def _begin(self) -> None:
        """Read what the store knows."""
        self._consent = read_consent(self._store)
        self._models = Models(
            self._folder / "models",
            self._root,
            self._population,
            self._store,
            __version__,
            self._platform.now,
        )
        self._profile = Profile(self._store.events())
        self._newest_event = max((event.time for event in self._store.events()), default=float("-inf"))
        self._lists: OrderedDict[str, tuple[int, Ranked]] = OrderedDict()
        self._persons: dict[tuple[int, int], tuple[Person, Any]] = {}
        self._tidy_up()

    def _fresh_store(self) -> Store:
        if isinstance(self._store, SqliteStore):
            return SqliteStore.open(self._folder, open_vault(self._folder, self._passphrase))
        return type(self._store)()

    def _served(self) -> Served:
        served = self._models.served
        if served is None:
            raise DataError("there is no model yet: check_for_update() first")
        return served

    def _person(self, served: Served) -> tuple[Person, Any]:
        """The person for a model, folded in once per change of the history; places of what was seen."""
        if not self._consent.personalize:
            nobody = History.of(served.shelf.items, ())
            return served.shelf.model.fold_in(nobody), nobody.item
        key = (served.version, self._profile.revision)
        if key not in self._persons:
            person = served.shelf.model.fold_in(self._profile.history(served.shelf.items))
            self._persons = {key: (person, person.history.item)}
        return self._persons[key]

    def _told(self, served: Served, made: Ranked) -> Recommendation:
        rec = secrets.token_hex(16)
        with self._lock:
            self._lists[rec] = (served.version, made)
            while len(self._lists) > RECENT_LISTS:
                self._lists.popitem(last=False)
        items = served.shelf.items
        return Recommendation(
            rec,
            tuple(
                Recommended(items.ids[place], items.titles[place], score, chance, source)
                for place, score, chance, source in zip(
                    made.items, made.scores, made.propensities, made.sources, strict=True
                )
            ),
            served.version,
            made.unknown,
        )

    def _shown(self, rec: str | None, item: str) -> dict[str, Scalar]:
        """Where an item stood in a recent list."""
        with self._lock:
            known = self._lists.get(rec or "")
            served = self._models.served
        if known is None or served is None or served.version != known[0]:
            return {}
        version, made = known
        place = served.shelf.items.index(item)
        if place not in made.items:
            return {}
        at = made.items.index(place)
        return {
            "place": at + 1,
            "propensity": made.propensities[at],
            "source": made.sources[at],
            "model_version": version,
        }

    def _take_in(self, event: Event) -> None:
        if event.time >= self._newest_event:
            self._newest_event = event.time
            self._profile.add(event)
        else:  # told late: its place in the order decides
            self._profile = _later(Profile(self._store.events()), self._profile)

    def _service(self) -> Transport:
        if self._transport is None:
            raise ServiceError("this client has no server: open it with server=")
        return self._transport

    def _check_in(self, transport: Transport, *, trains: bool) -> CheckInAnswer:
        served = self._models.served
        version = served.version if served else 0
        return transport.check_in(CheckIn(self._population, self._token(), __version__, version, trains))

    def _token(self) -> str:
        """Random, anew every day."""
        day = metrics.day_of(self._platform.now())
        known = json.loads(self._store.get(TOKEN) or b"{}")
        if known.get("day") != day:
            known = {"day": day, "token": secrets.token_hex(16)}
            self._store.put(TOKEN, json.dumps(known).encode())
        return str(known["token"])

    def _send_metrics(self, transport: Transport) -> None:
        """Counters of yesterday, once, where the person has agreed."""
        today = metrics.day_of(self._platform.now())
        if not self._consent.metrics or int(self._store.get(METRICS_DAY) or b"-1") >= today:
            return
        start = (today - 1) * DAY
        events = [event for event in self._store.events(since=start) if event.time < start + DAY]
        noised = metrics.noised(metrics.counters(events))
        served = self._models.served
        with self._lock, self._store.transaction():
            self._store.put(METRICS_DAY, str(today).encode())
            size = len(json.dumps(noised))
            Book(self._store).note(
                "metrics", self._platform.now(), bytes=size, epsilon=metrics.EPSILON, day=today - 1
            )
        transport.send_metrics(self._population, served.version if served else 0, noised)

    def _tidy_up(self) -> None:
        """Retention, by a clock that a jump cannot hurry."""
        now = self._platform.now()
        before = float(self._store.get(CLOCK) or now)
        believed = min(now, before + MAX_CLOCK_STEP)
        if self._store.expire(self._retention, believed):
            self._profile = _later(Profile(self._store.events()), self._profile)
        if believed != before or self._store.get(CLOCK) is None:
            try:
                self._store.put(CLOCK, repr(believed).encode())
            except StoreError as error:  # a full disk must not keep an app from opening
                self._last_error = str(error)


def _later(fresh: Profile, old: Profile) -> Profile:
    """A profile read anew, with a revision that no earlier one had."""
    fresh.revision = old.revision + 1
    return fresh


def _wanted(n: int, wishes: dict[str, Any]) -> Wanted:
    try:
        return Wanted(n=n, **wishes)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(Wanted))
        raise DataError(f"recommend({', '.join(wishes)}=...): {error}; there are {known}") from error


def _place(served: Served, item: str) -> int:
    place = served.shelf.items.index(item)
    if place is None:
        raise DataError(
            f"item {item!r:.80}: model version {served.version} does not know it; give one it recommends"
        )
    return place


def _connect(server: str | Transport | None, connection: dict[str, Any]) -> Transport | None:
    if isinstance(server, str):
        from fedrec_client.grpc_transport import GrpcTransport

        return GrpcTransport(server, **connection)
    if connection:
        raise DataError(f"{', '.join(connection)}: only for a server given as 'host:port'")
    return server
