"""The data of a sweep: loaded, split and described once, then read by every cell from the sweep's folder.

Cells train on everything that is not evaluated, for as many rounds as the experiment says: no round and no setting is
chosen here, so nothing of the evaluated part can be. Out of scope: loading and splitting (`prepare`).

Letters: I items.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.files import read_arrays, write_arrays, write_json
from fedrec.core.interactions import Catalog, IntArray, Interactions
from fedrec.data.shards import load_shard, save_shard
from fedrec.data.split import Split
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.experiments.prepare import Prepared, prepare

#: Share of the catalogue, most popular first, that is not the long tail.
HEAD_SHARE = 0.2


@dataclass(frozen=True)
class SweepData:
    """What every cell starts from.

    Attributes:
        split: `train` is learnt from, `test` is evaluated; there is no validation part.
        categories: [I, G] 0/1.
        description: what the data was, what cleaning removed.
        group_bounds: history lengths that part the evaluated users into thirds.
    """

    split: Split
    categories: NDArray[np.float32]
    description: dict[str, Any]
    group_bounds: tuple[int, int]

    def prepared(self) -> Prepared:
        """As a run folder takes it; titles play no part in a sweep."""
        return Prepared(self.split, Catalog.bare(self.split.train.item_ids), self.description)

    @property
    def tail(self) -> Interactions:
        """The evaluated interactions with items outside the most popular fifth."""
        assert self.split.test is not None
        return self.split.test.select(~is_head(self.split.train.item_counts)[self.split.test.item])


def is_head(item_counts: IntArray) -> NDArray[np.bool_]:
    """[I] whether an item is among the most popular fifth of the catalogue; ties by item index."""
    order = np.argsort(-item_counts, kind="stable")
    head = np.zeros(len(item_counts), dtype=bool)
    head[order[: max(1, round(HEAD_SHARE * len(order)))]] = True
    return head


def thirds(lengths: IntArray) -> tuple[int, int]:
    """Bounds b1 < b2: as nearly as ties allow a third is below b1, a third from b2 on."""
    ordered = np.sort(lengths)
    candidates = np.unique(np.concatenate([ordered, ordered[-1:] + 1]))
    below = np.searchsorted(ordered, candidates) / max(len(ordered), 1)
    first = int(candidates[np.argmin(np.abs(below - 1 / 3))])
    later = candidates[candidates > max(first, 1)]
    second = (
        int(later[np.argmin(np.abs(below[candidates > max(first, 1)] - 2 / 3))]) if len(later) else first + 1
    )
    return max(first, 1), max(second, first + 1, 2)


def prepare_sweep(folder: Path, config: Config, evaluate: str, held: Prepared | None = None) -> Path:
    """The sweep's data in `folder`, made unless it is there already for the same sections; returns its folder.

    Args:
        folder: of the sweep.
        config: its sections data and split say what to load.
        evaluate: "test" or "validation".
        held: data that the caller holds; None: they are loaded.

    Raises:
        ConfigError: the part that is to be evaluated does not exist.
        DataError: see `prepare`.
    """
    sections = {"data": config.data, "split": config.split}
    plain = {name: part.model_dump(mode="json") for name, part in sections.items()}
    if held is not None:
        plain["held"] = _digest(held.split)
    text = json.dumps(plain | {"seed": config.federation.seed, "evaluate": evaluate}, sort_keys=True)
    place = folder / "data" / hashlib.sha256(text.encode()).hexdigest()[:16]
    # Written last, so that it stands for the rest.
    if not (place / "data.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        made = prepare(config) if held is None else held
        split = evaluated_split(made.split, evaluate)
        save_shard(split, place / "split.npz")
        write_arrays(place / "categories.safetensors", {"categories": category_matrix(made.catalog)})
        write_json(place / "data.json", made.description)
    return place


def _digest(split: Split) -> dict[str, str]:
    """Fingerprint of data that no name stands for."""
    digest = hashlib.sha256(
        "\0".join([*split.train.user_ids.tolist(), *split.train.item_ids.tolist()]).encode()
    )
    for part in (split.train, split.validation, split.test, split.support):
        for values in part.columns().values() if part is not None else ():
            digest.update(values.tobytes())
    return {"sha256": digest.hexdigest()}


@functools.lru_cache(maxsize=1)
def read_data(place: Path) -> SweepData:
    """What `prepare_sweep` wrote; kept by each process for its next cell."""
    split = load_shard(place / "split.npz")
    assert split.test is not None
    lengths = split.history("refit").counts[split.test.counts > 0]
    return SweepData(
        split,
        read_arrays(place / "categories.safetensors")[0]["categories"].astype(np.float32),
        dict(json.loads((place / "data.json").read_text())),
        thirds(lengths),
    )


def evaluated_split(split: Split, evaluate: str) -> Split:
    """The split with only two parts left: what is learnt from, and what is evaluated (as `test`).

    Raises:
        ConfigError: the part that is to be evaluated does not exist.
    """
    target = split.test if evaluate == "test" else split.validation
    if target is None or not len(target):
        raise ConfigError(
            f"sweep.evaluate is {evaluate!r}, but the split has no such part: change [split] or evaluate"
        )
    if evaluate == "validation":
        return replace(split, validation=None, test=target)
    support = split.support
    if support is not None and split.validation is not None:
        # Users held out for validation are learnt from now, their support included.
        support = support.select(split.validation.counts[support.user] == 0)
    return replace(split, train=split.learnable("refit"), validation=None, support=support)
