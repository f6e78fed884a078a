"""Rankings of a finished run for whoever wants to score it: `user,item,rank` in the data set's own ids.

Each node makes the lists of the users it hosts from its own local state. What a user had, in training or
validation part, is not ranked. Out of scope: evaluating.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.data.shards import load_shard
from fedrec.ranking.top_n import top_n
from fedrec.recommenders.registry import build
from fedrec_client.node.node_folder import open_node
from fedrec_simulations.experiments.run_folder import RunFolder

#: Most scores held at once.
CHUNK_SCORES = 8_000_000


def write_rankings(run: RunFolder, out: Path, top: int | None) -> tuple[int, int]:
    """Write the file; numbers of users and of rows.

    Args:
        run: a finished run.
        out: CSV file to write; its folder must exist.
        top: list length; None: every unseen item.

    Raises:
        RunError: the run is not finished.
        ConfigError: the file cannot be written.
    """
    partial = out.with_name(out.name + ".part")
    users = rows = 0
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write("user,item,rank\n")
            for user_ids, item_ids, items in _lists(run, top):
                users, rows = users + len(user_ids), rows + _write(file, user_ids, item_ids, items)
        partial.replace(out)
    except OSError as error:
        raise ConfigError(
            f"--rankings {out} cannot be written ({error.strerror}): give a file in an existing folder"
        ) from error
    return users, rows


def _lists(run: RunFolder, top: int | None) -> Iterator[tuple[list[str], list[str], NDArray[np.int64]]]:
    """Per chunk of users: their ids and all item ids as CSV fields, and item indices [U, n], -1 behind the end."""
    model, rounds = run.model, int(run.result["rounds"])
    recommender = build(run.config.model)
    for folder in run.node_folders():
        shard = load_shard(folder / "shard.npz")
        state = open_node(folder).local_state(model, "refit", rounds)
        history = shard.batch(shard.history("refit"))
        users, items = _fields(shard.train.user_ids), _fields(shard.train.item_ids)
        step = max(1, min(256, CHUNK_SCORES // max(len(items), 1)))
        for start in range(0, len(history), step):
            rows = np.arange(start, min(start + step, len(history)))
            mine = history.take(rows)
            scores = recommender.score(model, {name: values[rows] for name, values in state.items()}, mine)
            yield users[start : start + step], items, top_n(scores, top or len(items), mine)[0]


def _write(file: TextIO, users: list[str], item_fields: list[str], items: NDArray[np.int64]) -> int:
    written = 0
    for user, row in zip(users, items.tolist(), strict=True):
        lines = [f"{user},{item_fields[item]},{rank}\n" for rank, item in enumerate(row, 1) if item >= 0]
        file.write("".join(lines))
        written += len(lines)
    return written


def _fields(ids: NDArray[np.str_]) -> list[str]:
    """Ids as they stand in a CSV file, quoted where they must be."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="")
    out = []
    for one in ids.tolist():
        writer.writerow([one])
        out.append(text.getvalue())
        text.seek(0)
        text.truncate()
    return out
