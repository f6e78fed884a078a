"""Attacks: they find what is there, find nothing where nothing is, and their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import last_out, planted
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedrec.core.errors import DataError, PrivacyRefused
from fedrec.core.recommender import Recommender
from fedrec.core.updates import BlockSpec, Layout
from fedrec.privacy.attacks import (
    Measured,
    auc,
    item_evidence,
    matched_controls,
    matched_filter,
    measured,
    measured_by_user,
)
from fedrec.privacy.settings import InteractionPlan, PrivacySettings
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.closed_form.ials import Ials, IalsConfig
from fedrec.recommenders.closed_form.popularity import Popularity, PopularityConfig
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig
from fedrec_simulations.audit.attack_views import Target, planner_of
from fedrec_simulations.audit.attacks import Row, attack, attack_updates


@given(
    arrays(np.float64, st.integers(2, 30), elements=st.integers(-3, 3).map(float)),
    st.data(),
)
def test_auc_is_the_share_of_pairs_in_order(scores, data):
    labels = data.draw(arrays(bool, len(scores)).filter(lambda x: x.any() and not x.all()))
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auc(-scores, labels) == pytest.approx(1 - np.mean(pairs))
    result = measured(scores, labels)
    assert 0 <= result.low <= result.auc + 1e-9 and result.auc - 1e-9 <= result.high <= 1


def test_interval_covers_the_truth_about_95_times_in_100():
    # Two normals a distance 1 apart: AUC = Φ(1 / √2) = 0.7602.
    rng, hits = np.random.default_rng(0), 0
    labels = np.arange(120) < 60
    for _ in range(400):
        result = measured(rng.normal(size=120) + labels, labels)
        hits += result.low <= 0.7602 <= result.high
    assert 0.91 <= hits / 400 <= 0.985


def test_interval_is_not_empty_where_all_are_in_order():
    result = measured(np.arange(20.0), np.arange(20) >= 10)
    assert result.auc == 1.0 and 0.6 < result.low < 0.95 and result.high == 1.0


def test_users_count_equally_whatever_the_length_of_their_histories():
    long = (np.arange(200.0), np.arange(200) >= 100)
    short = (np.array([1.0, 0.0]), np.array([False, True]))
    nothing = (np.array([1.0]), np.array([True]))
    result = measured_by_user([long, short, nothing])
    assert result.auc == 0.5 and result.subjects == 2 and result.positives == 101


@pytest.mark.parametrize(
    ("scores", "labels"), [([1.0, 2.0], [True, True]), ([1.0, np.nan], [True, False]), ([], [])]
)
def test_attacks_without_cases_are_refused(scores, labels):
    with pytest.raises(PrivacyRefused, match="expected some of both"):
        auc(np.array(scores), np.array(labels, dtype=bool))
    with pytest.raises(PrivacyRefused):
        measured_by_user([])


def test_controls_are_unowned_and_as_popular():
    rng = np.random.default_rng(1)
    popularity = np.sort(rng.zipf(1.5, 500).clip(max=5000))
    owned = rng.choice(500, 80, replace=False)
    items, controls = matched_controls(owned, owned, popularity, rng)
    assert len(items) == len(controls) > 40
    assert not np.isin(controls, owned).any() and len(set(controls)) == len(controls)
    gap = np.abs(popularity[items] - popularity[controls])
    assert (gap <= np.maximum(1, 0.1 * popularity[items])).all()


@pytest.mark.parametrize("spec", [BlockSpec((40,)), BlockSpec((40, 40), True), BlockSpec((40, 3, 3), True)])
def test_evidence_of_summed_statistics_is_the_history(spec):
    history, layout = np.array([3, 7, 20]), Layout({"block": spec})
    totals = layout.zeros()
    x = np.zeros(40)
    x[history] = 1.0
    p = np.array([0.5, -1.0, 2.0])
    totals["block"] += {1: x, 2: np.outer(x, x), 3: x[:, None, None] * np.outer(p, p)}[len(spec.shape)]
    evidence = item_evidence(layout.flatten(totals).astype(np.float64), layout, 40)
    assert set(np.argsort(-evidence)[:3]) == set(history)


@pytest.mark.parametrize("with_bias", [True, False])
def test_evidence_of_a_gradient_tells_positives_from_sampled_negatives(with_bias):
    rng = np.random.default_rng(2)
    specs = {"table": BlockSpec((60, 8))} | ({"bias": BlockSpec((60,))} if with_bias else {})
    layout, user = Layout(specs), rng.normal(size=8)
    step = np.zeros(60)
    step[:5], step[5:25] = 0.9, -0.1
    blocks = {"table": np.outer(step, user), "bias": step}
    flat = layout.flatten({name: blocks[name] for name in specs}).astype(np.float64)
    assert auc(item_evidence(flat, layout, 60), step > 0) == 1.0


def test_evidence_of_noise_is_nothing():
    layout = Layout({"table": BlockSpec((400, 4)), "count": BlockSpec((400,))})
    rng = np.random.default_rng(3)
    cases = [
        (item_evidence(rng.normal(size=layout.size), layout, 400), np.arange(400) < 40) for _ in range(60)
    ]
    result = measured_by_user(cases)
    assert result.low < 0.5 < result.high and result.high - result.low < 0.06


def test_matched_filter_has_the_power_of_the_best_test():
    # A unit vector under noise of standard deviation 1: distance 1 between in and out, AUC 0.7602.
    rng = np.random.default_rng(4)
    candidate = rng.normal(size=50)
    candidate /= np.linalg.norm(candidate)
    labels = np.arange(4000) % 2 == 0
    scores = np.array(
        [matched_filter(rng.normal(size=50) + k * candidate, np.zeros(50), candidate) for k in labels]
    )
    result = measured(scores, labels)
    assert result.low < 0.7602 < result.high
    assert matched_filter(candidate, np.zeros(50), np.zeros(50)) == 0.0


MODELS = [
    Popularity(PopularityConfig()),
    Ease(EaseConfig()),
    Ials(IalsConfig(embedding_size=4)),
    MatrixFactorisation(MfConfig(embedding_size=4)),
]


def target_of(recommender: Recommender) -> Target:
    return Target.of(recommender, last_out(planted(150, 80)), 2, 1.0, 0)


def aucs(rows: list[Row], attack_name: str, start: str) -> list[Measured]:
    return [r.result for r in rows if r.attack == attack_name and r.view.startswith(start)]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.kind)
def test_an_update_alone_gives_the_history_away_clipped_or_not(model):
    rows = attack(target_of(model), None, 30)
    (bare, clipped) = aucs(rows, "interactions", "one update")
    assert bare.auc > 0.99 and clipped.auc > 0.99
    (summed,) = aucs(rows, "interactions", "sum of 30")
    assert summed.auc < 0.85
    (member,) = aucs(rows, "membership", "sum of 30")
    assert member.high > 0.6


@pytest.mark.parametrize("trust", ["distributed", "local"])
@pytest.mark.parametrize("model", [MODELS[0], MODELS[3]], ids=lambda m: m.kind)
def test_noise_on_the_device_hides_the_history_from_the_server(model, trust):
    target = target_of(model)
    planner = planner_of(PrivacySettings(unit="user", trust=trust, epsilon=1.0), target)
    assert planner is not None
    rows = attack_updates(target, planner, 30)
    (message,) = aucs(rows, "interactions", "one message")
    assert message.auc < 0.75
    for name in ("interactions", "membership"):
        (released,) = aucs(rows, name, "released sum")
        assert released.low < 0.68


def test_central_noise_hides_nothing_from_the_server_and_much_from_the_others():
    target = target_of(MODELS[0])
    planner = planner_of(PrivacySettings(unit="user", epsilon=0.5), target)
    rows = attack(target, planner, 30)
    (message,) = aucs(rows, "interactions", "one message")
    assert message.auc == 1.0
    (released,) = aucs(rows, "membership", "released sum")
    assert released.low < 0.6
    assert sum(row.private for row in rows) == 6 and all("auc" in row.as_dict() for row in rows)


def test_interaction_level_noise_is_attacked_in_what_the_device_trained():
    target = target_of(MODELS[3])
    interaction = InteractionPlan(local_steps=2, expected_batch=4.0)
    settings = PrivacySettings(unit="interaction", epsilon=2.0, interaction=interaction)
    rows = attack_updates(target, planner_of(settings, target), 20)
    (message,) = aucs(rows, "interactions", "one message")
    assert message.auc < 0.8


def test_the_planner_keeps_the_target_at_the_delta_of_everyone():
    target = target_of(MODELS[0])
    planner = planner_of(PrivacySettings(unit="user", epsilon=2.0, noise_seed=1), target)
    assert planner is not None
    plan = planner(30, 1)
    assert plan.epsilon() <= 2.0 and plan.delta == pytest.approx(150**-1.1) and plan.noise_seed is None
    assert planner_of(None, target) is None


def test_a_cohort_of_too_many_is_refused():
    with pytest.raises(DataError, match="a third of them"):
        attack_updates(target_of(MODELS[0]), None, 60)
