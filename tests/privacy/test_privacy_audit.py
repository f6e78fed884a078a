"""The audit passes correct mechanisms and finds every planted bug, in the real code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import planted as planted_interactions

from fedrec.core.errors import ConfigError
from fedrec.core.updates import UpdateSum
from fedrec.privacy.audit import _runs as runs
from fedrec.privacy.audit import games
from fedrec.privacy.audit._evaluation import ALPHA
from fedrec.privacy.audit.bugs import BUGS, inject
from fedrec.privacy.audit.report import FALSE_ALARM, AuditReport, GameResult
from fedrec.privacy.clipping import Clip
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import AdaptiveClip, PrivacySettings
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.chain import ServerRound
from fedrec_simulations.audit.run_audit import Training, denominator, rare_users
from fedrec_simulations.cli.privacy_audit import audit as audit_command

ITEMS, USERS = 60, 80
MF = {"kind": "mf", "embedding_size": 8}


def plan_for(trust: str, model: dict[str, object], rounds: int = 3, **settings: object) -> PrivacyPlan:
    recommender = build(parse(model))
    rounds = recommender.fixed_rounds or rounds
    wanted = {"unit": "user", "trust": trust, "epsilon": 3.0, "delta": 1e-5, "clip_norm": 0.5, "force": True}
    rate = settings.pop("sampling_rate", 1.0)
    return make_plan(
        PrivacySettings(**wanted | settings),  # type: ignore[arg-type]
        population=500,
        rounds=rounds,
        schedule=recommender.noise_schedule(rounds),
        parameters=max(recommender.layout(ITEMS, r).size for r in range(1, rounds + 1)),
        sampling_rate=float(rate),  # type: ignore[arg-type]
    )


def training(plan: PrivacyPlan, model: dict[str, object], rare: int = 30) -> Training:
    batch = planted_interactions(USERS, ITEMS).batch(np.arange(USERS))
    others = rare_users(ITEMS, USERS, np.random.default_rng(0)).take(np.arange(rare))
    return Training(build(parse(model)), plan, batch, others, ITEMS, 0)


def games_of(report: AuditReport, verdict: str) -> set[str]:
    return {result.game for result in report.results if result.verdict == verdict}


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_a_correct_mechanism_passes_on_many_seeds(trust: str) -> None:
    plan = plan_for(trust, MF)
    subject = training(plan, MF, rare=10)
    verdicts = [games.audit(plan, subject, 120, seed).verdict for seed in range(20)]
    # At a false alarm rate of 5 % more than two of twenty would be seen in one case of thirteen.
    assert verdicts.count("VIOLATED") <= 2
    assert set(verdicts) <= {"VIOLATED", "consistent"}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_every_planted_bug_is_found(trust: str, bug: str) -> None:
    plan = plan_for(trust, MF)
    with inject(bug):
        report = games.audit(plan, training(plan, MF), 200, 1, bug)
    assert report.verdict == "VIOLATED"
    assert report.bug == bug


@pytest.mark.parametrize(
    ("bug", "game"),
    [
        ("noise/10", "directions"),
        ("no clip", "directions"),
        ("weights by example count", "directions"),
        ("per-block clip", "bound"),
        ("reused seed", "noise"),
        ("skipped empty round", "lone user"),
    ],
)
def test_bugs_are_found_where_they_show(bug: str, game: str) -> None:
    plan = plan_for("central", MF)
    with inject(bug):
        report = games.audit(plan, training(plan, MF), 400, 2, bug)
    assert game in games_of(report, "VIOLATED")


def test_sampled_rounds_are_held_against_what_sampling_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("central", MF, rounds=10, sampling_rate=0.3)
    subject = training(plan, MF, rare=10)
    assert games.audit(plan, subject, 200, 0).verdict == "consistent"
    # Everyone in every round under a claim of sampling: no other game can see it.
    monkeypatch.setattr(runs, "coins", lambda plan, included, rng: included)
    report = games.audit(plan, subject, 200, 0)
    assert games_of(report, "VIOLATED") == {"directions"}


@pytest.mark.parametrize("model", [{"kind": "popularity"}, {"kind": "dp_ease"}, {"kind": "ials"}])
def test_other_models_pass(model: dict[str, object]) -> None:
    plan = plan_for("central", model, rounds=2)
    assert games.audit(plan, training(plan, model), 50, 3).verdict == "consistent"


def test_adaptive_clipping_passes_and_its_bits_are_noised() -> None:
    adaptive = AdaptiveClip(count_noise_multiplier=20.0)
    plan = plan_for("central", MF, adaptive=adaptive)
    report = games.audit(plan, training(plan, MF), 100, 0)
    assert report.verdict == "consistent"
    assert any("adaptation" in note for note in report.notes)


def test_a_plan_that_claims_too_much_is_refuted() -> None:
    """The same noise under a smaller epsilon: nothing but the claim is wrong."""
    plan = plan_for("central", MF, epsilon=12.0)

    class Bold(PrivacyPlan):
        def epsilon(self, rounds: int | None = None, accountant: object = None) -> float:
            return 1.0

    bold = Bold(**dict(plan))
    assert games.audit(bold, training(plan, MF), 400, 0).verdict == "VIOLATED"


def test_the_coordinator_divides_by_a_fixed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("central", MF)
    layout = training(plan, MF).layout(1)
    assert denominator(plan, layout).verdict == "consistent"
    real = ServerRound.combine

    def realised(self: ServerRound, replies: list[UpdateSum]) -> UpdateSum:
        total = real(self, replies)
        total.users = sum(reply.users for reply in replies)
        return total

    monkeypatch.setattr(ServerRound, "combine", realised)
    assert denominator(plan, layout).verdict == "VIOLATED"


def test_bugs_leave_nothing_behind() -> None:
    before = (Clip.on_user, NoiseSource.normal, NoiseSource.skellam, NoiseSource.derive)
    for bug in BUGS:
        with pytest.raises(KeyError), inject(bug):
            raise KeyError
    assert before == (Clip.on_user, NoiseSource.normal, NoiseSource.skellam, NoiseSource.derive)


def test_an_audit_can_be_repeated() -> None:
    plan = plan_for("central", MF)
    first, second = (games.audit(plan, training(plan, MF), 60, 5).as_dict() for _ in range(2))
    assert first == second


# The report ---------------------------------------------------------------------------------------------


def game(theory: float, lower: float, reach: float, *, counts: bool = True) -> GameResult:
    return GameResult("g", "v", theory, {"m": lower}, 10, reach, counts=counts)


def test_verdicts() -> None:
    assert game(3.0, 3.1, 9.0).verdict == "VIOLATED"
    assert game(3.0, 2.9, 9.0).verdict == "consistent"
    assert game(3.0, 1.0, 2.0).verdict == "inconclusive"
    weak, extra = game(3.0, 1.0, 2.0), game(3.0, 1.0, 2.0, counts=False)
    good, bad = game(3.0, 1.0, 9.0), game(3.0, 4.0, 9.0)
    assert AuditReport({}, [good, extra]).verdict == "consistent"
    assert AuditReport({}, [good, weak]).verdict == "inconclusive"
    assert AuditReport({}, [good, weak, bad]).verdict == "VIOLATED"


def test_all_tests_together_stay_below_the_false_alarm_rate() -> None:
    plan = plan_for("central", MF)
    report = games.audit(plan, training(plan, MF), 60, 0)
    # What a bound of the deterministic games says is no matter of chance.
    statistical = [len(r.lower) for r in report.results if r.game != "bound"]
    assert sum(statistical) * ALPHA <= FALSE_ALARM


# Refusals and the command -------------------------------------------------------------------------------


def test_too_few_canaries_are_refused() -> None:
    plan = plan_for("central", MF)
    with pytest.raises(ConfigError, match="at least 20"):
        games.audit(plan, training(plan, MF), 5, 0)


def write_config(folder: Path, privacy: str) -> Path:
    data = planted_interactions(USERS, ITEMS)
    lines = [
        f"u{u},{data.item_ids[i]},{t}" for u, i, t in zip(data.user, data.item, data.timestamp, strict=True)
    ]
    (folder / "data.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")
    text = f"""
        name = "tiny"
        [data]
        name = "file"
        path = "{folder / "data.csv"}"
        timestamp_column = "time"
        [model]
        kind = "mf"
        embedding_size = 4
        [federation]
        rounds = 2
        [privacy]
        aggregator = "plain"
        insecure = true
        {privacy}
    """
    (folder / "run.toml").write_text("\n".join(line.strip() for line in text.splitlines()))
    return folder / "run.toml"


def test_command_writes_what_it_found(tmp_path: Path) -> None:
    config = write_config(tmp_path, 'unit = "user"\nepsilon = 3.0\nclip_norm = 0.5\nforce = true')
    out = tmp_path / "audit.json"
    answer = audit_command(str(config), canaries=60, inject=["noise/10"], out=out)
    assert answer.exit_code == 0
    audits = json.loads(out.read_text())["audits"]
    assert [(one["bug"], one["verdict"]) for one in audits] == [
        (None, "consistent"),
        ("noise/10", "VIOLATED"),
    ]
    assert audits[0]["plan"]["target_epsilon"] == 3.0


def test_command_refuses_what_has_no_guarantee(tmp_path: Path) -> None:
    config = str(write_config(tmp_path, 'unit = "none"'))
    with pytest.raises(ConfigError, match="nothing to audit"):
        audit_command(config, canaries=60, out=tmp_path / "a.json")
    with pytest.raises(ConfigError, match="expected one of"):
        audit_command(config, canaries=60, inject=["typo"], out=tmp_path / "a.json")
    with pytest.raises(ConfigError, match="does not exist"):
        audit_command(config, canaries=60, out=tmp_path / "no" / "a.json")
