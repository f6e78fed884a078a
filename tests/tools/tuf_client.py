#!/usr/bin/env python3
r"""Our client of The Update Framework behind the command line of its public conformance suite (`tuf-conformance`).

    tuf_client.py --metadata-dir DIR init ROOT
    tuf_client.py --metadata-dir DIR --metadata-url URL refresh
    tuf_client.py --metadata-dir DIR --metadata-url URL --target-name NAME --target-base-url URL \
        --target-dir FOLDER download

What runs is `trusted_metadata.refreshed` of the SDK over `HttpsFiles`, with a store whose records are files in
DIR, because the suite looks at them. One check is off: repositories of the suite do not say of whose population they
are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from fedrec.core.errors import FedrecError
from fedrec_client import MemoryStore
from fedrec_client.store.trusted_time import RECORD
from fedrec_client.updates import _trusted_metadata as trusted_metadata
from fedrec_client.updates._trusted_metadata import RECORDS, TrustedMetadata
from fedrec_client.updates.folder_files import FolderFiles
from fedrec_client.updates.https_files import HttpsFiles

PINNED, CLOCK = "pinned", "clock"


class Addresses(FolderFiles):
    """Metadata and targets of two addresses."""

    def __init__(self, metadata: str, targets: str) -> None:
        self._of = {"metadata": HttpsFiles(metadata), "targets": HttpsFiles(targets)}

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`."""
        top, _, rest = path.partition("/")
        return self._of[top].fetch(population, rest, offset)


@contextmanager
def stored(folder: Path) -> Iterator[MemoryStore]:
    """A store of what earlier calls have accepted; what this one accepts is written back."""
    store = MemoryStore()
    for path in (*folder.glob("*.json"), *folder.glob("root_history/*.json")):
        if path.name != "root.json":
            store.put(f"{RECORDS}{path.relative_to(folder)}", path.read_bytes())
    if (folder / CLOCK).exists():
        store.put(RECORD, (folder / CLOCK).read_bytes())
    try:
        yield store
    finally:
        for name in store.names(RECORDS):
            path = folder / name.removeprefix(RECORDS)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(store.get(name) or b"")
        (folder / CLOCK).write_bytes(store.get(RECORD) or b"{}")
        roots = sorted((folder / "root_history").glob("*.json"), key=lambda p: int(p.name.split(".")[0]))
        if roots:
            (folder / "root.json").write_bytes(roots[-1].read_bytes())


def download(metadata: TrustedMetadata, name: str, folder: Path) -> None:
    """One artifact, unless it is there already."""
    target = metadata.target(name)
    if target is None:
        raise SystemExit(f"{name} is not signed")
    path = folder / quote(name, "")
    if path.exists():
        with path.open("rb") as file:
            try:
                target.verify_length_and_hashes(file)
            except Exception:  # another content than is signed now
                pass
            else:
                return
    path.write_bytes(metadata.download(target))


def main() -> int:
    """0: done; 1: refused."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("command", choices=("init", "refresh", "download"))
    parser.add_argument("root", type=Path, nargs="?")
    given = parser.parse_args()
    folder: Path = given.metadata_dir
    if given.command == "init":
        for name in (PINNED, "root.json"):
            (folder / name).write_bytes(given.root.read_bytes())
        return 0
    trusted_metadata._check_population = lambda *_: None  # type: ignore[assignment]
    addresses = Addresses(given.metadata_url, given.target_base_url or given.metadata_url)
    try:
        with (
            tempfile.TemporaryDirectory() as working,
            stored(folder) as store,
            trusted_metadata.refreshed(
                Path(working), store, (folder / PINNED).read_bytes(), "", addresses, time.time
            ) as metadata,
        ):
            for name in given.target_name:
                download(metadata, name, given.target_dir)
    except FedrecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
