"""For an app's own tests: a device that is what you say, and a model service in the same process.

Nothing in here is a stub: packages are signed, checked and read as from a real service. What fails on purpose is
asked for by name: `offline`, `busy`, `broken`, `cut_after`.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.errors import CampaignOver, ServerBusy, ServiceError
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.serving import ServingModel
from fedrec.ranking.tables import FloatTable
from fedrec.wire.leaving import is_leaving
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import Terms, pack_model, write_package
from fedrec.wire.signing import RootKey, RoundKey
from fedrec_client.client import Client
from fedrec_client.store.base import Store
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.transport import CheckIn, CheckInAnswer, Enrolment

DAY = 86_400
NOW = 1_800_000_000
PIECE = 64 << 10


class FakePlatform:
    """A device that is charging, idle, unmetered and roomy until told otherwise; its clock stands still.

    Attributes:
        is_charging, is_idle, is_unmetered: None: cannot tell.
        free: bytes.
        clock: seconds since 1970; set it, or `pass_time`.
    """

    def __init__(self, clock: float = NOW) -> None:
        self.is_charging: bool | None = True
        self.is_idle: bool | None = True
        self.is_unmetered: bool | None = True
        self.free = 1 << 40
        self.clock = clock
        self._passed = 0.0

    def pass_time(self, seconds: float) -> None:
        """Let time go by."""
        self.clock += seconds
        self._passed += seconds

    def charging(self) -> bool | None:
        """See `Platform`."""
        return self.is_charging

    def idle(self) -> bool | None:
        """See `Platform`."""
        return self.is_idle

    def unmetered(self) -> bool | None:
        """See `Platform`."""
        return self.is_unmetered

    def free_bytes(self, folder: Path) -> int:
        """See `Platform`."""
        return self.free

    def now(self) -> float:
        """See `Platform`."""
        return self.clock

    def monotonic(self) -> float:
        """See `Platform`."""
        return self._passed


class FakeService:
    """A model service in this process, with keys of its own.

    Attributes:
        root: its root key; `root.public` is what an app pins.
        key: the round key that signs.
        offline: every call fails.
        busy: every call is told to come back.
        broken: by file name, bytes sent in the place of the true ones.
        cut_after: downloads are cut off after so many bytes.
        metrics: counters that came.
        report_tokens: of these.
        check_ins: requests that came.
        campaign: id of a campaign to be offered; empty: none.
        enrolments: that came.
        tasks: by campaign, the signed task.
        over: campaigns that have ended.
        left: campaign and public key of every device that left.
        sent_bytes: of all downloads.
        end: call it to remove what was published; else that happens with the object.
    """

    def __init__(self, population: str = "test", clock: float = NOW) -> None:
        self.population = population
        self.root = RootKey.generate()
        self.key = self.new_key(1, clock)
        self.offline = self.busy = False
        self.broken: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.metrics: list[Mapping[str, float]] = []
        self.report_tokens: list[str] = []
        self.check_ins: list[CheckIn] = []
        self.campaign = ""
        self.enrolments: list[Enrolment] = []
        self.tasks: dict[str, bytes] = {}
        self.over: set[str] = set()
        self.left: list[tuple[str, bytes]] = []
        self.sent_bytes = 0
        self.version = 0
        self._folder = Path(tempfile.mkdtemp(prefix="fedrec-fake-"))
        self.end = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def new_key(self, serial: int, start: float, days: float = 365) -> RoundKey:
        """A round key of this service's root."""
        return RoundKey.generate(
            self.root, self.population, serial=serial, not_before=start - DAY, not_after=start + days * DAY
        )

    def publish(
        self,
        model: ServingModel | None = None,
        items: Items | None = None,
        version: int | None = None,
        *,
        clock: float = NOW,
        key: RoundKey | None = None,
        privacy: Mapping[str, Any] | None = None,
        **terms: Any,
    ) -> Manifest:
        """Sign a model and offer it; without arguments a small random one.

        Args:
            model, items: to serve.
            version: None: one higher than the last.
            clock: when it is signed.
            key: None: the service's own.
            privacy: the statement.
            terms: of `fedrec.wire.package.Terms`.
        """
        number = self.version + 1 if version is None else version
        items = items or small_items()
        model = model or small_model(len(items), seed=number)
        bases = {self.version: self.folder(self.version)} if 0 < self.version != number else {}
        manifest = write_package(
            self.folder(number),
            pack_model(model, items, privacy or {"unit": "none"}),
            Terms(number, int(clock), **terms),
            key or self.key,
            bases,
        )
        self.version = number
        return manifest

    def folder(self, version: int) -> Path:
        """Where a version lies."""
        return self._folder / str(version)

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`."""
        self._answers()
        self.check_ins.append(request)
        return CheckInAnswer(self.version, (60.0, 120.0), self.campaign if request.trains else "")

    def manifest(self, population: str, version: int) -> bytes:
        """See `Transport`."""
        self._answers()
        return self._content(version, MANIFEST_FILE)

    def download(self, population: str, version: int, file: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`."""
        self._answers()
        content = self._content(version, file)
        end = len(content) if self.cut_after is None else min(len(content), offset + self.cut_after)
        for start in range(offset, end, PIECE):
            piece = content[start : min(start + PIECE, end)]
            self.sent_bytes += len(piece)
            yield piece
        if end < len(content):
            raise ServiceError("the connection was cut on purpose: try again; what came is kept")

    def enrol(self, enrolment: Enrolment) -> None:
        """See `Transport`."""
        self._answers()
        self._expect_on(enrolment.campaign)
        if enrolment not in self.enrolments:
            self.enrolments.append(enrolment)

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """See `Transport`."""
        self._answers()
        self._expect_on(campaign)
        return self.tasks.get(campaign)

    def goes_on(self, campaign: str, identity: bytes) -> bool:
        """See `Transport`."""
        self._answers()
        return campaign not in self.over

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """See `Transport`."""
        self._answers()
        if not is_leaving(identity, campaign, signature):
            raise ServiceError("a device that left has not signed it")
        self.left.append((campaign, identity))

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """See `Transport`."""
        self._answers()
        if token not in self.report_tokens:
            self.report_tokens.append(token)
            self.metrics.append(dict(counters))

    def close(self) -> None:
        """See `Transport`; the service stays for other clients."""

    def _answers(self) -> None:
        if self.offline:
            raise ServiceError("the service cannot be reached: offline on purpose")
        if self.busy:
            raise ServerBusy("the service is busy: come back in 60 to 120 s", (60.0, 120.0))

    def _expect_on(self, campaign: str) -> None:
        if campaign in self.over:
            raise CampaignOver("the campaign is over: wait for another")

    def _content(self, version: int, file: str) -> bytes:
        if file in self.broken:
            return self.broken[file]
        try:
            return (self.folder(version) / file).read_bytes()
        except OSError as error:
            raise ServiceError(f"the service has no {file} of version {version}") from error


def small_items(n: int = 50) -> Items:
    """Films with titles, genres and falling popularity."""
    genres: Sequence[Sequence[str]] = (["drama"], ["comedy", "family"], ["action"])
    return Items.of(
        [f"film-{k}" for k in range(n)],
        [f"Film {k}" for k in range(n)],
        [genres[k % 3] for k in range(n)],
        np.linspace(1, 0.1, n, dtype=np.float32),
    )


def small_model(n: int = 50, d: int = 8, seed: int = 0) -> ServingModel:
    """Random factors."""
    table = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return Factors(FloatTable(table), Ridge(unobserved_weight=0.1, reg=0.01))


def make_client(
    folder: Path,
    service: FakeService | None = None,
    platform: FakePlatform | None = None,
    store: Store | None = None,
    **settings: Any,
) -> Client:
    """A client of a fake service on a fake device that keeps its data in memory, unless told otherwise."""
    service = service or FakeService()
    return Client.open(
        folder,
        population=service.population,
        trust=service.root.public,
        server=service,
        platform=platform or FakePlatform(),
        store=store or MemoryStore(),
        **settings,
    )
