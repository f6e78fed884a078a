"""The contract of a loader; subclass `LoaderContract` and give `dataset`, `files` and `sizes`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fedrec.core.errors import DataError
from fedrec.core.interactions import Dataset
from fedrec.data.loaders import dataset_info, load_with_report


class LoaderContract:
    """What cleaning, splits and reports rely on."""

    #: Name or import path.
    dataset: ClassVar[str]
    #: Small original files by name.
    files: ClassVar[Mapping[str, bytes]]
    #: Users, items with an interaction, interactions in them.
    sizes: ClassVar[tuple[int, int, int]]

    def test_its_terms_and_source_are_stated(self) -> None:
        """A user of the data must know what is allowed, and where they come from."""
        info = dataset_info(self.dataset)
        assert info.title and len(info.terms) > 40 and (info.remotes or info.by_hand or info.bundled)

    def test_original_files_are_read(self, tmp_path: Path) -> None:
        """Folder and zip give the same, with a catalogue in the order of the items."""
        unpacked, zipped = self.load(self.folder(tmp_path)), self.load(self.archive(tmp_path))
        data = unpacked.interactions
        assert (data.n_users, data.n_items, len(data)) == self.sizes
        assert unpacked.catalog.item_ids.tolist() == data.item_ids.tolist()
        for name in ("user", "item", "value", "timestamp", "item_ids"):
            np.testing.assert_array_equal(getattr(data, name), getattr(zipped.interactions, name))
        assert np.isfinite(data.value).all()

    def test_missing_files_are_one_line(self, tmp_path: Path) -> None:
        """A wrong folder is the user's mistake, not a traceback."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError) as refused:
            self.load(tmp_path / "empty")
        assert "\n" not in str(refused.value)

    def test_damaged_files_are_refused_or_reported(self, tmp_path: Path) -> None:
        """Binary rubbish in place of any file is never read as interactions without a word."""
        whole = self.load(self.folder(tmp_path / "whole")).interactions
        for name in self.files:
            folder = self.folder(tmp_path / f"without-{name}")
            (folder / name).write_bytes(b"\x00\xff\xfe rubbish \x00" * 20)
            try:
                dataset, report = load_with_report(self.dataset, folder)
            except DataError as refused:
                assert "\n" not in str(refused)
                continue
            found = dataset.interactions
            # Of the catalogue alone nothing but titles can be lost.
            assert report.bad or np.array_equal(found.item_ids, whole.item_ids), name

    def load(self, path: Path) -> Dataset:
        """The data set of a path, which has no bad row."""
        dataset, report = load_with_report(self.dataset, path)
        assert not report.bad, str(report)
        return dataset

    def folder(self, path: Path) -> Path:
        """The files in a folder."""
        folder = path / "files"
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def archive(self, path: Path) -> Path:
        """The files in a zip."""
        with zipfile.ZipFile(path / "files.zip", "w") as archive:
            for name, content in self.files.items():
                archive.writestr(f"top/{name}", content)
        return path / "files.zip"
