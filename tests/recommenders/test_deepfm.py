"""DeepFM and the figures that rankers are evaluated by."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_neural_models import ADAM, NeuralContract, described, model

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State
from fedrec.evaluation._ranking_metrics import RankerSums, Scaling, logit, newton_sums, rescale
from fedrec.recommenders.ctr.deepfm import DeepFm
from fedrec.secagg.encoding import encoding_for
from fedrec.testing import train
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import prepare

SMALL = {"embedding_size": 12, "layers": [16], "server": ADAM, "batch_users": 30}


class TestDeepFm(NeuralContract):
    rounds = 60

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("deepfm", **SMALL)


class TestDeepFmWithAllFields(NeuralContract):
    rounds = 60
    features: ClassVar[np.ndarray | None] = described()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("deepfm", features=12, context=True, **SMALL)


# Ratings of a user who likes one of two kinds of items in the morning and the other at night ----------------

USERS, ITEMS, EVENTS = 80, 30, 24


def rated(seed: int = 0) -> Interactions:
    """The rating is 5 where (hour < 12) is (item is even), otherwise 1; neither alone says anything."""
    rng = np.random.default_rng(seed)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    time = np.sort(rng.integers(0, 400, size=(USERS, EVENTS)), axis=1).reshape(-1) * 3600
    value = np.where((time // 3600 % 24 < 12) == (item % 2 == 0), 5.0, 1.0)
    user = np.repeat(np.arange(USERS), EVENTS)
    return Interactions.from_columns(
        user, item, value, time, item_ids=np.arange(ITEMS).astype(str), user_ids=np.arange(USERS).astype(str)
    )


def evaluated(recommender: DeepFm, shared: State, data: Interactions) -> dict[str, float]:
    """The last four events of everyone, asked for at their time after the history before."""
    sums = RankerSums.empty()
    for back in range(4):
        last = data.indptr[1:] - 1 - back
        known = np.concatenate(
            [np.arange(a, b) < b - 1 - back for a, b in zip(data.indptr, data.indptr[1:], strict=False)]
        )
        batch = data.select(known).batch(np.arange(data.n_users))
        p = recommender.predict(shared, batch, data.item[last][:, None], data.timestamp[last])[:, 0]
        sums = sums.merge(RankerSums.of(p, recommender.share(data.value[last]), np.arange(data.n_users)))
    return sums.report()


def test_it_finds_what_only_two_fields_together_say() -> None:
    data = rated()
    both = model("deepfm", target="rating", context=True, **SMALL)
    blind = model("deepfm", target="rating", context=False, **SMALL)
    found = {}
    for name, recommender in (("both", both), ("blind", blind)):
        assert isinstance(recommender, DeepFm)
        shared, _ = train(recommender, data, 200)
        found[name] = evaluated(recommender, shared, rated(1))
    assert found["both"]["auc"] > 0.9 and found["both"]["log_loss"] < 0.45
    assert found["blind"]["auc"] < 0.65


def test_how_a_user_rates_is_seen_in_the_own_earlier_ratings() -> None:
    """Users who like everything and users who like nothing: only the device's own level tells them apart."""
    data = rated()
    kind = np.where(data.user % 2 == 0, 5.0, 1.0).astype(np.float32)
    recommender = model("deepfm", target="rating", **SMALL)
    assert isinstance(recommender, DeepFm)
    shared, _ = train(recommender, replace(data, value=kind), 60)
    others = rated(2)
    turned = np.where(others.user % 2 == 1, 5.0, 1.0).astype(np.float32)
    assert evaluated(recommender, shared, replace(others, value=turned))["auc"] > 0.95


def test_an_event_does_not_explain_itself() -> None:
    """The past of a moment is what came before it: changing a later event changes no earlier example."""
    recommender = model("deepfm", **SMALL)
    assert isinstance(recommender, DeepFm)
    shared = recommender.init_shared(ITEMS, 0)
    one = UserBatch(np.array([1]), np.array([0, 3]), np.array([4, 5, 6]), np.ones(3, np.float32))
    late = UserBatch(np.array([1]), np.array([0, 2]), np.array([4, 5]), np.ones(2, np.float32))
    # Asked after two events, the third makes no difference to what the first two say.
    whole = recommender.predict(shared, one.take(np.array([0])), np.array([[7]]))
    short = recommender.predict(shared, late, np.array([[7]]))
    assert whole[0, 0] != short[0, 0]
    work, _ = recommender.work(one, RoundSeed(0, 1), ITEMS, shared)
    places = np.sort(work.views.slot[:, 0])  # type: ignore[attr-defined]
    assert places.tolist() == [0, 1, 2]


def test_what_the_device_knows_of_the_user_is_no_part_of_an_update() -> None:
    data = rated()
    recommender = model("deepfm", target="rating", context=True, features=12, **SMALL)
    layout = recommender.layout(ITEMS)
    shared = recommender.init_shared(ITEMS, 0, described(ITEMS))
    one = data.batch(np.array([0]))
    update, local = recommender.compute_updates(shared, {}, one, RoundSeed(0, 1), ITEMS)
    # Only gradients of shared parameters; nothing of the user is kept or sent beside them.
    assert set(update.blocks) == set(layout.blocks) and local == {}
    assert "item_features" not in layout.blocks


def test_ratings_without_time_are_learned_without_context() -> None:
    data = rated()
    recommender = model("deepfm", target="rating", context=True, **SMALL)
    assert isinstance(recommender, DeepFm)
    shared = recommender.init_shared(ITEMS, 0)
    batch = data.batch(np.arange(5))
    bare = UserBatch(batch.user, batch.indptr, batch.item, batch.value)
    assert np.isfinite(recommender.predict(shared, bare, np.zeros((5, 1), dtype=np.int64))).all()


def test_several_passes_are_several_steps() -> None:
    """On the device a pass is a step over all events, so two passes go further than one, and not twice as far."""
    batch, rule = rated().batch(np.arange(6)), {"learning_rate": 0.05}
    moved = {}
    for passes in (1, 2):
        recommender = model("deepfm", local_epochs=passes, device=rule, **SMALL)
        shared = recommender.init_shared(ITEMS, 0)
        layout = recommender.layout(ITEMS)
        updates, _ = recommender.compute_updates(shared, {}, batch, RoundSeed(0, 1), ITEMS)
        moved[passes] = np.stack([updates.vector(user, layout) for user in range(6)])
    assert (np.linalg.norm(moved[2], axis=1) > 1.5 * np.linalg.norm(moved[1], axis=1)).all()
    assert np.abs(moved[2] - 2 * moved[1]).max() > 1e-6


def test_data_that_cannot_answer_are_refused_before_a_run() -> None:
    ranker = {"kind": "deepfm", "target": "rating"}
    rest = {"privacy": {"unit": "none", "aggregator": "plain", "insecure": True}}
    with pytest.raises(ConfigError, match=r"set data\.ratings"):
        parse_config(rest | {"model": ranker})
    file = {"name": "file", "path": "a.csv", "user_column": "u", "item_column": "i", "ratings": True}
    with pytest.raises(ConfigError, match=r"data\.timestamp_column"):
        parse_config(rest | {"model": ranker | {"context": True}, "data": file})
    config = parse_config(rest | {"model": ranker | {"rating_range": [1, 5]}, "data": {"ratings": True}})
    with pytest.raises(ConfigError, match=r"ratings are from 0 to 10 and model\.rating_range is 1 to 5"):
        prepare(config)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="rating_range"):
        model("deepfm", rating_range=[5, 1])
    with pytest.raises(ConfigError, match="item features: none"):
        model("deepfm", features=3).init_shared(9, 0)


# Figures ---------------------------------------------------------------------------------------------------


def some(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return p, (rng.random(n) < p).astype(float), rng.integers(0, 7, n)


@given(st.integers(2, 300), st.integers(0, 99), st.integers(1, 4))
def test_figures_are_those_of_pairs_and_parts_add_up(n: int, seed: int, parts: int) -> None:
    p, y, who = some(n, seed)
    whole = RankerSums.of(p, y, who).report()
    up, down = p[y == 1], p[y == 0]
    if len(up) and len(down):
        # Two within a thousandth of each other count as a tie, whichever is larger.
        near = (1000 * up).astype(int)[:, None] == (1000 * down).astype(int)
        assert abs(whole["auc"] - (up[:, None] > down).mean()) <= near.mean() / 2 + 1e-9
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert whole["log_loss"] == pytest.approx(loss) and whole["rmse"] ** 2 == pytest.approx(
        ((p - y) ** 2).mean()
    )
    merged = RankerSums.empty()
    for k in range(parts):
        mine = who % parts == k
        merged = merged.merge(RankerSums.of(p[mine], y[mine], who[mine]))
    assert merged.report() == pytest.approx(whole, nan_ok=True)


def test_hand_made_figures() -> None:
    p, y = np.array([0.9, 0.8, 0.3, 0.2]), np.array([1.0, 0.0, 1.0, 0.0])
    found = RankerSums.of(p, y, np.array([0, 0, 1, 1])).report()
    assert found["auc"] == 0.75 and found["auc_within"] == 1.0
    assert found["mean"] == pytest.approx(0.55) and found["outcome"] == 0.5
    assert found["calibration"] == pytest.approx((0.1 + 0.8 + 0.7 + 0.2) / 4)
    assert np.isnan(RankerSums.empty().report()["auc"])
    with pytest.raises(DataError, match="0 to 1"):
        RankerSums.of(p + 1, y, np.zeros(4, dtype=np.int64))
    with pytest.raises(DataError, match="as many"):
        RankerSums.of(p, y[:2], np.zeros(4, dtype=np.int64))


def test_sums_of_four_devices_survive_secure_sums() -> None:
    """The integers of secure aggregation carry them: what is read from the sum is what the parts add up to."""
    devices = [RankerSums.of(*some(200, seed)) for seed in range(4)]
    flat = [np.concatenate(list(each.to_arrays().values())) for each in devices]
    encoding = encoding_for(0, 32, users=4, clip_norm=1.0, numbers=len(flat[0]), rotation_seed=None)
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for each in flat:
        total += encoding.encode(np.zeros(0), each, np.random.default_rng(0).random)
    shapes = {name: values.shape for name, values in devices[0].to_arrays().items()}
    numbers, arrays, start = encoding.decode(total)[1], {}, 0
    for name, (size,) in shapes.items():
        arrays[name] = numbers[start : start + size]
        start += size
    whole = devices[0].merge(devices[1]).merge(devices[2]).merge(devices[3])
    assert RankerSums.from_arrays(arrays).report() == pytest.approx(whole.report(), abs=1e-4)


def test_calibration_is_mended_by_two_numbers_from_sums() -> None:
    p, y, who = some(20_000, 3)
    bent = 1 / (1 + np.exp(-(0.4 * logit(p) - 1.0)))
    before = RankerSums.of(bent, y, who).report()["calibration"]
    halves = np.arange(len(p)) % 2 == 0

    def ask(scaling: Scaling) -> tuple[np.ndarray, np.ndarray]:
        sums = [newton_sums(scaling, bent[half], y[half]) for half in (halves, ~halves)]
        return sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]

    found = rescale(ask)
    assert found.slope == pytest.approx(2.5, abs=0.1) and found.shift == pytest.approx(2.5, abs=0.15)
    assert RankerSums.of(found(bent), y, who).report()["calibration"] < 0.015 < 0.1 < before
