"""What is held out, and by which rule.

The rule for "the last interaction" alone moves results by ten points where many time stamps are equal, so every
rule is explicit, and the split itself (not the rule) is what is handed on: `write_split`, `read_split`.
A user always keeps one interaction to learn from, so users with a single one are never tested (`describe` counts
them).

Out of scope: choosing candidates to rank (`fedrec.evaluation`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import IntArray, Interactions
from fedrec.core.randomness import Purpose, absorb, bits, key, uniform, user_keys
from fedrec.data._prepared import from_split_column, prepared
from fedrec.data._split_files import read_split, write_split
from fedrec.data.shards import load_shard, save_shard
from fedrec.data.split import Split

__all__ = [
    "describe",
    "from_split_column",
    "held_out_users",
    "leave_one_out",
    "load_shard",
    "per_user_ratio",
    "prepared",
    "read_split",
    "save_shard",
    "temporal",
    "write_split",
]

Ties = Literal["file_order", "smallest_item", "largest_item"]
#: Which interactions of a held-out user are held back.
Targets = Literal["latest", "random"]
TRAIN, VALIDATION, TEST, SUPPORT = range(4)


def leave_one_out(
    interactions: Interactions,
    validation: bool = True,
    ties: Ties = "file_order",
    *,
    targets: Targets = "latest",
    seed: int = 0,
) -> Split:
    """The last interaction of each user is the test, the last but one the validation part; or two random ones.

    Args:
        interactions: what is split.
        validation: hold out a validation part, too (of users with at least three interactions).
        ties: which of several interactions with one time stamp counts as the last: the last in the file, the one
            with the smallest item index, or with the largest (item indices follow the sorted item ids).
        targets: "random" where a data set knows no order of events, and its last row is an accident of the file.
        seed: of the draws.

    Raises:
        DataError: no user has two interactions.
    """
    ordered = _order_ties(interactions, ties)
    age = _age(ordered) if targets == "latest" else _shuffled(ordered, seed)
    counts = ordered.counts[ordered.user]
    part = np.zeros(len(ordered), dtype=np.int64)
    part[(age == 0) & (counts >= 2)] = TEST
    if validation:
        part[(age == 1) & (counts >= 3)] = VALIDATION
    return _assemble(ordered, part, "no user has two interactions")


def temporal(
    interactions: Interactions,
    test_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    *,
    test_from: int | None = None,
    validation_from: int | None = None,
) -> Split:
    """What happened last, over all users, is the test part; what happened just before is the validation part.

    Args:
        interactions: with real time stamps.
        test_fraction, validation_fraction: shares of all interactions; 0 for validation: none. Interactions of one
            second stay together, so the parts may be a little larger.
        test_from, validation_from: times (seconds since 1970) from which on a part begins, instead of shares.

    Raises:
        ConfigError: the shares or times leave no room for each other.
        DataError: nothing is left to learn from, or nothing is held out.
    """
    _check_fractions(test_fraction, validation_fraction)
    stamps = np.sort(interactions.timestamp)
    n = len(stamps)
    if not n:
        raise DataError("there are no interactions to split: load some")
    test_start = int(stamps[min(int(n * (1 - test_fraction)), n - 1)]) if test_from is None else test_from
    part = np.where(interactions.timestamp >= test_start, TEST, TRAIN)
    if validation_from is None and validation_fraction > 0:
        before = stamps[stamps < test_start]
        take = min(round(n * validation_fraction), len(before))
        validation_from = int(before[len(before) - take]) if take else None
    if validation_from is not None:
        if validation_from >= test_start:
            raise ConfigError(
                f"validation_from {validation_from} is not before the test part, {test_start}: lower it"
            )
        part[(interactions.timestamp >= validation_from) & (part == TRAIN)] = VALIDATION
    return _assemble(interactions, part, f"no interaction is as late as {test_start}")


def per_user_ratio(
    interactions: Interactions,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    *,
    order: Literal["time", "random"] = "time",
    seed: int = 0,
) -> Split:
    """A share of every user's interactions: the latest ones, or random ones.

    Shares are rounded to whole interactions, and one is always left to learn from: the test part is served first.

    Raises:
        ConfigError: the shares do not lie in [0, 1) or add up to 1 or more.
        DataError: no user has enough interactions.
    """
    _check_fractions(test_fraction, validation_fraction)
    age = _age(interactions) if order == "time" else _random_rank(interactions, seed)
    counts = interactions.counts
    spare = np.maximum(counts - 1, 0)
    test = np.minimum(np.floor(counts * test_fraction + 0.5).astype(np.int64), spare)
    held = test + np.minimum(np.floor(counts * validation_fraction + 0.5).astype(np.int64), spare - test)
    part = np.zeros(len(interactions), dtype=np.int64)
    part[age < held[interactions.user]] = VALIDATION
    part[age < test[interactions.user]] = TEST
    return _assemble(interactions, part, f"no user has enough interactions for a share of {test_fraction}")


def held_out_users(
    interactions: Interactions,
    test_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    *,
    target_fraction: float = 0.2,
    targets: Targets = "latest",
    seed: int = 0,
) -> Split:
    """Users that are never trained on: the model sees one part of their history and is evaluated on the other.

    The part seen is `Split.support`, the other (at least one interaction) the test or validation part. With random
    targets this is the protocol of Liang et al. (2018), "Variational autoencoders for collaborative filtering",
    section 4; the latest are what a recommender is really asked for. Only users with two interactions or more are
    held out.

    Args:
        interactions: what is split.
        test_fraction, validation_fraction: shares of the users; 0 for validation: none.
        target_fraction: share of a held-out user's interactions that is held back, rounded, at least one.
        targets: which of them, the "latest" or "random" ones.
        seed: of the draws.

    Raises:
        ConfigError: a share does not lie in (0, 1).
        DataError: no user has two interactions.
    """
    _check_fractions(test_fraction, validation_fraction)
    if not 0 < target_fraction < 1:
        raise ConfigError(f"target_fraction is {target_fraction}: expected a share between 0 and 1")
    counts = interactions.counts
    eligible = np.flatnonzero(counts >= 2)
    draw = bits(user_keys(key(seed, Purpose.SPLIT), eligible), 1)[:, 0]
    eligible = eligible[np.argsort(draw, kind="stable")]
    n_test = max(1, round(test_fraction * interactions.n_users))
    n_validation = max(1, round(validation_fraction * interactions.n_users)) if validation_fraction else 0
    role = np.zeros(interactions.n_users, dtype=np.int64)
    role[eligible[:n_test]] = TEST
    role[eligible[n_test : n_test + n_validation]] = VALIDATION
    held = np.clip(np.floor(counts * target_fraction + 0.5).astype(np.int64), 1, np.maximum(counts - 1, 1))
    of_row = role[interactions.user]
    place = _age(interactions) if targets == "latest" else _shuffled(interactions, seed)
    back = place < held[interactions.user]
    part = np.where(of_row == TRAIN, TRAIN, np.where(back, of_row, SUPPORT))
    return _assemble(interactions, part, "no user has two interactions")


def describe(split: Split) -> dict[str, Any]:
    """Sizes of a split, for reports: per part users and interactions, and users who are never tested."""
    parts = {
        "train": split.train,
        "validation": split.validation,
        "test": split.test,
        "support": split.support,
    }
    known = sum(
        (p.counts for p in parts.values() if p is not None), np.zeros(split.train.n_users, dtype=np.int64)
    )
    out: dict[str, Any] = {"users": split.train.n_users, "items": split.train.n_items}
    for name, part in parts.items():
        if part is not None:
            out[name] = {"users": int((part.counts > 0).sum()), "interactions": len(part)}
    out["users_with_one_interaction"] = int((known == 1).sum())
    for name in ("validation", "test"):
        part = parts[name]
        if part is not None:
            out[f"users_without_{name}"] = int((part.counts == 0).sum())
    return out


def _order_ties(interactions: Interactions, ties: Ties) -> Interactions:
    if ties == "file_order":
        return interactions
    if ties not in ("smallest_item", "largest_item"):
        raise ConfigError(f"ties is {ties!r}: expected 'file_order', 'smallest_item' or 'largest_item'")
    by_item = interactions.item if ties == "largest_item" else -interactions.item
    order = np.lexsort((by_item, interactions.timestamp, interactions.user))
    return replace(interactions, **interactions.columns(order))


def _shuffled(interactions: Interactions, seed: int) -> IntArray:
    """[N] place of each interaction in a random order of the same user's."""
    pair = interactions.user * np.int64(interactions.n_items) + interactions.item
    draw = bits(user_keys(key(seed, Purpose.SPLIT, 1), pair), 1)[:, 0]
    order = np.lexsort((draw, interactions.user))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(interactions.indptr[:-1], interactions.counts)
    return place


def _age(interactions: Interactions) -> IntArray:
    """[N] how many of the same user's interactions are newer."""
    ends = np.repeat(interactions.indptr[1:], interactions.counts)
    return np.asarray(ends - 1 - np.arange(len(interactions)))


def _random_rank(interactions: Interactions, seed: int) -> IntArray:
    """[N] rank of each interaction among its user's in a random order."""
    position = np.arange(len(interactions)) - np.repeat(interactions.indptr[:-1], interactions.counts)
    keys = absorb(user_keys(key(seed, Purpose.SPLIT), interactions.user), position.astype(np.uint64))
    order = np.lexsort((uniform(keys, 1)[:, 0], interactions.user))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = position
    return rank


def _assemble(interactions: Interactions, part: NDArray[np.int64], nothing: str) -> Split:
    """The split in which row k belongs to `part[k]`."""
    if not np.any(part == TEST):
        raise DataError(
            f"{nothing}: nothing can be held out; give more interactions per user or another split"
        )
    if not np.any(part == TRAIN):
        raise DataError("the split leaves nothing to learn from: hold out less")
    validation, support = (
        interactions.select(part == p) if np.any(part == p) else None for p in (VALIDATION, SUPPORT)
    )
    return Split(interactions.select(part == TRAIN), validation, interactions.select(part == TEST), support)


def _check_fractions(test: float, validation: float) -> None:
    if not (0 < test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ConfigError(
            f"test_fraction {test} and validation_fraction {validation}: expected shares between 0 and 1 "
            "that leave something to learn from"
        )
