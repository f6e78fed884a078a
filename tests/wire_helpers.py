"""Keys, small packages and registries for tests of everything that is signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.ranking.tables import FloatTable
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Terms, pack_model, write_package
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_server.registry import Registry

NOW = 1_800_000_000
POPULATION = "movies-en"
DAY = 86_400
PRIVACY = {"unit": "user", "epsilon": 3.0, "delta": 1e-6}


def keys() -> tuple[OfflineKeys, OnlineKeys]:
    """Fresh ones."""
    return OfflineKeys.generate(), OnlineKeys.generate()


def make_registry(folder: Path, online: OnlineKeys | None = None, **settings: Any) -> Registry:
    """An empty one, signed at `NOW`."""
    return Registry.create(
        folder,
        POPULATION,
        settings.pop("offline", None) or OfflineKeys.generate(),
        online or OnlineKeys.generate(),
        **{"now": NOW} | settings,
    )


def items(n: int = 40) -> Items:
    """With titles, two categories and popularity that falls."""
    return Items.of(
        [f"tt{k:05d}" for k in range(n)],
        [f"Film {k}" for k in range(n)],
        [("drama",) if k % 2 else ("comedy", "family") for k in range(n)],
        np.linspace(1, 0, n, dtype=np.float32),
    )


def factors(n: int = 40, d: int = 8, seed: int = 0) -> ServingModel:
    """Random factors; `fold_in` is a ridge solve."""
    table = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return Factors(FloatTable(table), Ridge(unobserved_weight=0.1, reg=0.01))


def write(
    folder: Path,
    version: int = 1,
    *,
    seed: int = 0,
    bases: dict[int, Path] | None = None,
    population: str = POPULATION,
    **terms: Any,
) -> Manifest:
    """A package of random factors."""
    files = pack_model(factors(seed=seed), items(), PRIVACY)
    return write_package(
        folder, files, population, Terms(version=version, created=NOW, summary=PRIVACY, **terms), bases
    )
