"""What an operator reads of a run folder: its task, its public items, its model.

A run folder may hold a researcher's data and settings, too; those are passed over here.
Out of scope: laying out a run folder and reporting on it (`fedrec_simulations`).
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.errors import RunError
from fedrec.core.files import read_arrays
from fedrec.core.interactions import Catalog
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.data.splits import read_split
from fedrec_server.operations.configuration import parse
from fedrec_server.operations.specification import HELD_DATA, RESEARCHERS, TaskSpecification

PACKAGES = (
    "fedrec", "numpy", "torch", "numba", "scipy", "flwr", "safetensors", "pydantic", "opacus", "dp-accounting",
    "cryptography",
)  # fmt: skip


@dataclass(frozen=True)
class RunArtifacts:
    """A run folder that `fedrec train` wrote.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunArtifacts:
        """An existing run.

        Raises:
            RunError: there is no run at `path`.
        """
        if not (path / "config.json").exists():
            raise RunError(
                f"{path} is not a run folder (it has no config.json): give a folder that `fedrec train` wrote"
            )
        return cls(path)

    @property
    def plain_config(self) -> dict[str, Any]:
        """The whole configuration in plain values."""
        return dict(json.loads((self.path / "config.json").read_text()))

    @property
    def config(self) -> TaskSpecification:
        """The task of the run, without its researcher's data."""
        plain = {name: values for name, values in self.plain_config.items() if name not in RESEARCHERS}
        plain["evaluation"] = {k: v for k, v in plain.get("evaluation", {}).items() if k != HELD_DATA}
        return parse(TaskSpecification, plain, (), str(self.path / "config.json"))

    @property
    def asks_for_held_data(self) -> bool:
        """Whether exact metrics on data that its researcher holds were asked for."""
        return bool(self.plain_config.get("evaluation", {}).get(HELD_DATA))

    @property
    def catalog(self) -> Catalog:
        """Titles and categories in the order of the item indices."""
        return read_catalog(self.path)

    @property
    def split(self) -> Split:
        """The data of the run; there are none in a deployment's folder."""
        return read_split(self.path / "split")

    @property
    def model(self) -> State:
        """Shared state of the final model.

        Raises:
            RunError: the run has none yet.
        """
        path = self.path / "coordinator" / "model.safetensors"
        if not path.exists():
            raise RunError(
                f"run {self.path} has no model yet: continue it with `fedrec train --resume {self.path}`"
            )
        return read_arrays(path)[0]


def read_catalog(folder: Path) -> Catalog:
    """The public items of a run folder, in the order of the item indices."""
    plain = json.loads((folder / "catalog.json").read_text())
    return Catalog(
        np.array(plain["item_ids"], dtype=np.str_),
        np.array(plain["titles"], dtype=np.str_),
        tuple(tuple(names) for names in plain["categories"]),
    )


def environment() -> dict[str, str]:
    """Versions of what a run is made with."""
    found = {"python": sys.version.split()[0], "platform": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
