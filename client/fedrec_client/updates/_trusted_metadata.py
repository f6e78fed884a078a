"""A device's view of a signed repository: python-tuf's client over our transport, its state in the sealed store.

Rules for versions, keys, thresholds, expiry, rollback and key rotation are those of The Update Framework, carried out
by `tuf.ngclient.Updater` (https://theupdateframework.github.io/specification/latest/#detailed-client-workflow). What
is ours: where bytes come from (`fetcher`), the time, which never goes back (`trusted_time`), and that what was
accepted is in the store, so that deleting or restoring a folder opens no way back. Importing this module loads `tuf`;
it is imported when an update runs. Out of scope: what targets mean (`model_updates`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from fedrec.core.errors import (
    BadContent,
    BadSignature,
    Expired,
    Rollback,
    ServiceError,
    StoreError,
    WrongPopulation,
)
from fedrec.wire.layout import MODELS, POPULATION, SIGNED_AT, hashed_name
from fedrec_client.store.base import Store
from fedrec_client.store.trusted_time import TrustedTime
from fedrec_client.updates._fetcher import METADATA_URL, TARGETS_URL, TransportFetcher
from fedrec_client.updates.transport import WORKING, Transport

#: Beginning of the records that hold accepted metadata.
RECORDS = "tuf/"
PARTIAL = ".partial"
CONFIG = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=4,
    timestamp_max_length=16_384,
    snapshot_max_length=200_000,
    targets_max_length=5_000_000,
)


class ClockedUpdater(Updater):
    """An updater that evaluates expiry by a time that it is given.

    python-tuf has no public way to say so: its trusted set holds one `reference_time` for the whole run, set when it
    is made. A test holds that this attribute is what decides.
    """

    def __init__(self, *args: Any, now: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)

    def trusted(self, role: str) -> Any:
        """Verified metadata of a role, or None."""
        return self._trusted_set.get(role)


class TrustedMetadata:
    """Metadata that was verified just now; see `refreshed`."""

    def __init__(self, updater: ClockedUpdater, fetcher: TransportFetcher) -> None:
        self._updater, self._fetcher = updater, fetcher

    @property
    def versions(self) -> dict[str, int]:
        """Of the top-level roles."""
        roles = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
        return {role: int(self._updater.trusted(role).version) for role in roles}

    @property
    def models_expire(self) -> float:
        """Until when the signed list of models is current, in seconds since 1970; after a model was looked up."""
        models = self._updater.trusted(MODELS)
        return float(models.expires.timestamp()) if models is not None else 0.0

    @property
    def came(self) -> int:
        """Bytes of targets that were fetched."""
        return self._fetcher.came

    def target(self, path: str) -> TargetFile | None:
        """What is signed of a target; None where nothing is.

        Raises:
            UpdateRejected, ServiceError: see `refreshed`.
        """
        with in_our_words():
            return self._updater.get_targetinfo(path)

    def download(self, target: TargetFile) -> bytes:
        """The content of a target, of the signed length and hashes.

        Raises:
            BadContent: it is not.
            ServiceError, OSError: it could not be fetched or kept; what came is kept for the next attempt.
        """
        try:
            with in_our_words():
                return Path(self._updater.download_target(target)).read_bytes()
        except BadContent:
            self._fetcher.forget(TARGETS_URL + hashed_name(next(iter(target.hashes.values())), target.path))
            raise


@contextmanager
def refreshed(
    folder: Path, store: Store, root: bytes, population: str, transport: Transport, clock: Callable[[], float]
) -> Iterator[TrustedMetadata]:
    """The newest metadata, verified from what this device has accepted before; what is accepted is kept.

    Args:
        folder: for downloads; nothing in it is believed.
        store: holds what was accepted.
        root: root metadata that the app pins.
        population: of this device.
        transport: where from.
        clock: seconds since 1970, by the device.

    Raises:
        UpdateRejected: Expired, Rollback, BadSignature, BadContent, WrongPopulation.
        ServiceError: not reachable.
        StoreError, OSError: what was accepted could not be kept.
    """
    fetcher, time = TransportFetcher(transport, population, folder / PARTIAL), TrustedTime(store)
    working = folder / WORKING
    before = _lay_out(store, working)
    try:
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        with in_our_words():
            updater = ClockedUpdater(
                str(working),
                METADATA_URL,
                str(folder / PARTIAL / "whole"),
                TARGETS_URL,
                fetcher,
                CONFIG,
                bootstrap=root,
                now=(now := time.now(clock())),
            )
            try:
                updater.refresh()
                _expect_never_late(time, updater)
            except BaseException as error:
                _keep(store, working, before)
                if isinstance(error, ExpiredMetadataError):
                    with suppress(StoreError):  # a full disk must not hide why it is refused
                        time.refuse(max(time.times.signed, _signed_at(updater)), now)
                raise
        _check_population(updater, population)  # before anything of it is kept
        try:
            yield TrustedMetadata(updater, fetcher)
        finally:
            _keep(store, working, before)
            time.accept(_signed_at(updater))
    finally:
        shutil.rmtree(working, ignore_errors=True)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Errors of python-tuf as ours, one line each."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise Expired(
            f"signed metadata is out of its time ({_line(error)}): check this device's clock; else the service has "
            "nothing newer, or hides it"
        ) from error
    except BadVersionNumberError as error:
        raise Rollback(f"older metadata than this device has had ({_line(error)}): it is refused") from error
    except UnsignedMetadataError as error:
        raise BadSignature(
            f"not signed by the keys that the pinned root stands for ({_line(error)}): it is refused"
        ) from error
    except (LengthOrHashMismatchError, DownloadLengthMismatchError) as error:
        raise BadContent(f"not what was signed ({_line(error)}): fetch it again") from error
    except (RepositoryError, ValueError, KeyError, TypeError) as error:
        raise BadContent(f"not valid signed metadata ({_line(error)}): fetch it again") from error
    except DownloadHTTPError as error:
        raise ServiceError(
            f"the service lacks a file of its repository ({_line(error)}): try later"
        ) from error
    except DownloadError as error:
        raise ServiceError(f"metadata could not be fetched ({_line(error)}): try later") from error


def _check_population(updater: ClockedUpdater, population: str) -> None:
    whose = updater.trusted(Targets.type).unrecognized_fields.get(POPULATION)
    if whose != population:
        raise WrongPopulation(f"repository of population {whose!r:.80}: this device is of {population!r}")


def _expect_never_late(time: TrustedTime, updater: ClockedUpdater) -> None:
    """What was out of its time once stays so under a clock that is put back."""
    if time.known_late(_signed_at(updater)) > -math.inf:
        raise ExpiredMetadataError("it was out of its time before, under a later clock")


def _line(error: Exception) -> str:
    """What was said, with nothing in it that steers a terminal."""
    return "".join(filter(str.isprintable, " ".join(str(error).split())))[:160]


def _signed_at(updater: ClockedUpdater) -> float:
    """Of the timestamp, in seconds since 1970; -inf where it does not say."""
    timestamp = updater.trusted(Timestamp.type)
    when = None if timestamp is None else timestamp.unrecognized_fields.get(SIGNED_AT)
    return float(when) if type(when) is int and 0 <= when < 1 << 53 else -math.inf


def _lay_out(store: Store, working: Path) -> dict[str, bytes]:
    """Accepted metadata as files, for the updater; what lies there is removed first."""
    shutil.rmtree(working, ignore_errors=True)
    (working / "root_history").mkdir(parents=True)
    accepted = {name: store.get(name) or b"" for name in store.names(RECORDS)}
    for name, content in accepted.items():
        (working / name.removeprefix(RECORDS)).write_bytes(content)
    return accepted


def _keep(store: Store, working: Path, before: dict[str, bytes]) -> None:
    """What the updater has accepted goes into the store, all of it or nothing."""
    paths = [p for p in (*working.iterdir(), *(working / "root_history").iterdir()) if p.is_file()]
    found = {
        f"{RECORDS}{path.relative_to(working)}": path.read_bytes()
        for path in paths
        if path.name != "root.json" and path.suffix == ".json"
    }
    changed = {name: content for name, content in found.items() if before.get(name) != content}
    if changed:
        with store.transaction():
            for name, content in changed.items():
                store.put(name, content)
