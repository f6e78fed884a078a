"""Where bytes come from: a plain or gzipped file, a folder, or a zip, seen through one small interface.

Every way in which a file can be missing or damaged on that level becomes one DataError here, so that the
readers above only deal with what is written in it. Out of scope: what the bytes mean.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError

_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile)


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Turn every failure to read bytes into a DataError that names `what`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what} does not exist: check the path") from error
    except _DAMAGE as error:
        raise DataError(
            f"{what} is damaged ({error}): the archive breaks off or is no archive; fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{what} cannot be read ({error.strerror or error}): give a readable file") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file; one that ends in .gz is unpacked on the way.

    Raises:
        DataError: the file is missing, unreadable, or its compression is damaged (also later, while reading).
    """
    with readable(path):
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield cast(BinaryIO, stream)
        else:
            with path.open("rb") as stream:
                yield stream


@dataclass(frozen=True)
class Source:
    """A folder, a zip, or one file: the place a data set's original files lie in.

    Files are found by their base name wherever they lie, because archives differ in their top folder.
    """

    path: Path
    members: tuple[str, ...]

    @classmethod
    def at(cls, path: Path) -> Source:
        """Look at a folder (three levels deep), a zip, or a file.

        Raises:
            DataError: nothing is there, or the zip is damaged.
        """
        if path.is_dir():
            found = (p for depth in ("*", "*/*", "*/*/*") for p in sorted(path.glob(depth)) if p.is_file())
            return cls(path, tuple(p.relative_to(path).as_posix() for p in found))
        if path.suffix == ".zip":
            with readable(path), zipfile.ZipFile(path) as archive:
                return cls(path, tuple(n for n in archive.namelist() if not n.endswith("/")))
        if not path.is_file():
            raise DataError(f"{path} does not exist: give a folder, a zip or a file of the data set")
        return cls(path.parent, (path.name,))

    def find(self, *patterns: str) -> list[str]:
        """Members whose base name matches one of the patterns, in their order; hidden files never match."""
        names = [m for m in self.members if not m.rsplit("/", 1)[-1].startswith((".", "__"))]
        return [
            m for p in patterns for m in names if fnmatch(m.rsplit("/", 1)[-1], p) and "__MACOSX" not in m
        ]

    def one(self, *patterns: str) -> str:
        """The first member that matches.

        Raises:
            DataError: none does; the message lists what is there.
        """
        found = self.find(*patterns)
        if not found:
            there = ", ".join(self.members[:8]) or "nothing"
            raise DataError(
                f"{self.path} has no {' or '.join(patterns)} (found {there}): give the original files' folder"
            )
        return found[0]

    def label(self, member: str) -> str:
        """How messages call a member."""
        return f"{self.path}/{member}"

    @contextmanager
    def open(self, member: str) -> Iterator[BinaryIO]:
        """The bytes of a member, unpacked where its name ends in .gz."""
        if self.path.suffix == ".zip" and self.path.is_file():
            with (
                readable(self.label(member)),
                zipfile.ZipFile(self.path) as archive,
                archive.open(member) as stream,
            ):
                yield cast(BinaryIO, gzip.GzipFile(fileobj=stream) if member.endswith(".gz") else stream)
        else:
            with open_bytes(self.path / member) as stream:
                yield stream

    def text(self, member: str) -> str:
        """A small text file whole; see `decode`."""
        with self.open(member) as stream:
            return decode(stream.read())

    def buffer(self, member: str) -> BinaryIO:
        """A member in memory, seekable (Parquet needs that)."""
        with self.open(member) as stream:
            return io.BytesIO(stream.read())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` without pickled objects.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        # Opened here, because np.load leaves the file open when it is no whole archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole file of arrays ({error}): make it again") from error


def decode(data: bytes) -> str:
    """UTF-8 where it is valid UTF-8, otherwise latin-1 (older MovieLens sets exist in both)."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
