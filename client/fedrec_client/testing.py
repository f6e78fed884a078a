"""For an app's own tests: a device that is what you say, and a model service in the same process.

Nothing in here is a stub: a repository is signed, verified and read as from a real service. What fails on purpose is
asked for by name: `offline`, `busy`, `broken`, `cut_after`, `replay`.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.errors import NotPublished, ServerBusy, ServiceError
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.ranking.tables import FloatTable
from fedrec.wire.layout import (
    CANARY,
    CHAMPION,
    METADATA_FOLDER,
    TARGETS_FOLDER,
    alias_target,
    hashed_name,
    model_target,
    task_target,
)
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import Terms, delta_name, pack_model, write_package
from fedrec.wire.repository import Lifetimes, Repository, target_of
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec.wire.strict_json import canonical
from fedrec_client.app.client import Client
from fedrec_client.store.base import Store
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.updates.transport import CheckIn, CheckInAnswer

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
    """A model service in this process, with a signed repository and keys of its own.

    Attributes:
        trust: root metadata that an app pins.
        offline_keys, online_keys: that sign.
        repository: the signed metadata.
        offline: every call fails.
        busy: every call is told to come back.
        broken: by file name, bytes sent in the place of the true ones.
        cut_after: downloads are cut off after so many bytes.
        metrics: counters that came.
        report_tokens: of these.
        check_ins: requests that came.
        tasks: by job, the signed task.
        sent_bytes: of all downloads of targets.
        version: of the champion; 0: none.
        end: call it to remove what was published; else that happens with the object.
    """

    takes_counters = True

    def __init__(
        self,
        population: str = "test",
        clock: float = NOW,
        keys: tuple[OfflineKeys, OnlineKeys] | None = None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.population = population
        self.offline_keys, self.online_keys = keys or (OfflineKeys.generate(), OnlineKeys.generate())
        self._folder = Path(tempfile.mkdtemp(prefix="fedrec-fake-"))
        self.repository = Repository(self._folder / METADATA_FOLDER, population, lifetimes)
        self.trust = self.repository.create(self.offline_keys, self.online_keys, clock)
        self.offline = self.busy = False
        self.broken: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.metrics: list[Mapping[str, float]] = []
        self.report_tokens: list[str] = []
        self.check_ins: list[CheckIn] = []
        self.tasks: dict[str, bytes] = {}
        self.sent_bytes = 0
        self.version = 0
        self._canary = (0, 0)
        self._manifests: dict[int, Manifest] = {}
        self._replayed: Path | None = None
        self.end = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def publish(
        self,
        model: ServingModel | None = None,
        items: Items | None = None,
        version: int | None = None,
        *,
        clock: float = NOW,
        privacy: Mapping[str, Any] | None = None,
        promote: bool = True,
        **terms: Any,
    ) -> Manifest:
        """Sign a model and offer it; without arguments a small random one.

        Args:
            model, items: to serve.
            version: None: one higher than the highest.
            clock: when it is signed.
            privacy: the statement.
            promote: make it champion.
            terms: of `fedrec.wire.package.Terms`.
        """
        number = max(self._manifests, default=0) + 1 if version is None else version
        items = items or small_items()
        model = model or small_model(len(items), seed=number)
        shutil.rmtree(self.folder(number), ignore_errors=True)
        bases = {self.version: self.folder(self.version)} if 0 < self.version < number else {}
        self._manifests[number] = write_package(
            self.folder(number),
            pack_model(model, items, privacy or {"unit": "none"}),
            self.population,
            Terms(number, int(clock), **terms),
            bases,
        )
        if promote:
            self.promote(number, clock=clock)
        return self._manifests[number]

    def promote(self, version: int, *, traffic: int | None = None, clock: float = NOW) -> None:
        """Sign a version as champion; with `traffic` as canary for so many thousandths of the devices."""
        if traffic is None:
            self.version, self._canary = version, (0, 0)
        else:
            self._canary = (version, traffic)
        self.sign(clock)

    def sign(self, clock: float = NOW) -> None:
        """Sign the list of models as it is."""
        listed = []
        for version, manifest in self._manifests.items():
            content = manifest.to_bytes()
            custom = {"version": version}
            listed.append(self._target(version, MANIFEST_FILE, content))
            names = [*manifest.files, *map(delta_name, manifest.deltas)]
            listed += [self._target(version, name) for name in names]
            if version == self.version:
                listed.append(target_of(alias_target(self.population, CHAMPION), content, **custom))
            if version == self._canary[0]:
                custom["traffic"] = self._canary[1]
                listed.append(target_of(alias_target(self.population, CANARY), content, **custom))
        self.repository.change(self.trust, self.online_keys, clock, models=listed)

    def renew(self, clock: float) -> list[str]:
        """Sign anew what is past half of its life, as a real service does by itself."""
        return self.repository.renew(self.trust, self.online_keys, clock)

    def give_task(self, job: str, payload: Mapping[str, Any], *, clock: float = NOW) -> bytes:
        """Sign the task of a job; a device service hands it out."""
        content = canonical({"population": self.population, "job": job} | dict(payload))
        task = target_of(task_target(self.population, job), content)
        self.repository.change(self.trust, self.online_keys, clock, tasks=[task])
        self.tasks[job] = content
        return content

    def rotate(
        self, *, online: OnlineKeys | None = None, offline: OfflineKeys | None = None, clock: float = NOW
    ) -> int:
        """Replace keys by those given, by fresh online ones when none are; the version of the new root metadata."""
        if online is None and offline is None:
            online = OnlineKeys.generate()
        before = (self.offline_keys, self.online_keys)
        after = (offline or self.offline_keys, online or self.online_keys)
        version = self.repository.replace_keys(self.trust, before, after, clock)
        self.offline_keys, self.online_keys = after
        return version

    def keep(self) -> Path:
        """A copy of the signed metadata as it is now, for `replay` and `restore`."""
        copy = Path(tempfile.mkdtemp(dir=self._folder, prefix="kept-"))
        shutil.copytree(self.repository.folder, copy, dirs_exist_ok=True)
        return copy

    def replay(self, kept: Path | None) -> None:
        """Hand out metadata of then, as a service does that hides what is new; None: what is."""
        self._replayed = kept

    def restore(self, kept: Path) -> None:
        """Go back to metadata of then, as an owner does after a thief has signed."""
        shutil.rmtree(self.repository.folder)
        shutil.copytree(kept, self.repository.folder)

    def folder(self, version: int) -> Path:
        """Where a version is stored."""
        return self._folder / TARGETS_FOLDER / model_target(self.population, version, "x").rpartition("/")[0]

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`."""
        self._answers()
        self.check_ins.append(request)
        return CheckInAnswer((60.0, 120.0))

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`."""
        self._answers()
        top, _, rest = path.partition("/")
        targets = top == TARGETS_FOLDER
        content = self._content_of_target(rest) if targets else self._metadata(rest)
        cut = self.cut_after if targets else None
        end = len(content) if cut is None else min(len(content), offset + cut)
        for start in range(offset, end, PIECE):
            piece = content[start : min(start + PIECE, end)]
            self.sent_bytes += len(piece) if targets else 0
            yield piece
        if end < len(content):
            raise ServiceError("the connection was cut on purpose: try again; what came is kept")

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

    def _target(self, version: int, name: str, content: bytes | None = None) -> Any:
        content = (self.folder(version) / name).read_bytes() if content is None else content
        return target_of(model_target(self.population, version, name), content, version=version)

    def _metadata(self, name: str) -> bytes:
        """Of "timestamp.json" or "3.models.json"."""
        role = name.rpartition(".json")[0].rpartition(".")[2]
        if f"{role}.json" in self.broken:
            return self.broken[f"{role}.json"]
        try:
            return ((self._replayed or self.repository.folder) / name).read_bytes()
        except OSError as error:
            raise NotPublished(f"the service has no {name}") from error

    def _content_of_target(self, path: str) -> bytes:
        """Of a path whose last part begins with a hash."""
        folder, _, hashed = path.rpartition("/")
        name = hashed.partition(".")[2]
        if name in self.broken:
            return self.broken[name]
        try:
            content = (self._folder / TARGETS_FOLDER / folder / name).read_bytes()
        except OSError as error:
            raise NotPublished(f"the service has no {path}") from error
        if hashed_name(target_of(path, content).hashes["sha256"], name) != hashed:
            raise NotPublished(f"the service has another {name}")
        return content


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


def store_of(client: Client) -> Store:
    """What a client keeps on its device, for tests of what is written and removed."""
    return client._store


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
        trust=service.trust,
        server=service,
        platform=platform or FakePlatform(),
        store=store or MemoryStore(),
        **settings,
    )
