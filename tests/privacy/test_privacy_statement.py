"""The privacy statement: twelve fields for every kind of run, with the gaps named, never a bare epsilon."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privacy_plans import plan

from fedrec.core.errors import ConfigError, RunError
from fedrec.privacy._gaussian import gaussian_epsilon
from fedrec.privacy._interpretation import attack_power, tier
from fedrec.privacy.integers import Integers
from fedrec.privacy.plan import MetricsRelease, PrivacyPlan
from fedrec.privacy.settings import InteractionPlan
from fedrec.privacy.statement import FIELDS, AuditFacts, StatementFacts, statement, write_statement
from fedrec.privacy.threat_model import local_epsilon
from fedrec_simulations.report.privacy_page import read_statement, write_privacy_page

FACTS = StatementFacts(
    rounds=4,
    engine="in process",
    nodes=10,
    users_per_node=100,
    code="fedrec 0.1.0 (commit abc)",
    config_hash="0123abcd",
    packages={"numpy": "2.0"},
)
INTEGERS = Integers(scale=100.0, bits=32, survivors=0.8, beta=1e-9)
KINDS: dict[str, PrivacyPlan | None] = {
    "none": None,
    "central": plan(),
    "poisson": plan(1.0, sampling="poisson", sampling_rate=0.05),
    "distributed": plan(6.0, trust="distributed", accountant="rdp", distributed=INTEGERS),
    "local": plan(40.0, trust="local"),
    "interaction": plan(2.0, unit="interaction", trust="local", interaction=InteractionPlan()),
    "seeded": plan(noise_seed=3),
    "no noise": plan(0.0, target_epsilon=math.inf),
}


def made(kind: str, **facts: Any) -> dict[str, Any]:
    return statement(KINDS[kind], FACTS.model_copy(update=facts))


def words(field: dict[str, Any]) -> str:
    return " ".join(field["text"])


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_has_the_twelve_fields_with_sentences(self, kind: str) -> None:
        found = made(kind)
        assert len(FIELDS) == 12
        for name in FIELDS:
            assert found[name]["text"], name
            for sentence in found[name]["text"]:
                assert re.search(r"[.:]$", sentence), sentence

    def test_is_strict_json_and_comes_back(self, kind: str, tmp_path: Path) -> None:
        path = write_statement(tmp_path, made(kind))
        assert path.name == "privacy.json"
        json.loads(path.read_text(), parse_constant=pytest.fail)
        assert read_statement(path) == json.loads(json.dumps(made(kind)))

    def test_epsilon_never_stands_without_its_delta(self, kind: str) -> None:
        found = made(kind, ledger="ledger", other_plans=1, other_epsilon=0.5, other_delta=1e-5)
        sentences = [
            found["headline"],
            *found["warnings"],
            *(s for name in FIELDS for s in found[name]["text"]),
        ]
        for sentence in sentences:
            if re.search(r"epsilon (?:is )?[0-9]", sentence, re.IGNORECASE):
                assert "delta" in sentence, sentence

    def test_names_what_no_guarantee_covers(self, kind: str) -> None:
        text = words(made(kind)["not_covered"]).lower()
        for gap in (
            "user vectors",
            "takes part",
            "how many users",
            "catalogue",
            "prepared",
            "stopping",
            "tuning",
        ):
            assert gap in text
        assert "recommendation lists" in text

    def test_the_page_shows_every_sentence_and_loads_nothing(self, kind: str, tmp_path: Path) -> None:
        found = made(kind)
        page = write_privacy_page(tmp_path / "deep" / "privacy.html", found).read_text()
        assert page.count("<section id=") == 12
        for line in [found["headline"], *found["warnings"]]:
            assert line.replace("'", "&#39;") in page
        for name in FIELDS:
            for line in found[name]["text"]:
                assert line.replace("'", "&#39;").replace(">", "&gt;") in page
        assert not re.search(r"https?://|<script|@import|url\(", page)


class TestGuarantee:
    def test_is_the_plans(self) -> None:
        found = made("central")["guarantee"]
        assert found["epsilon"] == pytest.approx(gaussian_epsilon(0.5, 1e-5))
        assert found["delta"] == 1e-5
        assert found["mu"] == pytest.approx(0.5)
        assert found["rho"] == pytest.approx(0.125)
        assert found["population"] == 1000

    def test_an_early_stop_does_not_make_it_smaller(self) -> None:
        found = made("central", rounds=2)["guarantee"]
        assert found["epsilon"] == made("central")["guarantee"]["epsilon"]
        assert "2 of 4 planned rounds" in words(found)

    def test_without_privacy_there_is_none(self) -> None:
        found = made("none")
        assert found["private"] is False
        assert found["guarantee"]["epsilon"] is None
        assert any("NO DIFFERENTIAL PRIVACY" in line for line in found["warnings"])

    def test_seeded_noise_is_not_private(self) -> None:
        found = made("seeded")
        assert found["private"] is False
        assert found["guarantee"]["epsilon"] is None
        assert found["headline"].startswith("NOT PRIVATE")
        assert found["warnings"][0].startswith("NOT PRIVATE")
        assert found["guarantee"]["text"][0].startswith("NOT PRIVATE")
        assert found["mechanism"]["random_numbers"] == "seeded, not private"

    def test_no_noise_is_infinite(self) -> None:
        found = made("no noise")
        assert found["guarantee"]["epsilon"] is None
        assert found["guarantee"]["tier"] == "weak"
        assert "infinite" in found["headline"]

    def test_a_unit_of_interactions_gives_the_users_number_beside(self) -> None:
        found = made("interaction")
        whole = found["guarantee"]["user_epsilon"]
        assert whole > 10 * found["guarantee"]["epsilon"]
        assert f"{whole:,.0f}" in found["headline"]
        assert any(line.startswith("WEAK") for line in found["warnings"])


class TestTrust:
    def test_central_trusts_the_server_that_sees_clean_sums(self) -> None:
        found = made("central")
        assert "clean sum" in words(found["adversary_and_trust"])
        assert "The server" in words(found["not_covered"])

    def test_distributed_without_secure_aggregation_says_what_the_server_can_do(self) -> None:
        found = made("distributed", nodes=1000, users_per_node=1)
        own = found["adversary_and_trust"]["server_epsilon"]
        assert own > 10 * found["guarantee"]["epsilon"]
        assert any("NO SECURE AGGREGATION" in line and f"{own:.3g}" in line for line in found["warnings"])
        assert "The server" in words(found["not_covered"])

    def test_secure_aggregation_lets_the_guarantee_hold_against_the_server(self) -> None:
        found = made("distributed", aggregator="secagg", least_nodes=20)
        assert found["adversary_and_trust"]["server_epsilon"] == found["guarantee"]["epsilon"]
        assert found["warnings"] == []
        assert "sums over at least 20 of" in words(found["adversary_and_trust"])
        assert "simulation in one process" not in words(found["adversary_and_trust"])

    def test_secure_aggregation_without_noise_says_what_a_sum_tells(self) -> None:
        found = made("central", aggregator="secagg", least_nodes=3, simulated=True)
        assert "touched by one user alone" in words(found["adversary_and_trust"])
        assert "simulation in one process" in words(found["adversary_and_trust"])

    def test_sealed_replies_are_no_secure_aggregation(self) -> None:
        found = made("distributed", aggregator="sealed", nodes=1000, users_per_node=1)
        assert any("NO SECURE AGGREGATION" in line for line in found["warnings"])
        assert "Replies are sealed" in words(found["adversary_and_trust"])

    def test_a_nodes_own_noise_is_worth_its_share(self) -> None:
        distributed = KINDS["distributed"]
        assert distributed is not None
        worth = [local_epsilon(distributed, users) for users in (1, 10, 100, 800, 1000)]
        assert worth == sorted(worth, reverse=True)
        assert worth[-1] == worth[-2] == pytest.approx(distributed.epsilon())

    def test_central_nodes_have_no_noise_of_their_own(self) -> None:
        assert math.isinf(local_epsilon(plan(), 100))

    def test_local_needs_no_trust_in_the_server(self) -> None:
        found = made("local")
        assert "against the server" in words(found["adversary_and_trust"])
        assert "The server:" not in words(found["not_covered"])

    def test_sampling_is_stated_as_done_and_as_assumed(self) -> None:
        assert made("poisson")["sampling"]["amplification_claimed"] is True
        claimed_not = plan(40.0, trust="local", sampling="poisson", sampling_rate=0.05)
        found = statement(claimed_not, FACTS)["sampling"]
        assert (found["implemented"], found["assumed"]) == ("poisson", "everyone")


class TestFacts:
    @pytest.mark.parametrize("metrics", ["exact", "noised"])
    def test_metrics_that_are_not_in_the_plan_are_no_part_of_a_private_run(self, metrics: str) -> None:
        with pytest.raises(ConfigError, match="releases those of its plan, or none"):
            made("central", metrics=metrics)

    def test_noised_metrics_are_released_charged_and_counted(self) -> None:
        release = MetricsRelease(names=("full/ndcg@10",), noise_multiplier=20.0)
        evaluated = plan(40.0, metrics=release)
        found = statement(evaluated, FACTS.model_copy(update={"metrics": "noised", "held_data": True}))
        assert found["guarantee"]["epsilon"] == evaluated.epsilon() > plan(40.0).epsilon()
        assert "it is charged" in words(found["released"]) and "full/ndcg@10" in words(found["released"])
        assert found["mechanism"]["metrics"]["noise_multiplier"] == 20.0
        assert "by a researcher who holds all the data" in words(found["not_covered"])
        assert "and their metrics" in found["headline"]
        unused = statement(evaluated, FACTS)
        assert "part of epsilon" in words(unused["released"])

    def test_that_tuning_is_not_covered_stands_beside_every_epsilon(self) -> None:
        for kind in ("central", "distributed", "local", "interaction"):
            assert "How settings were chosen is not covered" in words(made(kind)["guarantee"])

    def test_what_leaves_exactly_is_a_warning_and_a_gap(self) -> None:
        found = made("central", exact_numbers=("loss",), selected=True, tuned=True, lists_served=True)
        assert any("loss" in line for line in found["warnings"])
        text = words(found["not_covered"])
        assert "they were decided on these users" in text
        assert "Tuning: settings were chosen" in text
        assert "computed from users's histories" in text

    def test_other_runs_are_added_on_top(self) -> None:
        found = made("central", ledger="ledger", other_plans=2, other_epsilon=1.25, other_delta=1e-5)
        assert "1.25" in words(found["budget_period_and_composition"])
        assert "No ledger" in words(made("central")["budget_period_and_composition"])

    def test_an_audit_that_refutes_is_the_readers_first_word(self) -> None:
        audit = AuditFacts(lower_bound=7.5, canaries=500, view="every round", verdict="VIOLATED")
        found = made("central", audit=audit)
        assert any("VIOLATED" in line for line in found["warnings"])
        assert "at least 7.5" in words(found["audit"])
        assert "not audited" in words(made("central")["audit"])

    def test_provenance_names_code_and_configuration(self) -> None:
        text = words(made("central")["provenance"])
        assert "commit abc" in text
        assert "0123abcd" in text
        assert "numpy 2.0" in text

    def test_markup_in_facts_stays_text(self, tmp_path: Path) -> None:
        page = write_privacy_page(tmp_path / "p.html", made("central", engine="<script>x</script>"))
        assert "<script>" not in page.read_text()

    def test_an_incomplete_statement_makes_no_page(self, tmp_path: Path) -> None:
        found = made("central")
        del found["not_covered"]
        with pytest.raises(RunError, match="not_covered"):
            write_privacy_page(tmp_path / "p.html", found)
        with pytest.raises(RunError, match="cannot be read"):
            read_statement(tmp_path / "none.json")


class TestReading:
    @pytest.mark.parametrize(
        ("epsilon", "word"),
        [
            (0.5, "strong"),
            (1.0, "strong"),
            (1.01, "reasonable"),
            (10.0, "reasonable"),
            (10.1, "weak"),
            (math.inf, "weak"),
        ],
    )
    def test_tiers(self, epsilon: float, word: str) -> None:
        assert tier(epsilon) == word

    def test_randomised_response_meets_the_bound_of_a_pure_epsilon(self) -> None:
        """Telling a bit truly with odds e^epsilon gives advantage p - (1 - p)."""
        p = math.exp(1.5) / (1 + math.exp(1.5))
        assert attack_power(1.5, 0.0)["advantage"] == pytest.approx(2 * p - 1)

    def test_a_gaussian_attack_by_threshold_meets_the_bound_of_mu(self) -> None:
        normal, mu = NormalDist(), 0.7
        found = attack_power(gaussian_epsilon(mu, 1e-5), 1e-5, mu)
        threshold = normal.inv_cdf(0.99)
        assert found["hits"] == pytest.approx(1 - normal.cdf(threshold - mu))
        assert found["advantage"] == pytest.approx(normal.cdf(mu / 2) - normal.cdf(-mu / 2))

    @given(st.floats(0, 800), st.floats(1e-12, 1e-2), st.floats(0.01, 8))
    def test_bounds_are_rates_and_the_pair_is_never_below_the_exact_curve(
        self, epsilon: float, delta: float, mu: float
    ) -> None:
        loose = attack_power(epsilon, delta)
        assert 0 <= loose["advantage"] <= 1
        assert 0.01 <= loose["hits"] <= 1
        exact, pair = attack_power(0, delta, mu), attack_power(gaussian_epsilon(mu, delta), delta)
        assert exact["hits"] <= pair["hits"] + 1e-9
        assert exact["advantage"] <= pair["advantage"] + 1e-9
