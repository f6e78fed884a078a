"""A node: hosts one or more users, answers the coordinator, and lets only sums out.

Everything a node needs lies in its folder: `node.json` (recommender, settings, terms), `shard.npz` (its users'
interactions), `local/` (their personal state), `identity.key` (its signing key) and `secagg.json` (its promises), the
latter two under secure aggregation. A reply is made as if it were to be sent in the clear; a sender then hides what
the terms say, and `outgoing` lets it pass.

Once a request has passed the rules that know no data, it is answered: what cannot be computed from a model, however
absurd it is, counts as zero. Out of scope: transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError, RunError
from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.messages import Phase, Reply, Request
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.stage import RoundContext, announced_in
from fedrec.core.updates import Layout, State, UpdateSum
from fedrec.data.split import Split
from fedrec.evaluation.bounded import bounded_sums
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.evaluation.sums import MetricSums
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.agreement import config_hash
from fedrec.rounds.build import chain_of
from fedrec.rounds.chain import NodeRound
from fedrec.rounds.local_training import UpdateTraining
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import CohortTerms, SealedTerms, SecaggTerms, Terms
from fedrec_client.node._computed import alike, computed
from fedrec_client.node._identity import identity_of, subject_of
from fedrec_client.node._memory import HeldMemory, Memory
from fedrec_client.node._party import Party, make_party
from fedrec_client.node._private_metrics import PrivateMetrics
from fedrec_client.node._secure_party import STAGES, SecureParty
from fedrec_client.node._senders import IntegerSender, MaskedSender, PlainSender, SealedSender, Sender
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node_terms import check_terms
from fedrec_client.node.outgoing import checked
from fedrec_client.node.private_releases import PrivateReleases, Releases, Unrecorded

Matrix = NDArray[np.float32]
#: Beside the personal state of a model: [U] who has ever taken part.
LEARNED = "node/learned"
Simulated = Literal["full", "integers"]


class Node:
    """Answers requests for the users it hosts; a request is served completely or refused with one line."""

    def __init__(
        self,
        split: Split,
        model: ModelConfig,
        settings: NodeSettings,
        evaluation: EvaluationSettings,
        store: LocalStore,
        categories: Matrix | None = None,
        privacy: PrivacyTerms | None = None,
        folder: Path | None = None,
        *,
        aggregation: Terms,
        identity: Identity | None = None,
        simulated: Simulated | None = None,
        releases: Releases | None = None,
    ) -> None:
        self._split = split
        self._recommender: Recommender = build(model)
        self._settings = settings
        self._evaluation = evaluation
        self._store = store
        self._categories = categories
        self._n_items = split.train.n_items
        self.config_hash = config_hash(
            model, settings, evaluation, split.train.item_ids, privacy, aggregation
        )
        assert split.user_key is not None
        self._users = split.user_key
        self._learnable: dict[str, Interactions] = {}
        plan = privacy.plan if privacy else None
        self._chain = chain_of(settings, plan, gradient=self._recommender.gradient_rounds)
        remembers = folder and self._chain.init_users(self._whole(1), self._n_items, 0)
        self._unsent = LocalStore(folder / "unsent" if folder and remembers else None)
        self._releases: Releases = Unrecorded()
        self._metrics = self._noise = None
        if privacy is not None:
            self._releases = releases or PrivateReleases(privacy, folder, subject_of(self._users, folder))
            self._metrics = PrivateMetrics(privacy.plan, self._users, self._releases)
            self._noise = NoiseSource(privacy.plan.noise_seed).derive("node", identity_of(self._users))
        self._privacy = privacy
        self._name = folder.name if folder else "in memory"
        self._aggregation = aggregation
        self._memory: Memory = HeldMemory()
        self._integers = simulated == "integers"
        self._party: Party | None = None
        if isinstance(aggregation, SecaggTerms | CohortTerms) and simulated != "integers":
            if identity is None:
                raise RunError("a node under secure aggregation needs its identity: enrol it first")
            check_terms(aggregation, self._recommender, privacy)
            self._party = make_party(aggregation, identity, None if simulated else folder, len(self._users))
        self._sender = self._make_sender()

    def handle(self, request: Request, memory: Memory | None = None) -> Reply:
        """Serve one request.

        Args:
            request: of the coordinator.
            memory: holds the secrets of secure aggregation between requests; None: this object.

        Raises:
            FedrecError: the request cannot be served; nothing has changed.
        """
        memory = self._memory if memory is None else memory
        if request.kind in STAGES and self._party is not None:
            return self._party.handle(request, memory)
        return checked(self._aggregation, request, self._serve(request, memory), integers=self._integers)

    def _serve(self, request: Request, memory: Memory) -> Reply:
        shown: dict[str, Callable[[Request], Reply]] = {"hello": self._hello, "persist": self._persist}
        hidden: dict[str, Callable[[Request], Reply]] = {"train": self._train, "evaluate": self._evaluate}
        if request.kind in shown:
            return shown[request.kind](request)
        if request.kind not in hidden:
            known = ", ".join((*shown, *hidden))
            raise ProtocolError(f"request of kind {request.kind!r}: expected one of {known}")
        reply = hidden[request.kind](self._sender.payload(request))
        return self._sender.send(request, reply, memory)

    def local_state(self, shared: State, phase: Phase, round_: int) -> State:
        """What recommending to the hosted users needs beside the model, as of the end of `round_`.

        A user who has a history but took no part in training (no cohort ever held it, or there was nothing to learn
        from) is folded in, as a device would do it.
        """
        state = self._state_before(phase, round_ + 1)
        history = self._split.batch(self._split.history(phase))
        unseen = np.flatnonzero(~self._learned_before(phase, round_ + 1) & (history.counts > 0))
        if not state or not len(unseen):
            return state
        after = {name: values.copy() for name, values in state.items()}
        for name, values in self._recommender.fold_in(shared, history.take(unseen)).items():
            after[name][unseen] = values
        return after

    def _make_sender(self) -> Sender:
        terms = self._aggregation
        if isinstance(terms, SealedTerms):
            return SealedSender(terms, self._name)
        if self._party is not None:
            return MaskedSender(self._party, self._rounding)
        if isinstance(terms, SecaggTerms | CohortTerms):
            return IntegerSender(terms, self._rounding)
        return PlainSender()

    def _rounding(self, label: str) -> NoiseSource:
        """Rounding can be repeated where noise can be, or where there is none: it protects no one by itself."""
        plan = self._privacy.plan if self._privacy else None
        seed = self._settings.seed if plan is None else plan.noise_seed
        return NoiseSource(seed).derive("rounding", identity_of(self._users), label)

    def _hello(self, request: Request) -> Reply:
        meta: dict[str, Any] = {
            "users": self._split.train.n_users,
            "config": self.config_hash,
            "node": self._name,
        }
        if isinstance(self._party, SecureParty):
            member = self._party.terms.roster.members[self._party.place]
            meta |= {"users": member.users, "node": member.name, "place": self._party.place}
        return _reply(request, {}, meta)

    def _train(self, request: Request) -> Reply:
        """The one way from histories to a reply: bounded, and charged before it leaves where there is a plan."""
        earlier = self._releases.earlier(request)
        if earlier is not None:
            return earlier
        seed = RoundSeed(self._settings.seed, request.round)
        context = self._context(request)
        batch = self._chain.histories(self._split.batch(self._part(request.phase)))
        joins = self._chain.cohort.joins(batch, seed, context.noise)
        # A user who has nothing to learn from takes part with a contribution of zero.
        learners = np.flatnonzero(joins & (batch.counts > 0))
        local, unsent = self._state_before(request.phase, request.round), self._unsent_before(request)
        mine, kept = _rows(local, learners), _rows(unsent, learners)
        stages = NodeRound(self._chain, context, self._whole(request.round), kept)
        total, changed = self._summed(request, mine, batch.take(learners), seed, stages)
        arrays, numbers = stages.write(total, int(joins.sum()), len(batch))
        # Personal state first: a node killed here has released nothing and does the round again.
        persist = self._releases.persists or bool(request.meta.get("persist", True))
        self._keep_personal(request, local, changed, learners, persist=persist)
        if kept:
            self._keep(self._unsent, request, unsent, kept, learners, persist=persist)
        return self._releases.release(request, _reply(request, arrays, numbers))

    def _summed(
        self, request: Request, mine: State, batch: UserBatch, seed: RoundSeed, stages: NodeRound
    ) -> tuple[UpdateSum, State]:
        """The users' sum and their new personal state; what cannot be computed is replaced, whatever the reason."""
        training, zero = self._chain.training, UpdateTraining()
        given = (self._recommender, request.arrays, mine, batch, seed, stages)
        return computed(
            lambda: training.train(*given),
            lambda: computed(lambda: training.replacement(*given), lambda: zero.replacement(*given)),
        )

    def _context(self, request: Request) -> RoundContext:
        noise = None if self._noise is None else self._noise.derive("round", request.round)
        announced = announced_in(request.meta)
        return self._chain.context(self._whole(request.round), self._n_items, request.round, announced, noise)

    def _whole(self, round_: int) -> Layout:
        return self._recommender.layout(self._n_items, round_)

    def _unsent_before(self, request: Request) -> State:
        """[U, ...] what stages remember of every user."""
        state = self._unsent.before(request.phase, request.round)
        if state is not None:
            return state
        return self._chain.init_users(self._whole(request.round), self._n_items, len(self._users))

    def _keep_personal(
        self, request: Request, local: State, changed: State, cohort: IntArray, *, persist: bool
    ) -> None:
        """Personal state after a round, and for whom it is more than a beginning."""
        if local:
            local = local | {LEARNED: self._learned_before(request.phase, request.round)}
            changed = changed | {LEARNED: np.ones(len(cohort), dtype=bool)}
        self._keep(self._store, request, local, changed, cohort, persist=persist)

    def _keep(
        self,
        store: LocalStore,
        request: Request,
        local: State,
        changed: State,
        cohort: IntArray,
        *,
        persist: bool,
    ) -> None:
        after = {name: values.copy() for name, values in local.items()}
        for name, values in changed.items():
            after[name][cohort] = values
        store.put(request.phase, request.round, after, persist=persist)

    def _evaluate(self, request: Request) -> Reply:
        if self._metrics is not None:
            return self._metrics.answer(request, lambda names: self._bounded_sums(request, names))
        settings = self._evaluation if request.phase == "refit" else self._evaluation.quick()
        empty = MetricSums.empty(settings, self._n_items)
        sums = computed(lambda: self._sums(request, settings), lambda: empty)
        return _reply(request, alike(sums.to_arrays(), empty.to_arrays()), {})

    def _sums(self, request: Request, settings: EvaluationSettings) -> MetricSums:
        target = self._held_out(request.phase)
        history = self._split.batch(self._split.history(request.phase))
        if target is None:
            return MetricSums.empty(settings, self._n_items)
        return evaluate(
            self._recommender,
            request.arrays,
            self.local_state(request.arrays, request.phase, request.round),
            history,
            target,
            settings,
            self._settings.seed,
            self._categories,
        )

    def _bounded_sums(self, request: Request, names: Sequence[str]) -> NDArray[np.float64]:
        """[K + 1] what a private run may release of the final model, before noise; its number follows the rounds'."""
        target = self._held_out(request.phase)
        if target is None:
            return np.zeros(len(names) + 1)
        return computed(
            lambda: bounded_sums(
                self._recommender,
                request.arrays,
                self.local_state(request.arrays, request.phase, request.round - 1),
                self._split.batch(self._split.history(request.phase)),
                target,
                names,
                self._evaluation,
                self._settings.seed,
                self._n_items,
            ),
            lambda: np.zeros(len(names) + 1),
        )

    def _held_out(self, phase: Phase) -> UserBatch | None:
        target = self._split.target(phase)
        return None if target is None else self._split.batch(target)

    def _persist(self, request: Request) -> Reply:
        self._store.persist(request.phase, request.round)
        self._unsent.persist(request.phase, request.round)
        return _reply(request, {}, {})

    def _part(self, phase: Phase) -> Interactions:
        if phase not in self._learnable:
            self._learnable[phase] = self._split.learnable(phase)
        return self._learnable[phase]

    def _state_before(self, phase: str, round_: int) -> State:
        state = self._store.before(phase, round_)
        if state is not None:
            return {name: values for name, values in state.items() if name != LEARNED}
        return self._recommender.init_local(self._users, self._settings.seed)

    def _learned_before(self, phase: str, round_: int) -> NDArray[np.bool_]:
        """[U] who has taken part in a round before this one, for models with personal state."""
        state = self._store.before(phase, round_) or {}
        return state.get(LEARNED, np.zeros(len(self._users), dtype=bool)).astype(bool)


def _rows(state: State, where: IntArray) -> State:
    return {name: values[where] for name, values in state.items()}


def _reply(request: Request, arrays: State, meta: dict[str, Any]) -> Reply:
    return Reply(request.kind, request.round, request.phase, arrays, meta)
