"""What an attacker gets to see of a configuration: messages, sums, releases and models, made by the real code.

Simulation with users whose data are known. Out of scope: what the attacker makes of it (`attacks`).

Letters: U users, I items, P values of the flat vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import Layout, State, UpdateSum
from fedrec.data.split import Split
from fedrec.privacy.attacks import Floats
from fedrec.privacy.clipping import add_clipped
from fedrec.privacy.interaction import train_interactions
from fedrec.privacy.mechanism import Contribution, mechanism_of
from fedrec.privacy.mechanisms.distributed import Distributed
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings

#: Releases of one cohort's sum: users are spread over them, so that one lucky draw of noise does not decide.
DRAWS = 10
#: Interactions whose updates are computed at once.
ENTRIES = 200_000

#: A plan for so many users and rounds.
Planner = Callable[[int, int], PrivacyPlan]


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        recommender: the model.
        batch: [U] all users with their training histories.
        n_items: I.
        rounds: of training, for attacks on the released model.
        clip_norm: C without a plan; None: updates are not clipped.
        seed: of the division of users and of training.
    """

    recommender: Recommender
    batch: UserBatch
    n_items: int
    rounds: int
    clip_norm: float | None
    seed: int

    @classmethod
    def of(
        cls, recommender: Recommender, split: Split, rounds: int, clip_norm: float | None, seed: int
    ) -> Target:
        """The training part of a split; a model of fixed length takes its own number of rounds."""
        taken = recommender.fixed_rounds or rounds
        return cls(recommender, split.batch(split.train), split.train.n_items, taken, clip_norm, seed)

    @property
    def popularity(self) -> IntArray:
        """[I] users with each item: public knowledge, as far as the attacker is concerned."""
        return np.bincount(self.batch.item, minlength=self.n_items).astype(np.int64)


def planner_of(privacy: object, target: Target) -> Planner | None:
    """How a configuration's privacy is planned for the users of an experiment; None where it has none.

    Noise, sampling and clipping are those of the configuration with everyone taking part. delta is that of the
    whole data set, so that a cohort of a hundred is not let off with the delta of a hundred users.
    """
    if not isinstance(privacy, PrivacySettings):
        return None
    recommender, everyone = target.recommender, len(target.batch)
    delta = privacy.delta or (privacy.population or everyone) ** -1.1
    # What is asked here is what leaks, not whether the model would be any good; and noise is never seeded.
    fixed = {"delta": delta, "population": None, "adaptive": None, "noise_seed": None, "force": True}
    settings = privacy.model_copy(update=fixed)

    def plan(users: int, rounds: int) -> PrivacyPlan:
        largest = max(recommender.layout(target.n_items, r).size for r in range(1, rounds + 1))
        schedule = recommender.noise_schedule(rounds)
        return make_plan(settings, population=users, rounds=rounds, schedule=schedule, parameters=largest)

    return plan


def train(target: Target, users: IntArray, plan: PrivacyPlan | None) -> State:
    """Shared state after all rounds with the given users (rows of the batch), everyone in every round."""
    recommender, batch = target.recommender, target.batch.take(users)
    shared = recommender.init_shared(target.n_items, target.seed)
    server, local = recommender.init_server(shared), recommender.init_local(batch.user, target.seed)
    noise = NoiseSource()
    for round_ in range(1, target.rounds + 1):
        total, local = _round(target, shared, local, batch, round_, plan, noise)
        shared, server = recommender.apply(shared, server, total)
    return shared


def _round(
    target: Target,
    shared: State,
    local: State,
    batch: UserBatch,
    round_: int,
    plan: PrivacyPlan | None,
    noise: NoiseSource,
) -> tuple[UpdateSum, State]:
    """What the coordinator gets to see of a round, and the users' new local state."""
    key = RoundSeed(target.seed, round_)
    if plan is not None and mechanism_of(plan).training is not None:
        return train_interactions(target.recommender, shared, local, batch, key, plan, noise, target.n_items)
    layout = target.recommender.layout(target.n_items, round_)
    clip = target.clip_norm if plan is None else plan.clip_norm
    total = UpdateSum(layout.zeros())
    after = {name: values.copy() for name, values in local.items()}
    for where, piece in batch.chunks(ENTRIES, target.recommender.chunk_users):
        mine = {name: values[where] for name, values in local.items()}
        updates, mine = target.recommender.compute_updates(shared, mine, piece, key, target.n_items)
        add_clipped(total, updates, clip)
        for name, values in mine.items():
            after[name][where] = values
    if plan is None:
        return total, after
    mechanism = mechanism_of(plan)
    vector = layout.flatten(total.blocks).astype(np.float64)
    sent = mechanism.contribute(vector, len(batch), round_, plan.clip_norm, noise)
    flat = mechanism.release(sent, len(batch), round_, plan.clip_norm, noise)
    std = plan.noise_std(round_, plan.clip_norm)
    blocks = {
        name: values.astype(np.float64) for name, values in layout.unflatten(flat[: layout.size]).items()
    }
    return UpdateSum(blocks, users=plan.denominator, noise_std=std), after


def private_round(
    target: Target, shared: State, users: IntArray, plan: PrivacyPlan, read: Callable[[Floats], Floats]
) -> tuple[list[Floats], list[Floats]]:
    """Evidence [I] from each user's message as the server can read it, and releases [P], each with noise of its own.

    Where the noise is made in training (unit "interaction") it cannot be drawn again for the same sum: there is
    one release.
    """
    noise, evidence = NoiseSource(), []
    mechanism = mechanism_of(plan)
    size = target.recommender.layout(target.n_items, 1).size
    clean, total = np.zeros(size), mechanism.zero(size)
    for k in range(len(users)):
        one = users[k : k + 1]
        vector = (
            _trained(target, shared, one, plan, noise)
            if mechanism.training is not None
            else summed(target, shared, one, plan.clip_norm)
        )
        message = mechanism.contribute(vector, 1, 1, plan.clip_norm, noise)
        clean, total = clean + vector, mechanism.add(total, message)
        evidence.append(read(readable(message, plan)[:size]))
    totals = [total]
    if mechanism.training is None:
        again = range(DRAWS - 1)
        totals += [mechanism.contribute(clean, len(users), 1, plan.clip_norm, noise) for _ in again]
    return evidence, [mechanism.release(t, len(users), 1, plan.clip_norm, noise)[:size] for t in totals]


def readable(message: Contribution, plan: PrivacyPlan) -> Floats:
    """What a message of the first round says in its first P values, in units of the update."""
    if plan.distributed is None:
        return message.astype(np.float64)
    return Distributed(plan).readable(message, 1)


def _trained(target: Target, shared: State, one: IntArray, plan: PrivacyPlan, noise: NoiseSource) -> Floats:
    batch = target.batch.take(one)
    local = target.recommender.init_local(batch.user, target.seed)
    key = RoundSeed(target.seed, 1)
    total, _ = train_interactions(target.recommender, shared, local, batch, key, plan, noise, target.n_items)
    return _flat(total, target.recommender.layout(target.n_items, 1))


def summed(target: Target, shared: State, users: IntArray, clip: float | None) -> Floats:
    """[P] the sum of the users' updates in the first round, each clipped."""
    layout, batch = target.recommender.layout(target.n_items, 1), target.batch.take(users)
    total = UpdateSum(layout.zeros())
    for _, piece in batch.chunks(ENTRIES, target.recommender.chunk_users):
        local = target.recommender.init_local(piece.user, target.seed)
        updates, _ = target.recommender.compute_updates(
            shared, local, piece, RoundSeed(target.seed, 1), target.n_items
        )
        add_clipped(total, updates, clip)
    return _flat(total, layout)


def _flat(total: UpdateSum, layout: Layout) -> Floats:
    return np.asarray(layout.flatten(total.blocks), dtype=np.float64)
