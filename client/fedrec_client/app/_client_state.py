"""What a client holds in memory of what its store knows: consent, models, the user's profile, and the time.

Everything here is read anew when the store is (`begin`), and kept in step with it between. Who changes it holds
`lock`. Out of scope: lists (`lists`), calls to a server (`server_calls`), the calls that an app makes (`client`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedrec import __version__
from fedrec.core.errors import DataError, FedrecError, StoreError
from fedrec.wire.manifest import check_population
from fedrec.wire.pinned_root import check_root, read_root
from fedrec_client.store.base import Receipt, Retention, Store
from fedrec_client.store.events import Event
from fedrec_client.store.sqlite import SqliteStore
from fedrec_client.store.timeline import in_order
from fedrec_client.store.training_profile import Profile
from fedrec_client.store.trusted_time import STEP_SECONDS, TrustedTime
from fedrec_client.terms.consent import Consent, both, read_consent, write_consent
from fedrec_client.terms.eligibility import Device
from fedrec_client.terms.metrics_budget import CARRIED, PENDING
from fedrec_client.terms.metrics_budget import carry as carry_metrics
from fedrec_client.terms.participation import LOG as BOOK
from fedrec_client.terms.participation import Book, entry
from fedrec_client.terms.platform import Platform, SystemPlatform
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.results import Status
from fedrec_client.training import participations
from fedrec_client.updates.model_updates import PUBLIC_RECORDS, Models, Served

EXPORTS = "files that export_data wrote: they are the user's own"


@dataclass(frozen=True)
class Setup:
    """What the app decides once, see `Client.open`.

    Attributes:
        folder: of this app on this device.
        population: whose models.
        root: root metadata of the repository that the app trusts.
        platform: tells the state of the device.
        policy: limits on training.
        retention: which events are kept.
        passphrase: wraps the store's key.
        start_model: folder of a signed model that the app brings; None: none.
    """

    folder: Path
    population: str
    root: bytes
    platform: Platform
    policy: Policy
    retention: Retention
    passphrase: str | None
    start_model: Path | None = None

    @classmethod
    def make(
        cls,
        folder: str | Path,
        population: str,
        trust: str | Path | bytes,
        *,
        platform: Platform | None,
        policy: Policy | None,
        retention: Retention | None,
        passphrase: str | None,
        start_model: str | Path | None = None,
    ) -> Setup:
        """What an app has said, checked, and what it has left open as it is by default.

        Raises:
            DataError: the population cannot be one.
            RunError: the root metadata cannot be read, or is none.
        """
        root = check_root(trust) if isinstance(trust, bytes) else read_root(Path(trust).expanduser())
        try:
            check_population(population)
        except FedrecError as error:
            raise DataError(str(error)) from error
        return cls(
            Path(folder).expanduser(),
            population,
            root,
            platform or SystemPlatform(),
            policy or Policy(),
            retention or Retention(),
            passphrase,
            None if start_model is None else Path(start_model).expanduser(),
        )

    def open_store(self, *, repair: bool = False) -> Store:
        """Sealed on disk in the folder."""
        return SqliteStore.open(self.folder, repair=repair, passphrase=self.passphrase)

    def now(self) -> float:
        """Seconds since 1970, by the device."""
        return self.platform.now()


class ClientState:
    """See the module.

    Attributes:
        setup: what the app decided.
        store: where everything is kept.
        lock: of everything here.
        consent: as it is.
        models: that lie on this device.
        profile: the user's history as models need it.
        last_error: of the calls to a server.
    """

    def __init__(self, setup: Setup, store: Store) -> None:
        self.setup, self.store = setup, store
        self.lock = threading.RLock()
        self.last_error = ""
        self.time = TrustedTime(store)
        self._looked_at: float | None = None
        self.begin()

    def begin(self) -> None:
        """Read what the store knows."""
        setup = self.setup
        self.consent = read_consent(self.store)
        self.models = Models(
            setup.folder / "models", setup.root, setup.population, self.store, __version__, self.setup.now
        )
        if setup.start_model is not None:
            from fedrec_client.updates.folder_files import FolderFiles

            self.models.begin_with(FolderFiles(setup.start_model))
        self.profile, self._newest_event = Profile(), float("-inf")
        self._read_profile()
        self._end_what_was_cut_off()
        self.tidy_up()

    def now(self) -> float:
        """By which things expire: the device's clock, unless it is behind what is known to have passed."""
        return self.time.now(self.setup.now())

    def served(self) -> Served:
        """The model in use.

        Raises:
            DataError: there is none.
        """
        served = self.models.served
        if served is None:
            raise DataError("there is no model yet: check_for_update() first")
        return served

    @property
    def version(self) -> int:
        """Of the model in use; 0: none."""
        served = self.models.served
        return served.version if served else 0

    def set_consent(self, consent: Consent) -> None:
        """Write it down; a training session that is under way ends without consent to training."""
        with self.lock:
            try:
                with self.store.transaction():
                    write_consent(self.store, consent, self.setup.now())
                    if not consent.metrics:
                        self.store.remove(PENDING)
            except StoreError:
                # Whatever became of it on disk, in this process a word that takes something back holds.
                self.consent = both(self.consent, consent)
                raise
            self.consent = consent

    def add(self, event: Event) -> None:
        """Keep an event, unless it was told before."""
        with self.lock:
            if not self.store.add_event(event):
                return
            if event.stamped or event.time >= self._newest_event:
                self._newest_event = max(event.time, self._newest_event)
                self.profile.add(event)
            else:  # told late: its place in the order decides
                self._read_profile()

    def device(self) -> Device:
        """As conditions for training are asked of it."""
        with self.lock:
            setup = self.setup
            return Device(
                self.consent, setup.platform, setup.folder, len(self.profile), self.models.state, setup.now()
            )

    def delete_events(self, since: float | None, item: str | None) -> Receipt:
        """Delete the events from a time on, of one item, or both."""
        with self.lock:
            # A report that waits was made of events that may be among these; the deletion writes the file anew.
            self.store.remove(PENDING)
            count = self.store.delete_events(since, item)
            self._read_profile()
        kept = [] if since is None else ["events before that time"]
        kept += [] if item is None else ["events of other items"]
        return Receipt(secrets.token_hex(8), self.setup.now(), count, 0, 0, count > 0, (*kept, EXPORTS))

    def erase(self) -> Receipt:
        """Delete everything with the key, but for the model, the clock and the sum of the spent budget."""
        now = self.setup.now()
        with self.lock:
            carried = Book(self.store).carry(now)
            reported = carry_metrics(Book(self.store), now)
            kept_sums = {"carried": carried, CARRIED: reported}
            notes = [
                entry(self.store, what, now, **fields)
                for what, fields in kept_sums.items()
                if fields is not None
            ]
            names = [name for kind in PUBLIC_RECORDS for name in self.store.names(kind)]
            records = {name: self.store.get(name) or b"" for name in names}
            receipt = self.store.erase(now, records, {BOOK: notes} if notes else {})
            self.begin()
        kept = ["the public model"]
        if carried is not None or reported is not None:
            kept.append(
                "the sum of the privacy budget that was spent: sums that were published cannot be recalled"
            )
        return replace(receipt, remaining=(*kept, EXPORTS))

    def tidy_up(self) -> None:
        """Retention, by a clock that a jump cannot hurry; what the clock tells is remembered."""
        platform = self.setup.platform
        clock, moment, looked_at = platform.now(), platform.monotonic(), self._looked_at
        passed = STEP_SECONDS if looked_at is None else max(moment - looked_at, 0.0)
        self._looked_at = moment
        try:
            with self.store.transaction():
                believed = self.time.step(clock, passed)
                Book(self.store).correct(clock)
            if self.store.expire(self.setup.retention, believed):
                self._read_profile()
        except StoreError as error:  # a full disk must not keep an app from opening
            self.last_error = str(error)

    def _end_what_was_cut_off(self) -> None:
        """A training session that was cut off is noted as soon as the store is opened."""
        try:
            participations.end_cut_off(self.store, self.setup.now())
        except (
            StoreError
        ) as error:  # a full disk must not keep an app from opening; the next session tries again
            self.last_error = str(error)

    def status(self, *, connected: bool) -> Status:
        """See `Client.status`."""
        with self.lock:
            return Status(
                __version__,
                self.setup.population,
                self.version,
                self.models.state,
                self.models.known.sha256(self.version),
                dict(self.models.known.metadata),
                asdict(self.consent),
                self.store.describe(),
                self.last_error,
                connected,
            )

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """What goes wrong is told in `Client.status`, too."""
        try:
            yield
        except FedrecError as error:
            self.last_error = str(error)
            raise

    def _read_profile(self) -> None:
        """Anew, with a revision that no earlier one had."""
        events = in_order(self.store.arrivals(), self.setup.now())
        fresh = Profile(event for _, event in events)
        fresh.revision = self.profile.revision + 1
        self.profile, self._newest_event = fresh, events[-1][0] if events else float("-inf")
