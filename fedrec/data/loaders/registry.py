"""Data sets by name: from a folder or zip, from the cache, downloaded, or bundled.

Out of scope: tables of one's own (`fedrec.data.tabular.read_interactions`), cleaning and splitting.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Dataset
from fedrec.data.download import Progress, Remote, cache_folder
from fedrec.data.download import download as fetch_file
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Loaded
from fedrec.data.rows import Reader, RowReport


def dataset_names() -> list[str]:
    """Names that `load_dataset` knows.

    Example:
        >>> import fedrec
        >>> "movietweetings" in fedrec.dataset_names()
        True
    """
    return LOADERS.names()


def dataset_info(name: str) -> DatasetInfo:
    """Title, terms of use and source of a data set (`amazon-2023:Books` and `amazon-2023` alike).

    Args:
        name: of a data set, perhaps with a category, or an import path "package.module:NAME".

    Raises:
        ConfigError: there is none of that name.
    """
    return _found(name)[0]


def _found(name: str) -> tuple[DatasetInfo, str]:
    """A data set and the category that its name asks for. Names are the caller's own: paths are followed."""
    base, _, rest = name.partition(":")
    if rest and base not in LOADERS.names():
        attribute, _, category = rest.partition(":")
        return LOADERS.get(f"{base}:{attribute}", paths=True), category
    return LOADERS.get(base, paths=True), rest


def load_dataset(
    name: str, path: Path | None = None, *, download: bool = False, progress: Progress | None = None
) -> Dataset:
    """A data set from its original files.

    Args:
        name: one of `dataset_names()`, or an import path "package.module:NAME"; Amazon's come in categories,
            `amazon-2023:All_Beauty`.
        path: folder, zip or file; None: the bundled snapshot, or what was downloaded before.
        download: fetch it if it is not there.
        progress: see `fedrec.data.download.download`.

    Raises:
        ConfigError: there is no data set of that name, or it needs a category.
        DataError: the files are missing or damaged (even in one row: see `load_with_report`).
        DownloadError: it could not be fetched.

    Example:
        >>> import fedrec
        >>> len(fedrec.load_dataset("movietweetings").interactions)
        100000
    """
    dataset, report = load_with_report(name, path, download=download, progress=progress)
    if report.bad:
        raise DataError(
            f"{report}: original files have no such rows, so this copy is damaged; fetch it again "
            "(or keep the rest with load_with_report)"
        )
    return dataset


def load_with_report(
    name: str,
    path: Path | None = None,
    *,
    download: bool = False,
    progress: Progress | None = None,
    reader: Reader | None = None,
) -> tuple[Dataset, RowReport]:
    """As `load_dataset`, but rows that cannot be used are left out and reported.

    With a `reader` what users wrote comes as vectors; a data set without reviews is a ConfigError.
    """
    info, category = _found(name)
    if reader is not None:
        info = _with_reviews(info, reader)
    loaded = _load(info, category, path, download, progress)
    title = f"{name} ({loaded.variant})" if loaded.variant else name
    catalog = loaded.catalog.align(loaded.interactions.item_ids)
    return Dataset(title, loaded.interactions, catalog, info.terms, name), loaded.report


def _with_reviews(info: DatasetInfo, reader: Reader) -> DatasetInfo:
    load = info.load_reviews
    if load is None:
        known = [known for known, other in LOADERS.builtin() if other.load_reviews]
        raise ConfigError(
            f"{info.title} holds no reviews: leave data.reviews out, or take one of {', '.join(known)}"
        )
    return replace(info, load=lambda source, category: load(source, category, reader))


def _load(
    info: DatasetInfo, category: str, path: Path | None, fetch: bool, progress: Progress | None
) -> Loaded:
    if path is not None:
        return info.load(Source.at(Path(path)), category)
    if info.bundled is not None:
        return info.bundled()
    if info.has_categories and not category:
        raise ConfigError(
            f"{info.title} come in categories: ask for {info.name}:All_Beauty, for example, or give a path"
        )
    folder = cache_folder() / "data" / info.name
    files = [
        Remote(r.url.format(category=category), r.name.format(category=category), r.md5) for r in info.remotes
    ]
    missing = [remote for remote in files if not (folder / remote.name).exists()]
    if not info.remotes and not folder.is_dir():
        raise DataError(
            f"{info.title} cannot be downloaded: {info.by_hand}; give its path or place it in {folder}"
        )
    if missing and not fetch:
        raise DataError(
            f"{info.title} is not here: give its path, allow the download of {missing[0].url}, "
            f"or place the file at {folder / missing[0].name}"
        )
    for remote in missing:
        fetch_file(remote, folder, progress)
    if len(files) == 1 and files[0].name.endswith(".zip"):
        return info.load(Source.at(folder / files[0].name), category)
    return info.load(Source.at(folder), category)
