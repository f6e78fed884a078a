"""A job as it is stored: a folder that says everything, which any process may take up after any crash.

    ROOT/<id>/job.json            where it stands (`record`)
    ROOT/<id>/specification.json  what it is (`specification`), fixed when it is made
    ROOT/<id>/signer.key          signs the rosters of its cohorts; its owner's alone
    ROOT/<id>/events.jsonl        what happened
    ROOT/<id>/runs/<n>/           one run: what was signed, the coordinator's folder, the statement, the publication
    ROOT/<id>/worker.lock         locked by the process that works on it

Out of scope: working on it (`work`), and the row of it that front ends read (`offers`).
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from fedrec.core.errors import RegistryError, RunError
from fedrec.core.files import private_folder, sync_folder, write_json, write_secret
from fedrec.secagg.roster import Identity
from fedrec.wire.signing import OnlineKeys
from fedrec_server.jobs.events import Events
from fedrec_server.jobs.record import RECORD, Record, advance, note_error, read_record, write_record
from fedrec_server.jobs.specification import JobSpecification, parse_job
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry

SPECIFICATION, SIGNER, RUNS, LOCK = "specification.json", "signer.key", "runs", "worker.lock"
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        folder: of it; its name is the id.
        clock: seconds since 1970.
    """

    folder: Path
    clock: Callable[[], float] = time.time

    @classmethod
    def create(
        cls,
        root: Path,
        specification: JobSpecification,
        population: str,
        *,
        registry: Path,
        keys: Path,
        clock: Callable[[], float] = time.time,
    ) -> Job:
        """A new job, which stands under its name as a whole or not at all.

        Args:
            root: folder of all jobs.
            specification: what it is.
            population: whose devices train.
            registry, keys: folders of all registries and of all keys.
            clock: seconds since 1970.

        Raises:
            RegistryError: there is no champion whose items devices have.
            RunError: the keys or the folder cannot be used.
        """
        models = Registry(registry, population)
        if not models.aliases.champion:
            raise RegistryError(f"{population} has no champion: promote a model whose items devices know")
        KeyFolder(keys, population).online()
        name = secrets.token_hex(16)
        aside = root / f".{name}.tmp"
        try:
            private_folder(root)
            aside.mkdir(mode=0o700)
            write_json(aside / SPECIFICATION, specification.model_dump(mode="json"))
            write_secret(aside / SIGNER, Identity.create().secret)
            (aside / RUNS).mkdir()
            now = clock()
            write_record(
                aside, Record(population, str(registry.absolute()), str(keys.absolute()), now, since=now)
            )
            aside.rename(root / name)
            sync_folder(root)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise RunError(f"{root} cannot be written ({error.strerror}): give another folder") from error
        return cls(root / name, clock)

    @classmethod
    def find(cls, root: Path, name: str, clock: Callable[[], float] = time.time) -> Job:
        """The job whose id begins with `name`.

        Raises:
            RunError: there is none, or there are several.
        """
        found = [job for job in cls.all(root, clock) if job.id.startswith(name)] if name else []
        if len(found) != 1:
            what = "no job" if not found else f"{len(found)} jobs"
            raise RunError(
                f"{what} in {root} with id {name!r:.40}: `fedrec-server job list` shows those that are"
            )
        return found[0]

    @classmethod
    def all(cls, root: Path, clock: Callable[[], float] = time.time) -> list[Job]:
        """All jobs of a folder, the oldest first.

        Raises:
            RunError: a record is broken.
        """
        return sorted(cls.folders(root, clock), key=lambda job: (job.record().created, job.id))

    @classmethod
    def folders(cls, root: Path, clock: Callable[[], float] = time.time) -> list[Job]:
        """All jobs of a folder, also those whose records cannot be read."""
        found = [path for path in root.glob("*") if _ID.fullmatch(path.name) and (path / RECORD).exists()]
        return [cls(path, clock) for path in sorted(found)]

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.folder.name

    @cached_property
    def specification(self) -> JobSpecification:
        """What it is.

        Raises:
            RunError: the file is missing or broken.
        """
        path = self.folder / SPECIFICATION
        try:
            return parse_job(json.loads(path.read_text()), str(path))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): restore it from a backup") from error

    @cached_property
    def registry(self) -> Registry:
        """Whose champion devices use, and where results go."""
        record = self.record()
        return Registry(Path(record.registry), record.population)

    def keys(self) -> OnlineKeys:
        """That sign tasks and results; read each time, since they may be replaced."""
        record = self.record()
        return KeyFolder(Path(record.keys), record.population).online()

    @property
    def signer(self) -> Identity:
        """Signs rosters."""
        return Identity.read(self.folder / SIGNER)

    @property
    def events(self) -> Events:
        """What happened."""
        return Events(self.folder, self.clock)

    def record(self) -> Record:
        """Where it stands."""
        return read_record(self.folder)

    def run(self, number: int) -> Path:
        """Folder of a run."""
        return self.folder / RUNS / str(number)

    def offer(self, number: int) -> str:
        """Under which id devices know a run; the same each time it is asked for."""
        return sha256(f"{self.id} {number}".encode()).hexdigest()[:32]

    # What operators ask for ------------------------------------------------------------------------------

    def start(self) -> Record:
        """Let the first run begin, or the next one of a job whose last run is published."""
        before = self.record()
        if before.state not in ("created", "published", "running"):
            advance(self.folder, "trained", self.clock())  # says what is wrong
        return self.next_run(before)

    def next_run(self, before: Record) -> Record:
        """The run after the one of a record; the same record again changes nothing more."""
        now = self.clock()
        if before.state == "running":
            return before
        made = advance(self.folder, "running", now, run=before.run + 1, started=now, next_start=None)
        self.events.note("started", run=made.run)
        return made

    def pause(self) -> Record:
        """Let no cohort form until `resume`; the one at work is told that it is over."""
        return self._asked("paused")

    def resume(self) -> Record:
        """Go on after a pause or a failure, after the last finished round."""
        if self.record().state not in ("paused", "failed", "running"):
            raise RunError(
                f"job {self.id[:8]} is {self.record().state}: only one that is paused or failed can be resumed"
            )
        return self._asked("running")

    def abort(self) -> Record:
        """End the job for good; what was trained stays in its folder."""
        return self._asked("aborted")

    def _asked(self, state: str) -> Record:
        before = self.record()
        made = advance(self.folder, state, self.clock())  # type: ignore[arg-type]
        if before.state != made.state:
            self.events.note(made.state, run=made.run)
        return made

    # Its worker ------------------------------------------------------------------------------------------

    @contextmanager
    def worked(self) -> Iterator[None]:
        """Be the only process that works on it.

        Raises:
            RunError: another one does.
        """
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"another process works on job {self.id[:8]}: it is not started twice"
                ) from error
            yield

    @property
    def is_worked(self) -> bool:
        """Whether a process works on it now."""
        try:
            with (self.folder / LOCK).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def fail(self, error: str) -> None:
        """Note what went wrong; the state stays."""
        note_error(self.folder, error)
