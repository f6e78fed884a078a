"""The chain of a run: its stages in order, their halves run forward on nodes and backward on the server.

    node     `NodeRound`    add updates (on_user … on_user), finish the sum (on_node … on_node), write the reply
    server   `ServerRound`  announce, read replies, combine them by the aggregation rule, undo the stages

In a private chain the stages after `Flatten` work on one vector, and the last of them, the mechanism, adds the noise.
What they make of a sum is all of it that may be written down. Out of scope: which stages a run has (`build`), what
carries replies, and applying the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, ProtocolError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.messages import Reply, Scalar
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.stage import (
    ANNOUNCED,
    VECTOR,
    AggregationRule,
    Bound,
    LocalTraining,
    Noise,
    RoundContext,
    Stage,
    Sum,
    UserUpdates,
)
from fedrec.core.updates import Layout, State, Updates, UpdateSum, finite
from fedrec.privacy.clipping import Clip
from fedrec.privacy.mechanism import Mechanism
from fedrec.rounds.compression import written_out
from fedrec.rounds.formats import ClearFormat, Format
from fedrec.rounds.local_training import AllUsers, Cohort, UpdateTraining


@dataclass(frozen=True)
class Flatten(Stage):
    """From named blocks to the one vector that is sent, and back."""

    name = "flatten"

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """[n] float64, as declared by the layout."""
        flat = context.layout.flatten(total.blocks).astype(np.float64)
        return replace(total, blocks={VECTOR: flat})

    def on_server(self, total: UpdateSum, context: RoundContext, state: State) -> tuple[UpdateSum, State]:
        """The blocks; what a mechanism left behind the declared values is dropped."""
        flat = total.blocks[VECTOR][: context.layout.size]
        blocks = {name: values.astype(np.float64) for name, values in context.layout.unflatten(flat).items()}
        return replace(total, blocks=blocks), state


@dataclass(frozen=True)
class Chain:
    """Stages, what they end in, and what follows the sum.

    Attributes:
        stages: in the order in which they run on users and nodes.
        format: of replies.
        training: how a node gets from histories to a sum.
        cohort: who takes part in a round.
        rule: what makes one sum of the replies.
        seed: of the public draws.
    """

    stages: tuple[Stage, ...]
    format: Format
    training: LocalTraining
    cohort: Cohort
    rule: AggregationRule = field(default_factory=Sum)
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            line
            for k, stage in enumerate(self.stages)
            for line in stage.conflicts((*self.stages[:k], *self.stages[k + 1 :]))
        ]
        names = [stage.name for stage in self.stages]
        problems += [f"two stages are called {name!r}" for name in set(names) if names.count(name) > 1]
        if self.mechanisms and not np.isfinite(self.rule.sensitivity(Bound(1.0)).l2):
            problems.append(
                f"aggregation rule {type(self.rule).__name__} does not bound what one user changes: use the sum "
                "under a privacy plan"
            )
        if problems:
            raise ConfigError("chain of stages: " + "; ".join(problems))

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The stages that add noise; in a private chain the last one."""
        return tuple(stage for stage in self.stages if isinstance(stage, Mechanism))

    def init(self) -> State:
        """What the server remembers before round 1, of all stages."""
        return _named((stage, stage.init()) for stage in self.stages)

    def init_users(self, layout: Layout, n_items: int, users: int) -> State:
        """[U, ...] what a node remembers of its users before round 1, of all stages."""
        return _named((stage, stage.init_users(layout, n_items, users)) for stage in self.stages)

    def histories(self, batch: UserBatch) -> UserBatch:
        """Histories as the stages need them."""
        for stage in self.stages:
            batch = stage.on_history(batch)
        return batch

    def context(
        self,
        whole: Layout,
        n_items: int,
        round_: int,
        announced: Mapping[str, Scalar],
        noise: Noise | None = None,
    ) -> RoundContext:
        """What is the same for all stages in a round.

        Args:
            whole: the recommender's layout of the round.
            n_items: I.
            round_: from 1.
            announced: by stage name.
            noise: the source of the round.

        Raises:
            ProtocolError: what was announced is not valid for this chain.
        """
        unknown = set(announced) - {stage.name for stage in self.stages}
        if unknown:
            raise ProtocolError(
                f"request announces {sorted(unknown)}: no stage of this node has the name; use the run's settings"
            )
        context = RoundContext(round_, self.seed, n_items, whole, announced=dict(announced), noise=noise)
        for stage in self.stages:
            context = replace(context, layout=stage.layout(context.layout, context))
        for stage in self.stages:
            context = replace(context, bound=stage.sensitivity(context.bound, context))
        return context


class NodeRound:
    """A chain in one round on one node.

    Args:
        chain: of the run.
        context: of the round; its noise is the node's own.
        whole: the recommender's layout of the round.
        kept: [U, ...] what stages remember of the cohort's users; changed in place.
    """

    def __init__(self, chain: Chain, context: RoundContext, whole: Layout, kept: State | None = None) -> None:
        self.context = context
        self._chain, self._whole = chain, whole
        # Most stages leave users alone, and what they would do is not asked for each chunk.
        self._steps = [
            (stage, stage_state(kept or {}, stage))
            for stage in chain.stages
            if (type(stage).on_user, type(stage).on_sent) != (Stage.on_user, Stage.on_sent)
        ]
        self._keeps = any(type(stage).on_sent is not Stage.on_sent for stage in chain.stages)
        self._dense = any(stage.dense for stage in chain.stages)
        self._last: UserUpdates | None = None

    def add(self, total: UpdateSum, updates: Updates, users: IntArray, where: IntArray) -> None:
        """Add updates to the node's sum, each as the stages leave it; see `UserStages`."""
        given = UserUpdates.of(updates, users, where)
        for part in written_out(given, self._whole) if self._dense else (given,):
            self._add(total, part)
        total.loss += finite(updates.loss)
        total.examples += finite(updates.examples)

    def write(self, total: UpdateSum, users: int, hosted: int) -> tuple[State, dict[str, Scalar]]:
        """Arrays and scalars of the reply.

        Args:
            total: of the node, through `add`.
            users: how many take part, those with a zero update too.
            hosted: how many users the node has.
        """
        context = self.context
        if context.noise is not None:
            context = replace(context, noise=context.noise.derive("share"))
        total = replace(total, users=users)
        for stage in self._chain.stages:
            total = stage.on_node(total, context)
        return self._chain.format.write(total, context, self._last, hosted)

    def _add(self, total: UpdateSum, part: UserUpdates) -> None:
        passed = []
        for stage, kept in self._steps:
            part = stage.on_user(part, self.context, kept)
            passed.append(part)
        part.add_into(total)
        self._last = part
        if self._keeps:
            for (stage, kept), before in zip(reversed(self._steps), reversed(passed), strict=True):
                stage.on_sent(before, part, self.context, kept)


class ServerRound:
    """A chain in one round on the server.

    Args:
        chain: of the run.
        whole: the recommender's layout of the round.
        n_items: I.
        round_: from 1.
        states: of all stages, as before the round; stay as they are.
        noise: the server's source of the round.
    """

    def __init__(
        self,
        chain: Chain,
        whole: Layout,
        n_items: int,
        round_: int,
        states: State,
        noise: Noise | None = None,
    ) -> None:
        self._chain, self._states = chain, states
        before = RoundContext(round_, chain.seed, n_items, whole)
        said = {stage.name: stage.announce(before, self._state(stage)) for stage in chain.stages}
        announced = {name: value for name, value in said.items() if value is not None}
        self.context = chain.context(whole, n_items, round_, announced, noise)
        self._next = dict(states)

    @property
    def announced(self) -> dict[str, Scalar]:
        """Fields of the round's request."""
        return {ANNOUNCED + name: value for name, value in self.context.announced.items()}

    @property
    def is_noised(self) -> bool:
        """Whether `combine` adds noise, so that its vector may be written down, and nothing before it."""
        return bool(self._vector_stages)

    @property
    def example(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of a reply, of which types and shapes count."""
        return self._chain.format.example(self.context)

    @property
    def names(self) -> tuple[str, ...]:
        """Scalars of a reply."""
        return self._chain.format.names

    @property
    def payload(self) -> int:
        """Bytes that a user who is alone on a node sends."""
        return self._chain.format.payload(self.context)

    def read(self, reply: Reply, hosted: int, *, summed: bool) -> UpdateSum:
        """See `Format.read`."""
        return self._chain.format.read(reply, hosted, self.context, summed=summed)

    def combine(self, replies: Sequence[UpdateSum]) -> UpdateSum:
        """One sum of all replies, noised where the chain is private.

        Raises:
            PrivacyRefused: it holds less noise than planned; nothing may be released.
        """
        total = self._chain.rule.combine(self._chain.format.zero(self.context), replies)
        return self._undo(total, self._vector_stages)

    def keep(self, total: UpdateSum) -> NDArray[Any]:
        """The noised sum of `combine`, and what its noise leaves for later rounds: all that may be written down."""
        (mechanism,) = self._chain.mechanisms
        return mechanism.packed(total.blocks[VECTOR], stage_state(self._next, mechanism))

    def released(self, kept: NDArray[Any]) -> UpdateSum:
        """What `combine` gave, from what `keep` made of it."""
        (mechanism,) = self._chain.mechanisms
        vector, state = mechanism.unpacked(kept, self.context)
        self._next |= _named([(mechanism, state)])
        return mechanism.released(vector, self.context)

    def finish(self, total: UpdateSum) -> tuple[UpdateSum, State, dict[str, Any]]:
        """The sum to apply, the states of the next round, and what may be said of the round.

        Args:
            total: of `combine` or `released`.
        """
        rest = self._chain.stages[: len(self._chain.stages) - len(self._vector_stages)]
        total = self._undo(total, rest)
        facts = self._chain.format.describe(total, self.context)
        for stage in self._chain.stages:
            facts |= stage.facts(self.context)
        return total, self._next, facts

    @property
    def _vector_stages(self) -> tuple[Stage, ...]:
        """The stages after `Flatten`."""
        stages = self._chain.stages
        found = next((k for k, stage in enumerate(stages) if isinstance(stage, Flatten)), len(stages))
        return stages[found + 1 :]

    def _undo(self, total: UpdateSum, stages: Sequence[Stage]) -> UpdateSum:
        for stage in reversed(stages):
            total, state = stage.on_server(total, self.context, self._state(stage))
            self._next |= _named([(stage, state)])
        return total

    def _state(self, stage: Stage) -> State:
        return stage_state(self._states, stage)


def _named(states: Iterable[tuple[Stage, State]]) -> State:
    """States of several stages under names of their own."""
    return {f"{stage.name}/{key}": values for stage, state in states for key, values in state.items()}


def stage_state(states: State, stage: Stage) -> State:
    """What of all states is one stage's."""
    prefix = f"{stage.name}/"
    return {name.removeprefix(prefix): values for name, values in states.items() if name.startswith(prefix)}


def train_users(
    recommender: Recommender,
    shared: State,
    local: State,
    batch: UserBatch,
    seed: RoundSeed,
    clip_norm: float | None,
    n_items: int,
) -> tuple[UpdateSum, State]:
    """Sum of the clipped updates of all users of the batch, and their new local state: a chain of one clip.

    Args:
        recommender: the model.
        shared: the broadcast state.
        local: arrays [U, ...] of the users of the batch.
        batch: their histories.
        seed: seed and round.
        clip_norm: L2 bound of one user's whole update, or None.
        n_items: I.
    """
    layout = recommender.layout(n_items, seed.round)
    chain = Chain((Clip(clip_norm),), ClearFormat(clip_norm), UpdateTraining(), AllUsers(), seed=seed.seed)
    stages = NodeRound(chain, chain.context(layout, n_items, seed.round, {}), layout)
    return chain.training.train(recommender, shared, local, batch, seed, stages)
