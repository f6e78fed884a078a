"""Under trust = "central" the coordinator sees sums without noise, and no file of it ever holds one.

A run is copied before and after every step on the disk: each copy is what a kill at that moment leaves. No copy may
determine a sum without noise, and each goes on to the bits of the undisturbed run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flower_helpers
import numpy as np
import pytest
from clean_sums import Search, Snapshots
from flower_helpers import lay_out
from test_secure_rounds import Nodes

import fedrec_server.rounds.coordinator as coordinator_module
from fedrec.core.errors import BudgetExhausted, FedrecError, PrivacyRefused, RoundAbandoned
from fedrec.core.files import read_arrays, write_arrays
from fedrec.core.stage import RoundContext
from fedrec.core.updates import State
from fedrec.privacy.adaptive import next_clip_norm
from fedrec.privacy.mechanisms.central import Central
from fedrec.privacy.planner import make_plan
from fedrec.privacy.private_files import remove_durably
from fedrec.privacy.settings import AdaptiveClip, PrivacySettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.closed_form.popularity import PopularityConfig
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.settings import RoundSettings
from fedrec_server.rounds.coordinator import Outcome, open_coordinator

ROUNDS = RoundSettings(rounds=2, min_nodes=3, deadline_seconds=5, max_abandoned=2)
MF = MfConfig(embedding_size=4, learning_rate=0.1)
AGGREGATORS = ("secagg", "integers", "plain", "sealed")
SUM, STAGED = "secagg-sum.safetensors", "staged.safetensors"


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@dataclass
class Run:
    """A small run of trust "central" under noise that hides its sums."""

    folder: Path
    aggregator: str

    @classmethod
    def lay_out(
        cls, folder: Path, aggregator: str, model: ModelConfig = MF, rounds: RoundSettings = ROUNDS
    ) -> Run:
        secure = aggregator in ("secagg", "integers")
        sealed = aggregator == "sealed"
        lay_out(folder, 3, rounds, trust="central", secure=secure, sealed=sealed, model=model)
        return cls(folder, aggregator)

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def nodes(self, silent: Any = lambda node, request: False) -> Nodes:
        return Nodes(
            self.folder, silent, **({"simulated": "integers"} if self.aggregator == "integers" else {})
        )

    def go(self, nodes: Nodes | None = None, **options: Any) -> Outcome:
        integers = self.aggregator == "integers"
        return open_coordinator(self.coordinator, nodes or self.nodes(), integers=integers, **options).run()

    def left(self) -> set[str]:
        """Names of files that only a restart needs."""
        names = {path.name for path in self.coordinator.iterdir()}
        return {n for n in names if SUM in n or STAGED in n or n.endswith((".tmp", ".key"))}

    def lost(self) -> list[int]:
        lines = (self.coordinator / "rounds.jsonl").read_text().splitlines()
        return [record["round"] for record in map(json.loads, lines) if record.get("lost")]


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is seeded, so that runs can be compared, and large beside the sum."""

    def terms(rounds: int, n_users: int, n_items: int, trust: Any, model: ModelConfig) -> PrivacyTerms:
        recommender = build(model)
        rounds = recommender.fixed_rounds or rounds
        varies = isinstance(model, MfConfig) and trust == "central"
        adaptive = AdaptiveClip(count_noise_multiplier=20.0) if varies else None
        plan = make_plan(
            PrivacySettings(
                unit="user",
                trust=trust,
                epsilon=0.5,
                force=True,
                noise_seed=11,
                clip_norm=0.5,
                adaptive=adaptive,
            ),
            population=n_users,
            rounds=rounds,
            schedule=recommender.noise_schedule(rounds),
            parameters=max(recommender.layout(n_items, r).size for r in range(1, rounds + 1)),
        )
        return PrivacyTerms(plan=plan, run="run", dataset="planted", limit_epsilon=0.5)

    monkeypatch.setattr(flower_helpers, "private_terms", terms)


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    """What every run of the test must not leave: filled as sums come, with what everyone may see of them."""
    search = Search({})
    real = Central.noised

    def noised(
        self: Central, total: Any, users: int, context: RoundContext, state: State
    ) -> tuple[Any, State]:
        values, rule = np.asarray(total, dtype=np.float64), self.plan.adaptive
        if rule is not None:
            told = values[-1], self.plan.denominator, rule.quantile, rule.learning_rate
            search.numbers[f"clip norm after round {context.round}"] = next_clip_norm(context.bound.l2, *told)
        search.sums[f"the sum of round {context.round}"] = values[:-1] if self.plan.adaptive else values
        out, state = real(self, total, users, context, state)
        search.public.append(np.asarray(out[: len(values) - (self.plan.adaptive is not None)]))
        return out, state

    monkeypatch.setattr(Central, "noised", noised)
    yield search


def snapshots(run: Run, into: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    """Run to the end, with a copy at every step on the disk."""
    taken = Snapshots(run.folder, into)
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, taken.around(getattr(os, name)))
        assert run.go().finished
    taken.take()
    return taken


# The search finds what it is to find --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "residues", "norm", "clip norm"])
def test_the_search_finds_a_sum_that_lies_about(tmp_path: Path, truth: Search, kind: str) -> None:
    run = Run.lay_out(tmp_path, "plain")
    run.go()
    total = truth.sums["the sum of round 2"]
    assert not truth.in_folder(run.coordinator)
    if "norm" in kind:
        value = np.linalg.norm(total) if kind == "norm" else truth.numbers["clip norm after round 2"]
        (run.coordinator / "log").write_text(json.dumps({"value": float(value)}))
    else:
        values = total if kind == "float" else np.rint(total * 1e6).astype(np.int64).astype("<u4")
        (run.coordinator / ".x.tmp").write_bytes(b"abc" + values.tobytes() + b"de")
    assert truth.in_folder(run.coordinator)


def test_the_search_finds_noise_that_was_kept_beside_a_model(tmp_path: Path, truth: Search) -> None:
    run = Run.lay_out(tmp_path, "plain")
    run.go()
    np.save(run.coordinator / "noise.npy", truth.public[0])
    assert not truth.in_folder(run.coordinator), "what is released is no sum without noise"
    noise = truth.public[0] - truth.sums["the sum of round 1"]
    assert truth.in_differences([truth.public[0], noise])


# Kills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MF, PopularityConfig()], ids=["mf", "popularity"])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_no_kill_leaves_a_sum_without_noise_and_each_is_survived(
    tmp_path: Path, truth: Search, aggregator: str, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Run.lay_out(tmp_path / "baseline", aggregator, model)
    expected = undisturbed.go().shared
    run = Run.lay_out(tmp_path / "run", aggregator, model)
    taken = snapshots(run, tmp_path / "copies", monkeypatch)
    assert len(taken.copies) > 10
    assert len(truth.sums) == (build(model).fixed_rounds or ROUNDS.rounds)
    for copy in taken.copies:
        assert truth.in_folder(copy / "coordinator") == []
        assert_owner_only(copy / "coordinator")
    for copy in taken.copies:
        again = Run(copy, aggregator)
        had = {path.name for path in again.coordinator.iterdir()}
        try:
            outcome = again.go()
        except RoundAbandoned as error:
            # Nodes had given their shares away, and the sum had not come: nothing may be asked a second time.
            assert "lost" in str(error) and SUM not in had and aggregator == "secagg"
        else:
            assert outcome.finished
            if again.lost():
                assert aggregator == "secagg" and SUM not in had
            else:
                for name, values in expected.items():
                    np.testing.assert_array_equal(outcome.shared[name], values)
        assert again.left() <= {"sealed.key"} and (not again.left() or not outcome.finished)
        assert not truth.in_folder(again.coordinator)


def assert_owner_only(folder: Path) -> None:
    """The folder, models that may not be charged yet, sums and keys, from their first byte on."""
    assert folder.stat().st_mode & 0o077 == 0
    for path in folder.iterdir():
        if STAGED in path.name or SUM in path.name or "checkpoint" in path.name or path.suffix == ".key":
            assert path.stat().st_mode & 0o077 == 0, path


# Other ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("ended", [BudgetExhausted, PrivacyRefused, OSError, KeyboardInterrupt])
def test_a_model_that_could_not_be_charged_goes_and_the_run_goes_on(
    tmp_path: Path,
    truth: Search,
    aggregator: str,
    ended: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = Run.lay_out(tmp_path / "baseline", aggregator).go().shared
    run = Run.lay_out(tmp_path / "run", aggregator)
    real = coordinator_module.Charges.charge

    def charge(self: Any, round_: int, digest: str) -> None:
        if round_ == 2:
            raise ended("the charge failed")
        real(self, round_, digest)

    with monkeypatch.context() as patch, pytest.raises(ended):
        patch.setattr(coordinator_module.Charges, "charge", charge)
        run.go()
    assert not truth.in_folder(run.coordinator)
    kept = {SUM} if aggregator == "secagg" and ended is not BudgetExhausted else set()
    assert run.left() - {"sealed.key"} == kept, "a noised sum waits where the same charge may succeed later"
    outcome = run.go()
    assert outcome.finished and not run.left()
    if aggregator == "secagg" and ended is BudgetExhausted:
        assert run.lost() == [2]
    else:
        for name, values in expected.items():
            np.testing.assert_array_equal(outcome.shared[name], values)


def test_a_charge_that_was_written_before_it_failed_counts(
    tmp_path: Path, truth: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.lay_out(tmp_path, "secagg")
    real = coordinator_module.Charges.charge

    def charge(self: Any, round_: int, digest: str) -> None:
        real(self, round_, digest)
        raise PrivacyRefused("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(PrivacyRefused):
        patch.setattr(coordinator_module.Charges, "charge", charge)
        run.go()
    assert not run.left(), "the model is in place"
    assert run.go().finished and not run.lost()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_a_stop_leaves_a_checkpoint_alone(tmp_path: Path, truth: Search, aggregator: str) -> None:
    run = Run.lay_out(tmp_path, aggregator)
    assert not run.go(stop=lambda: True).finished
    assert run.left() <= {"sealed.key"}
    assert not truth.in_folder(run.coordinator)


@pytest.mark.parametrize("kind", ["confirm", "unmask"])
def test_rounds_that_are_abandoned_or_lost_leave_nothing(tmp_path: Path, truth: Search, kind: str) -> None:
    run = Run.lay_out(tmp_path, "secagg")
    with pytest.raises(RoundAbandoned):
        run.go(run.nodes(lambda node, request: request.kind == kind))
    assert not run.left() and not truth.in_folder(run.coordinator)


def test_a_run_whose_nodes_stay_away_keeps_what_it_needs(
    tmp_path: Path, truth: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noised sum becomes the model without them: it is not thrown away because nodes are late."""
    expected = Run.lay_out(tmp_path / "baseline", "secagg").go().shared
    run = Run.lay_out(tmp_path / "run", "secagg", rounds=ROUNDS.model_copy(update={"wait_seconds": 0.1}))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(coordinator_module.ServerRound, "released", _killed)
        run.go()
    no_one = run.nodes()
    no_one.nodes_here = {}
    with pytest.raises(FedrecError, match="0 nodes came"):
        run.go(no_one)
    assert not run.left() and not truth.in_folder(run.coordinator)
    for name, values in run.go().shared.items():
        np.testing.assert_array_equal(expected[name], values)


def test_a_sum_that_an_earlier_version_left_goes_at_the_next_start(tmp_path: Path, truth: Search) -> None:
    run = Run.lay_out(tmp_path, "secagg")
    assert not run.go(stop=lambda: True).finished
    total = truth.sums["the sum of round 1"]
    header = {"label": "train/refit/2", "users": 120, "nodes": 3, "failures": {}, "record": {}}
    write_arrays(
        run.coordinator / SUM, {"total": np.rint(total * 1e6).astype(np.int64).astype("<u4")}, header
    )
    (run.coordinator / f".{STAGED}.4711.tmp").write_bytes(total.tobytes())
    assert len(truth.in_folder(run.coordinator)) >= 2
    run.coordinator.chmod(0o755)
    open_coordinator(run.coordinator, run.nodes())
    assert not run.left() and not truth.in_folder(run.coordinator)
    assert run.coordinator.stat().st_mode & 0o777 == 0o700


def test_a_removal_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), (tmp_path / "a").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    remove_durably([tmp_path / "a", tmp_path / "never there"])
    assert synced == [(str(tmp_path.resolve()), False)]


def test_a_private_file_follows_no_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    write_arrays(link, {"total": np.ones(3)}, {"label": "x"})
    assert target.read_bytes() == b"theirs" and not link.is_symlink()
    assert link.stat().st_mode & 0o777 == 0o600
    arrays, header = read_arrays(link)
    assert header == {"label": "x"} and arrays["total"].tolist() == [1.0, 1.0, 1.0]


def test_a_run_without_a_plan_leaves_no_sum_either(tmp_path: Path) -> None:
    lay_out(tmp_path, 3, ROUNDS, secure=True)
    assert open_coordinator(tmp_path / "coordinator", Nodes(tmp_path)).run().finished
    assert not (tmp_path / "coordinator" / SUM).exists()


def test_shares_of_noise_that_are_too_few_lose_a_masked_round(tmp_path: Path) -> None:
    lay_out(tmp_path, 4, ROUNDS, secure=True, trust="distributed")
    nodes = Nodes(tmp_path, lambda node, request: node == "0" and request.round == 1)
    outcome = open_coordinator(tmp_path / "coordinator", nodes).run()
    lines = (tmp_path / "coordinator" / "rounds.jsonl").read_text().splitlines()
    (first, second) = map(json.loads, lines)
    assert outcome.finished and first["lost"] and "nothing was released" in first["failures"]["sum"]
    assert "lost" not in second and not (tmp_path / "coordinator" / SUM).exists()


def _killed(*_: Any) -> None:
    raise Killed
