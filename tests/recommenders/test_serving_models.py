"""Models on a device: the same scores as the recommender that was trained, exact explanations, files and 8 bits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import planted
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Interactions
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Newton, Ridge
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.model import History, ServingModel
from fedrec.ranking.popular import Selected
from fedrec.ranking.read import read_model
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights
from fedrec.recommenders.registry import RECOMMENDERS, build, parse
from fedrec.recommenders.serving import serving_form

#: Where a kind has such a key: what serving must not lose, and a server that learns in few rounds.
ASKED: dict[str, Any] = {
    "scoring_half_life": 3.0,
    "popularity_weight": 0.3,
    "heads": 2,
    "layers": 2,
    "server": {"name": "adam", "learning_rate": 0.02},
}
FEATURES = np.random.default_rng(4).normal(size=(60, 5)).astype(np.float32)
#: Of gradients, where users are folded in by another way than trained; of sweeps; of other models.
MANY, SWEEPS, FEW = 20, 4, 3


def small(kind: str) -> dict[str, Any]:
    """Its small configuration, with everything set that a serving form has to carry over."""
    made = RECOMMENDERS.get(kind)
    keys = made.config_class.model_fields
    # NCF's layers are widths.
    asked = {k: v for k, v in ASKED.items() if k in keys and not isinstance(keys[k].default, tuple)}
    return {"kind": kind} | dict(made.small) | asked


def trained(kind: str) -> tuple[Any, dict[str, Any], Interactions, ServingModel]:
    data = planted()
    recommender = build(parse(small(kind)))
    rounds = SWEEPS if recommender.round_is_sweep else FEW if recommender.serves_exactly else MANY
    features = FEATURES if recommender.needs.features else None
    shared, _ = recommender.fit(data, 3, recommender.fixed_rounds or rounds, features)
    return recommender, shared, data, serving_form(recommender, shared)


SERVED = [kind for kind, _ in RECOMMENDERS.builtin() if build(parse(small(kind))).serving_refusal() is None]
MODELS = {kind: trained(kind) for kind in SERVED}


def history(data: Interactions, user: int) -> History:
    item = data.item[data.indptr[user] : data.indptr[user + 1]]
    return History(item.astype(np.int64), np.ones(len(item), np.float32))


def rankings_agree(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])


def test_a_recommender_serves_or_says_why_not() -> None:
    refused = set(RECOMMENDERS.builtin_names()) - set(SERVED)
    assert len(SERVED) > len(refused) > 0
    for kind in refused:
        with pytest.raises(ConfigError, match=f"{kind!r} cannot serve on a device"):
            serving_form(build(parse(small(kind))), {})


@pytest.mark.parametrize("kind", SERVED)
def test_scores_are_those_of_the_recommender(kind: str) -> None:
    recommender, shared, data, model = MODELS[kind]
    assert model.n_items == data.n_items
    for user in range(0, data.n_users, 7):
        batch = data.batch(np.array([user]))
        wanted = recommender.score(shared, recommender.fold_in(shared, batch), batch)[0]
        found = model.scores(model.fold_in(history(data, user)))
        if recommender.serves_exactly:
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
        else:
            # Another way of folding in: the order must be nearly the same.
            assert rankings_agree(found, wanted) > 0.85


@pytest.mark.parametrize("kind", SERVED)
def test_someone_without_a_history_gets_scores(kind: str) -> None:
    _, shared, data, model = MODELS[kind]
    no_one = model.fold_in(History.of(Items.of([]), []))
    found = model.scores(no_one)
    assert found.shape == (data.n_items,) and np.isfinite(found).all()
    if isinstance(model, Selected):
        assert found.argmax() == shared["count"].argmax()


@pytest.mark.parametrize("kind", SERVED)
@given(seed=st.integers(0, 1000), length=st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_explanations_add_up_to_the_score(kind: str, seed: int, length: int) -> None:
    _, _, data, model = MODELS[kind]
    rng = np.random.default_rng(seed)
    items = rng.choice(data.n_items, length, replace=False).astype(np.int64)
    folded = model.fold_in(History(items, rng.uniform(0.5, 2.0, length).astype(np.float32)))
    scores = model.scores(folded)
    for item in rng.choice(data.n_items, 4, replace=False):
        found = model.explain(folded, int(item))
        assert len(found.contributions) == length
        size = max(abs(float(scores[item])), np.abs(found.contributions).max(initial=0.0), abs(found.base))
        assert found.score == pytest.approx(scores[item], abs=1e-4 * size + 1e-6)
        assert found.base + found.contributions.sum() == pytest.approx(found.score, abs=1e-4 * size + 1e-6)


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize("eight_bits", [False, True])
def test_a_model_read_back_is_the_same(kind: str, eight_bits: bool) -> None:
    _, _, data, model = MODELS[kind]
    model = model.quantised() if eight_bits else model
    arrays, header = model.to_arrays()
    again = read_model({name: values.copy() for name, values in arrays.items()}, header)
    one, other = (m.scores(m.fold_in(history(data, 1))) for m in (model, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", SERVED)
def test_8_bits_keep_the_order(kind: str) -> None:
    _, _, data, model = MODELS[kind]
    small = model.quantised()
    for user in (0, 5, 11):
        folded = history(data, user)
        one, other = model.scores(model.fold_in(folded)), small.scores(small.fold_in(folded))
        assert rankings_agree(one, other) > 0.95


@pytest.mark.parametrize("kind", ["ease", "ials", "mf", "item_knn"])
def test_an_entry_of_strength_two_counts_twice(kind: str) -> None:
    """Two entries of one item, one after the other, are one of weight two where the model has no recency."""
    keys = RECOMMENDERS.get(kind).config_class.model_fields
    config = parse(small(kind) | ({"scoring_half_life": None} if "scoring_half_life" in keys else {}))
    _, shared, _, _ = MODELS[kind]
    model = serving_form(build(config), shared)
    twice = History(np.array([2, 2, 5]), np.ones(3, np.float32))
    strong = History(np.array([2, 5]), np.array([2, 1], np.float32))
    np.testing.assert_allclose(
        model.scores(model.fold_in(twice)), model.scores(model.fold_in(strong)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["ease", "ials", "mf", "item_knn", "dp_ease", "item_graph", "dp_item_graph"])
def test_items_of_ones_group_are_similar_and_the_last_click_counts(kind: str) -> None:
    """In the planted data users stay within the items of one remainder modulo 4."""
    model = MODELS[kind][-1]
    same = []
    for item in np.argsort(-MODELS[kind][2].item_counts)[:12]:
        likeness = model.similar(int(item))
        likeness[item] = -np.inf
        same.append(likeness.argmax() % 4 == item % 4)
        clicked = model.scores(model.fold_in(History(np.array([item]), np.ones(1, np.float32))))
        clicked[item] = -np.inf
        same.append(clicked.argmax() % 4 == item % 4)
    assert np.mean(same) > 0.8


def test_a_pruned_model_keeps_the_strongest_weights() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(40, 40)).astype(np.float32)
    model = ItemItem(DenseWeights(FloatTable(weights)), None)
    folded = History(np.array([3, 9]), np.ones(2, np.float32))
    whole, all_kept = model.fold_in(folded), model.pruned(40)
    np.testing.assert_allclose(all_kept.scores(all_kept.fold_in(folded)), model.scores(whole), atol=1e-5)
    few = model.pruned(5)
    kept = few.scores(few.fold_in(History(np.array([3]), np.ones(1, np.float32))))
    assert np.count_nonzero(kept) == 5
    assert set(np.flatnonzero(kept)) == set(np.argsort(-np.abs(weights[3]))[:5])
    found = few.explain(few.fold_in(folded), 7)
    assert found.score == pytest.approx(few.scores(few.fold_in(folded))[7], abs=1e-5)


def test_a_newton_step_finds_the_minimum_of_the_loss_it_stands_for() -> None:
    """With no negatives the loss is that of the history alone: its gradient must vanish."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(30, 4)).astype(np.float32)
    bias = rng.normal(size=30).astype(np.float32)
    model = Factors(FloatTable(table), Newton("bce", 0, 0.5), bias)
    seen = np.array([1, 7, 8])
    p = model.fold_in(History(seen, np.ones(3, np.float32))).state.vector
    chance = 1 / (1 + np.exp(-(table[seen] @ p + bias[seen])))
    gradient = -(table[seen] * (1 - chance)[:, None]).sum(axis=0) + 0.5 * 3 * p
    assert np.linalg.norm(gradient) < 1e-3


def test_bad_models_and_histories_are_refused_in_one_line() -> None:
    model = Factors(FloatTable(np.eye(4)), Ridge(0.1, 0.1))
    with pytest.raises(DataError, match="item 9: the model has 4"):
        model.fold_in(History(np.array([9]), np.ones(1, np.float32)))
    with pytest.raises(DataError, match="weight"):
        History(np.array([1]), np.zeros(1, np.float32))
    with pytest.raises(DataError, match="expected one of"):
        read_model({}, {"kind": "neural"})
    arrays, header = model.to_arrays()
    for broken in ({}, arrays | {"item_table": np.zeros(3, np.float32)}):
        with pytest.raises(DataError, match="fetch it again"):
            read_model(broken, header)
    with pytest.raises(DataError, match="fetch it again"):
        read_model(arrays, header | {"folding": {"kind": "ridge", "surprise": 1}})


def test_serving_needs_numpy_alone() -> None:
    code = (
        "import sys, numpy as np\n"
        "import fedrec.ranking.model, fedrec.ranking._cold, fedrec.ranking.items\n"
        "from fedrec.ranking.factors import Factors\n"
        "from fedrec.ranking.folding import Ridge\n"
        "from fedrec.ranking.model import History\n"
        "from fedrec.ranking.tables import FloatTable\n"
        "m = Factors(FloatTable(np.eye(3)), Ridge(.1, .1))\n"
        "m.scores(m.fold_in(History(np.array([1]), np.ones(1, np.float32))))\n"
        "heavy = {'torch', 'flwr', 'scipy', 'numba', 'pydantic', 'grpc'}\n"
        "print(sorted(heavy & {n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Items ----------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3)),
        max_size=8,
    )
)
@settings(deadline=None)
def test_items_read_back_are_the_same(rows: list[tuple[str, str, list[str]]]) -> None:
    rows = list({row[0]: row for row in rows}.values())
    items = Items.of([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    again = Items.from_arrays(items.to_arrays())
    assert (again.ids, again.titles, again.categories) == (items.ids, items.titles, items.categories)


def test_broken_items_are_refused() -> None:
    arrays = Items.of(["a", "b"], ["x", "y"], [["c"], []]).to_arrays()
    broken = [
        {name: values for name, values in arrays.items() if name != "ids.bytes"},
        arrays | {"ids.starts": np.array([0, 5, 2])},
        arrays | {"categories.index": np.array([7], np.int32)},
        arrays | {"titles.bytes": np.array([0xFF, 0xFE], np.uint8)},
        arrays | {"popularity": np.zeros(5, np.float32)},
    ]
    for each in broken:
        with pytest.raises(DataError):
            Items.from_arrays(each)
    with pytest.raises(DataError, match="twice"):
        Items.of(["a", "a"])


def test_a_history_keeps_what_the_model_knows() -> None:
    items = Items.of(["a", "b", "c"])
    found = History.of(items, ["c", "unheard of", "a"], [1.0, 1.0, 2.0])
    assert found.item.tolist() == [2, 0] and found.weight.tolist() == [1.0, 2.0]
