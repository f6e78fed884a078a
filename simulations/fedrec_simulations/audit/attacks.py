"""Attacks on a configuration: what leaks from one message, from a sum, from a noised sum and from the model.

Users of the training part are divided at random: a cohort whose updates are summed, as many outsiders, and everyone
else, from whom the attacker knows what is usual. The updates, the clipping, the mechanism and the model are the real
ones. A second experiment trains on half of the users and asks of both halves.

Simulation with known answers; its noise is drawn anew each time. Out of scope: proving a bound (`fedrec.privacy`'s
plan does) and refuting one (`fedrec.privacy.audit`).

Letters: U users, I items, P values of the flat vector, m users of the cohort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.updates import State
from fedrec.privacy.attacks import (
    Floats,
    Measured,
    item_evidence,
    matched_controls,
    matched_filter,
    measured,
    measured_by_user,
)
from fedrec_simulations.audit.attack_views import Planner, Target, private_round, summed, train

#: Users with fewer interactions are not attacked: there is too little to compare.
SHORTEST = 5
#: Items of one user that are asked of a released model.
ITEMS_ASKED = 10


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        attack: what is asked: "interactions" (is this item in the history?) or "membership" (was this user in?).
        view: what the attacker sees.
        result: AUC with its interval.
        private: whether the configuration's privacy was in force.
    """

    attack: str
    view: str
    result: Measured
    private: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"attack": self.attack, "view": self.view, "private": self.private} | asdict(self.result)


def attack(target: Target, planner: Planner | None, cohort: int = 100) -> list[Row]:
    """The whole table: without privacy and, given a planner, with it.

    Args:
        target: what is attacked.
        planner: makes the plan for a number of users and rounds; None: only what plain federation leaks.
        cohort: m, at most a third of the users with `SHORTEST` interactions or more.

    Raises:
        DataError: too few users.
    """
    rows = attack_updates(target, None, cohort) + attack_model(target, None, cohort)
    if planner is not None:
        rows += attack_updates(target, planner, cohort) + attack_model(target, planner, cohort)
    return rows


def attack_updates(target: Target, planner: Planner | None, cohort: int) -> list[Row]:
    """Attacks on the messages and on the sum of one cohort in the first round."""
    users = _divide(target, cohort, np.random.default_rng(target.seed))
    shared = target.recommender.init_shared(target.n_items, target.seed)
    layout = target.recommender.layout(target.n_items, 1)
    read = partial(item_evidence, layout=layout, n_items=target.n_items)
    ask = partial(_interactions, target, users[:cohort])
    alone = partial(_alone, target, shared, users[:cohort], read=read)
    if planner is None:
        rows = [Row("interactions", "one update", ask(alone(clip=None)), False)]
        clip = target.clip_norm
        if clip is not None:
            rows.append(Row("interactions", "one update, clipped", ask(alone(clip=clip)), False))
        seen, view = [summed(target, shared, users[:cohort], clip)], f"sum of {cohort} users"
    else:
        plan = planner(cohort, target.rounds)
        messages, seen = private_round(target, shared, users[:cohort], plan, read)
        rows = [Row("interactions", "one message", ask(messages), True)]
        clip, view = plan.clip_norm if plan.unit == "user" else None, f"released sum of {cohort} users"
    private, about = planner is not None, _dealt([read(one) for one in seen], cohort)
    return [
        *rows,
        Row("interactions", view, ask(about), private),
        Row("membership", view, _membership(target, shared, users, seen, clip), private),
    ]


def attack_model(target: Target, planner: Planner | None, cohort: int) -> list[Row]:
    """Attacks on the shared state after training on half of the users.

    The attacker knows all but one of a user's items and compares that one with an item as popular. A good model does
    this well for anyone; what it does better for those it was trained on is what it leaks, which is
    the attack on membership.
    """
    rng = np.random.default_rng(target.seed + 1)
    order = rng.permutation(len(target.batch))
    half = len(order) // 2
    inside, outside = np.sort(order[:half]), np.sort(order[half:])
    plan = planner(half, target.rounds) if planner else None
    shared = train(target, inside, plan)
    asked = [
        _ask_model(target, shared, _long_enough(target, part, cohort, rng), rng) for part in (inside, outside)
    ]
    margins = [np.array([s[y].mean() - s[~y].mean() for s, y in cases if len(y)]) for cases in asked]
    labels = np.repeat([True, False], [len(m) for m in margins])
    private = plan is not None
    return [
        Row("interactions", "released model, of its users", measured_by_user(asked[0]), private),
        Row("interactions", "released model, of others", measured_by_user(asked[1]), private),
        Row("membership", "released model", measured(np.concatenate(margins), labels), private),
    ]


def _dealt(values: list[Floats], count: int) -> list[Floats]:
    """`count` of them, in turn."""
    return [values[k % len(values)] for k in range(count)]


def _alone(
    target: Target, shared: State, users: IntArray, *, clip: float | None, read: Callable[[Floats], Floats]
) -> list[Floats]:
    """Evidence [I] from each user's own update."""
    return [read(summed(target, shared, users[k : k + 1], clip)) for k in range(len(users))]


def _interactions(target: Target, users: IntArray, evidence: list[Floats]) -> Measured:
    """Are these items in the history? Own items against items as popular, by the evidence [I] about each user."""
    rng, popularity, cases = np.random.default_rng(target.seed), target.popularity, []
    for user, about in zip(users, evidence, strict=True):
        owned = _history(target, user)
        items, controls = matched_controls(owned, owned, popularity, rng)
        cases.append((about[np.concatenate([items, controls])], np.arange(2 * len(items)) < len(items)))
    return measured_by_user(cases)


def _membership(
    target: Target, shared: State, users: IntArray, seen: list[Floats], clip: float | None
) -> Measured:
    """Was the user in the sum? By the user's own update, against what the sum would be of users like all others."""
    others = np.setdiff1d(np.arange(len(target.batch)), users)
    size = len(users) // 2
    expected = summed(target, shared, others, clip) * (size / len(others))
    scores = [
        matched_filter(seen[k % len(seen)], expected, summed(target, shared, users[k : k + 1], clip))
        for k in range(len(users))
    ]
    return measured(np.array(scores), np.arange(len(users)) < size)


def _ask_model(
    target: Target, shared: State, users: IntArray, rng: np.random.Generator
) -> list[tuple[Floats, NDArray[np.bool_]]]:
    """Per user: scores of own items, each hidden from the model in turn, and of their controls."""
    return [_ask_about(target, shared, user, rng) for user in users]


def _ask_about(
    target: Target, shared: State, user: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    owned = _history(target, user)
    some = rng.permutation(owned)[:ITEMS_ASKED]
    items, controls = matched_controls(some, owned, target.popularity, rng)
    if not len(items):
        return np.zeros(0), np.zeros(0, dtype=bool)
    known = _each_hidden(int(target.batch.user[user]), owned, items)
    local = target.recommender.fold_in(shared, known)
    scores = target.recommender.score(shared, local, known).astype(np.float64)
    scores -= scores.mean(axis=1, keepdims=True)
    scores /= np.maximum(scores.std(axis=1, keepdims=True), 1e-12)
    rows = np.arange(len(items))
    both = np.concatenate([scores[rows, items], scores[rows, controls]])
    return both, np.arange(len(both)) < len(items)


def _each_hidden(user: int, owned: IntArray, items: IntArray) -> UserBatch:
    """One copy of the user per item, with the history without that item."""
    rest = [owned[owned != item] for item in items]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rest])]).astype(np.int64)
    entries = np.concatenate(rest)
    return UserBatch(
        np.full(len(items), user, dtype=np.int64), indptr, entries, np.ones(len(entries), np.float32)
    )


def _history(target: Target, user: int) -> IntArray:
    return target.batch.item[target.batch.indptr[user] : target.batch.indptr[user + 1]]


def _divide(target: Target, cohort: int, rng: np.random.Generator) -> IntArray:
    """[2 m] the cohort first, as many outsiders after it."""
    able = np.flatnonzero(target.batch.counts >= SHORTEST)
    if cohort < 2 or len(able) < 3 * cohort:
        raise DataError(
            f"attack on a cohort of {cohort} with {len(able)} users of {SHORTEST} interactions or more: expected a "
            f"cohort of 2 to {len(able) // 3}, a third of them; lower --cohort or give more data"
        )
    return np.asarray(rng.permutation(able)[: 2 * cohort])


def _long_enough(target: Target, users: IntArray, most: int, rng: np.random.Generator) -> IntArray:
    able = users[target.batch.counts[users] >= SHORTEST]
    return np.asarray(rng.permutation(able)[:most])
