"""What each phase may learn from and know."""

from __future__ import annotations

import numpy as np

from fedrec.core.interactions import Interactions
from fedrec.data.split import Split


def _part(*rows: tuple[int, int]) -> Interactions:
    users, items = [str(u) for u, _ in rows], [str(i) for _, i in rows]
    ids = np.array([str(k) for k in range(9)])
    return Interactions.from_columns(
        np.array(users, dtype=str), np.array(items, dtype=str), item_ids=ids, user_ids=ids
    )


HELD_OUT = Split(
    train=_part((0, 1), (0, 2)),
    validation=_part((1, 5)),
    test=_part((2, 8)),
    support=_part((1, 3), (1, 4), (2, 6), (2, 7)),
)


def _histories(part: Interactions) -> dict[int, list[int]]:
    return {user: part.history(user).tolist() for user in range(3) if part.counts[user]}


def test_held_out_users_are_known_but_not_learnt_from() -> None:
    assert _histories(HELD_OUT.learnable("tuning")) == {0: [1, 2]}
    assert _histories(HELD_OUT.history("tuning")) == {0: [1, 2], 1: [3, 4], 2: [6, 7]}


def test_validation_users_join_the_final_fit_with_their_support() -> None:
    assert _histories(HELD_OUT.learnable("refit")) == {0: [1, 2], 1: [3, 4, 5]}
    assert _histories(HELD_OUT.history("refit")) == {0: [1, 2], 1: [3, 4, 5], 2: [6, 7]}


def test_shards_partition_users_and_keep_their_keys(split: Split) -> None:
    shards = [split.shard(k, 3) for k in range(3)]
    keys = np.concatenate([shard.user_key for shard in shards])
    assert sorted(keys.tolist()) == list(range(split.train.n_users))
    for shard in shards:
        for position, key in enumerate(shard.user_key.tolist()):
            assert shard.train.history(position).tolist() == split.train.history(key).tolist()
            assert shard.train.user_ids[position] == split.train.user_ids[key]
