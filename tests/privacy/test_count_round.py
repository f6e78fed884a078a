"""The noisy count round: what it costs, whom it counts, and which rows it lets through."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.count_round import contribution, count_round, rows_over
from fedrec.privacy.noise import NoiseSource
from fedrec.secagg.encoding import Encoding

ITEMS = 300


def batch(histories: list[list[int]]) -> UserBatch:
    indptr = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    item = np.array([i for h in histories for i in h], dtype=np.int64)
    return UserBatch(np.arange(len(histories)), indptr, item, np.ones(len(item), dtype=np.float32))


def test_the_noise_costs_what_was_asked_for() -> None:
    made = count_round(2.0, 1e-5, max_items=20, users=500)
    assert 1.9 < epsilon([made.release()], 1e-5, "rdp") <= 2.0
    assert count_round(1.0, 1e-5, max_items=20, users=500).variance > made.variance


@pytest.mark.parametrize(("floor", "users"), [(4, 10), (5, 0)])
def test_a_floor_below_five_or_no_one_is_refused(floor: int, users: int) -> None:
    with pytest.raises(ConfigError, match="expected at least"):
        count_round(1.0, 1e-5, max_items=3, users=users, floor=floor)


def test_a_user_counts_once_per_item_and_with_the_newest_items() -> None:
    made = count_round(1e6, 1e-5, max_items=2, users=2).model_copy(update={"noise_multiplier": 1e-9})
    found = contribution(made, batch([[1, 2, 1, 3], [], [3, 3, 3]]), 5, NoiseSource(1))
    np.testing.assert_array_equal(found, [0, 1, 0, 2, 0])


def test_shares_of_many_nodes_add_up_to_the_planned_noise() -> None:
    made = count_round(1.0, 1e-5, max_items=10, users=40)
    total = sum(contribution(made, batch([[]] * 4), 20_000, NoiseSource(k)) for k in range(10))
    assert np.var(total) == pytest.approx(made.variance, rel=0.05)


def test_rare_rows_do_not_pass_and_common_ones_do_through_the_secure_sum() -> None:
    made = count_round(4.0, 1e-6, max_items=5, users=400)
    common, rare = 7, np.arange(100, 100 + 200)
    histories = [[common, int(rare[u % 200])] for u in range(400)]
    encoding = Encoding(ITEMS, 32, 1.0)
    parts = [
        encoding.carry(contribution(made, batch(histories[k : k + 40]), ITEMS, NoiseSource(k)), np.zeros(0))
        for k in range(0, 400, 40)
    ]
    total = np.sum(parts, axis=0, dtype=np.uint32)
    counts = encoding.decode_integers(total)[0].astype(np.uint32).view(np.int32).astype(np.int64)
    np.testing.assert_array_equal(rows_over(made, counts, 400), [common])
    assert len(rows_over(made, counts, 399)) == 0


def test_the_threshold_keeps_its_chance_for_rows_just_below_the_floor() -> None:
    """P(noise >= t) is at most 1e-6: a normal tail of that variance is far below it at the threshold."""
    made = count_round(1.0, 1e-6, max_items=20, users=100, floor=8)
    room = made.threshold - 7
    assert math.erfc(room / math.sqrt(2 * made.variance)) / 2 < 1e-6
    draws = NoiseSource(3).skellam(1_000_000, made.variance)
    assert not (7 + draws > made.threshold).any()
