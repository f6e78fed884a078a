"""Sensitivity composes along a chain: over random chains, leaving a user out never moves a sum further than it says.

A chain is drawn (feedback, maps, clips, few bits, integers, noise of size 0), users with updates of any length are
drawn, and the sum of a node is made with and without one of them, with the same random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from privacy_plans import plan as plan_of
from properties import seeds

from fedrec.core.errors import ConfigError, ProtocolError
from fedrec.core.stage import VECTOR, Bound, Stage, Sum
from fedrec.core.updates import Block, BlockSpec, Dense, Layout, Rows, Updates, UpdateSum
from fedrec.privacy.adaptive import COUNT, QuantileClip
from fedrec.privacy.audit.bugs import inject
from fedrec.privacy.clipping import Clip, PrivateClip
from fedrec.privacy.fixed_point import FixedPoint
from fedrec.privacy.integers import Carried, Integers
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.rounds import shards
from fedrec.rounds.build import chain_of
from fedrec.rounds.chain import Chain, Flatten, NodeRound, ServerRound
from fedrec.rounds.compression import Feedback, LowRank, Project, Quantise
from fedrec.rounds.formats import ClearFormat, VectorFormat
from fedrec.rounds.local_training import AllUsers, UpdateTraining
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.encoding import Encoding

ITEMS, D, USERS = 12, 4, 5
WHOLE = Layout({"table": BlockSpec((ITEMS, D)), "bias": BlockSpec((ITEMS,)), "head": BlockSpec((3, 3))})
#: Of the wire's float32 scale of levels, and of sums in float64.
SLACK = 1.0 + 1e-6


@dataclass(frozen=True)
class Case:
    """One chain, and the numbers of its round.

    Attributes:
        chain: drawn.
        seed: of updates, kept remainders and dithers.
        left_out: the user who is.
    """

    chain: Chain
    seed: int
    left_out: int

    def moved(self) -> tuple[float, float, Bound]:
        """How far the update and the count of the server's sum move without the user, and the bound."""
        turn = ServerRound(self.chain, WHOLE, ITEMS, 1, self.chain.init(), NoiseSource(self.seed))
        everyone = np.arange(USERS)
        ends = [self._summed(turn, users) for users in (everyone, np.delete(everyone, self.left_out))]
        difference = ends[0] - ends[1]
        bound = turn.context.bound
        if bound.count:
            return float(np.linalg.norm(difference[:-1])), abs(float(difference[-1])), bound
        return float(np.linalg.norm(difference)), 0.0, bound

    def _summed(self, turn: ServerRound, users: np.ndarray) -> np.ndarray:
        """The vector that the server has before anything but noise is undone."""
        rng = np.random.default_rng(self.seed)
        kept = {
            name: rng.normal(size=values.shape).astype(np.float32)[users]
            for name, values in self.chain.init_users(WHOLE, ITEMS, USERS).items()
        }
        context = replace(turn.context, noise=NoiseSource(self.seed))
        stages = NodeRound(self.chain, context, WHOLE, kept)
        total = UpdateSum(WHOLE.zeros())
        stages.add(total, some(users, self.seed), users, np.arange(len(users)))
        arrays, _ = stages.write(total, len(users), USERS)
        vector = arrays[VECTOR]
        if self.chain.mechanisms:
            return turn.combine([UpdateSum({VECTOR: self._carried(vector)}, USERS)]).blocks[VECTOR]
        return np.asarray(vector, dtype=np.float64)

    def _carried(self, vector: np.ndarray) -> np.ndarray:
        """The vector after it has travelled as integers, where it does."""
        for stage in self.chain.stages:
            if isinstance(stage, FixedPoint):
                encoding = Encoding(len(vector), 32, stage.carried.scale)
                uniform = NoiseSource(self.seed).derive("dither").uniform
                return encoding.decode(encoding.encode(vector, np.zeros(0), uniform))[0]
        return vector


def some(users: np.ndarray, seed: int) -> Updates:
    """Updates of norms from 1e-3 to 1e200 and one that is not finite; each a function of the user alone."""
    rng = np.random.default_rng([seed, 1])
    scale = 10.0 ** rng.uniform(-3, 2, USERS)
    scale[rng.integers(USERS)] = rng.choice([np.nan, 1e200, np.inf, 1e3])
    row = np.stack([rng.choice(ITEMS, 3, replace=False) for _ in range(USERS)])
    head, bias = rng.normal(size=(USERS, 3, 3)), rng.normal(size=(USERS, ITEMS))
    table = rng.normal(size=(USERS, 3, D))
    with np.errstate(invalid="ignore"):
        blocks: dict[str, Block] = {
            "table": Rows(
                3 * np.arange(len(users) + 1),
                row[users].reshape(-1),
                (table * scale[:, None, None])[users].reshape(-1, D),
            ),
            "bias": Dense((bias * scale[:, None])[users]),
            "head": Dense((head * scale[:, None, None])[users]),
        }
    return Updates(blocks, len(users))


maps = st.lists(
    st.one_of(
        st.builds(LowRank, st.integers(1, D - 1)),
        st.builds(shards.Rows, st.floats(0.1, 0.9)),
        st.builds(shards.Shard, st.integers(10, 60)),
    ),
    max_size=2,
    unique_by=lambda stage: stage.name != "low_rank",
)
norms = st.floats(0.05, 20.0)


@st.composite
def clear_chains(draw: st.DrawFn) -> Chain:
    """Feedback, clips and maps in any order, few bits."""
    middle: list[Stage] = [*draw(maps), Clip(draw(norms))]
    stages = draw(st.permutations(middle))
    last = draw(st.sampled_from([None, Project(), Quantise(4), Quantise(8)]))
    if last is not None:
        stages = [*([Feedback()] if draw(st.booleans()) else []), *stages, last]
    return Chain(tuple(stages), ClearFormat(), UpdateTraining(), AllUsers(), seed=draw(st.integers(0, 9)))


@st.composite
def private_chains(draw: st.DrawFn) -> Chain:
    """Maps, a clip that is fixed or follows a quantile, one vector, integers, a mechanism whose noise is 0."""
    kind = draw(st.sampled_from(["central", "adaptive", "carried", "local", "distributed"]))
    norm, declared = draw(norms), draw(maps)
    changes: dict[str, Any] = {"clip_norm": norm, "population": USERS, "delta": 1e-3, "parameters": 200}
    changes["noise_multipliers"] = (0.0,) * 4
    clip: Stage = PrivateClip(norm)
    carried: list[Stage] = []
    if kind == "adaptive":
        changes["adaptive"] = {"count_noise_multiplier": 1e-9}
        clip = QuantileClip(norm, 0.5, 0.2, USERS)
    elif kind == "carried":
        changes["carried"] = Carried(scale=draw(st.floats(0.5, 1e4)))
        carried = [FixedPoint(changes["carried"], 200)]
    elif kind == "distributed":
        seed = draw(st.sampled_from([None, 7]))
        changes["distributed"] = Integers(
            scale=draw(st.floats(0.5, 1e4)), bits=48, survivors=0.8, beta=1e-9, rotation_seed=seed
        )
        changes["accountant"] = "rdp"
    if kind in ("local", "distributed"):
        changes["trust"] = kind
    mechanism = mechanism_of(plan_of(**changes))
    event(kind)
    stages = (*declared, clip, Flatten(), *carried, mechanism)
    return Chain(stages, VectorFormat(mechanism), UpdateTraining(), AllUsers(), seed=draw(st.integers(0, 9)))


@settings(max_examples=300, deadline=None)
@given(st.one_of(clear_chains(), private_chains()), seeds, st.integers(0, USERS - 1))
def test_leaving_a_user_out_moves_a_sum_by_no_more_than_the_chain_says(
    chain: Chain, seed: int, left_out: int
) -> None:
    update, count, bound = Case(chain, seed, left_out).moved()
    assert np.isfinite(bound.l2)
    assert update <= bound.l2 * SLACK
    assert count <= bound.count + 1e-6


@pytest.mark.parametrize("bug", ["no clip", "per-block clip"])
def test_a_broken_clip_is_found(bug: str) -> None:
    """The same measure, on a chain whose clip does not do what it says."""
    chain = Chain((Clip(0.5),), ClearFormat(), UpdateTraining(), AllUsers())
    cases = [Case(chain, seed, user) for seed in range(5) for user in range(USERS)]

    def worst() -> float:
        found = [case.moved() for case in cases]
        return max(update / bound.l2 for update, _, bound in found)

    assert worst() <= SLACK
    with inject(bug):
        assert worst() > 1.5


@pytest.mark.parametrize("norm", [0.1, 3.0])
def test_a_bound_that_leaves_out_rounding_would_be_too_small(norm: float) -> None:
    """Without what integers add, the composed bound is exceeded: the term is needed."""
    scale = 1.0 / norm
    plan = plan_of(clip_norm=norm, noise_multipliers=(0.0,) * 4, carried=Carried(scale=scale), parameters=200)
    mechanism = mechanism_of(plan)
    assert plan.carried is not None
    stages = (PrivateClip(norm), Flatten(), FixedPoint(plan.carried, 200), mechanism)
    chain = Chain(stages, VectorFormat(mechanism), UpdateTraining(), AllUsers())
    moves = [Case(chain, seed, user).moved()[0] for user in range(USERS) for seed in range(9)]
    assert max(moves) > norm


# What the noise is sized by --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adaptive": {"count_noise_multiplier": 30.0}},
        {"carried": Carried(scale=3.0)},
        {"trust": "local"},
        {"trust": "distributed", "distributed": Integers(scale=9.0, beta=1e-9), "accountant": "rdp"},
    ],
    ids=["central", "adaptive", "carried", "local", "distributed"],
)
def test_the_noise_of_a_chain_is_that_of_its_plan(changes: dict[str, Any]) -> None:
    """The plan computes it from its fields; the chain from the bound that its stages compose."""
    plan = plan_of(parameters=WHOLE.size, clip_norm=2.0, **changes)
    chain = chain_of(NodeSettings(), plan, gradient=True)
    turn = ServerRound(chain, WHOLE, ITEMS, 1, chain.init(), NoiseSource(1))
    (mechanism,) = chain.mechanisms
    assert mechanism.noise_std(1, turn.context.bound.l2) == plan.noise_std(1)


def test_the_clip_norm_of_the_next_round_is_announced_to_it() -> None:
    plan = plan_of(parameters=WHOLE.size, adaptive={"count_noise_multiplier": 30.0})
    chain = chain_of(NodeSettings(), plan, gradient=True)
    turn = ServerRound(chain, WHOLE, ITEMS, 1, chain.init(), NoiseSource(1))
    vector = np.append(np.zeros(WHOLE.size), -500.0)
    total, states, facts = turn.finish(turn.combine([UpdateSum({VECTOR: vector}, 1000)]))
    assert COUNT not in total.blocks and facts["clip_norm"] == 1.0
    after = ServerRound(chain, WHOLE, ITEMS, 2, states, NoiseSource(1)).announced
    (clip_norm,) = after.values()
    assert isinstance(clip_norm, float) and 1.0 < clip_norm <= np.exp(0.2 * 0.5)


# What cannot be --------------------------------------------------------------------------------------------


def test_a_request_that_does_not_fit_the_chain_is_refused() -> None:
    plain = chain_of(NodeSettings(), None, gradient=True)
    with pytest.raises(ProtocolError, match="no stage"):
        plain.context(WHOLE, ITEMS, 1, {"adaptive_clip": 1.0})
    adaptive = chain_of(NodeSettings(), plan_of(adaptive={"count_noise_multiplier": 30.0}), gradient=True)
    for said in ({}, {"adaptive_clip": -1.0}, {"adaptive_clip": float("nan")}, {"adaptive_clip": "1"}):
        with pytest.raises(ProtocolError, match="clip norm"):
            adaptive.context(WHOLE, ITEMS, 1, said)
    with pytest.raises(ProtocolError, match="round 5"):
        chain_of(NodeSettings(), plan_of(), gradient=True).context(WHOLE, ITEMS, 5, {})


class Loose(Sum):
    """A rule that says nothing of what one user changes."""

    def sensitivity(self, bound: Bound) -> Bound:
        return Bound()


def test_chains_that_promise_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="two stages"):
        Chain((Clip(1.0), Clip(2.0)), ClearFormat(), UpdateTraining(), AllUsers())
    with pytest.raises(ConfigError, match="cannot stand beside"):
        Chain((QuantileClip(1.0), Quantise(8)), ClearFormat(), UpdateTraining(), AllUsers())
    with pytest.raises(ConfigError, match="error feedback needs"):
        Chain((Feedback(), Clip(1.0)), ClearFormat(), UpdateTraining(), AllUsers())
    chain_of(NodeSettings(), None, gradient=True, rule=Loose())
    with pytest.raises(ConfigError, match="does not bound"):
        chain_of(NodeSettings(), plan_of(), gradient=True, rule=Loose())


def test_a_private_chain_without_a_source_of_noise_releases_nothing() -> None:
    from fedrec.core.errors import PrivacyRefused

    chain = chain_of(NodeSettings(), plan_of(parameters=WHOLE.size), gradient=True)
    turn = ServerRound(chain, WHOLE, ITEMS, 1, chain.init(), None)
    with pytest.raises(PrivacyRefused, match="no source of noise"):
        turn.combine([])
    assert turn.is_noised
