"""From a configuration to a split: load, clean, split, and say what each step did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.data.interactions import Catalog
from fedrec.data.split import Split
from fedrec_simulations.config import Config


@dataclass(frozen=True)
class Prepared:
    """A split with its catalogue, and a description for `data.json`."""

    split: Split
    catalog: Catalog
    description: dict[str, Any]


def prepare(config: Config) -> Prepared:
    raise NotImplementedError


def prepare_files(config: Config, train: Path, validation: Path | None, items: Path | None) -> Prepared:
    raise NotImplementedError
