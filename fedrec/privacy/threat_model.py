"""Against whom a plan protects, whom it takes on trust, and everything it does not cover; said in plain sentences.

Out of scope: the rest of the statement (`statement`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.plan import PrivacyPlan

_OUTSIDE = "everyone who gets the model of any round, other users included"


def adversary(
    plan: PrivacyPlan | None,
    aggregator: str,
    nodes: int,
    users_per_node: int,
    *,
    least_nodes: int = 0,
    simulated: bool = False,
) -> dict[str, Any]:
    """The field `adversary_and_trust`: who sees what, who is trusted.

    Args:
        plan: None: no privacy.
        aggregator: "plain" or "sealed": the coordinator sees what every node sends; "secagg": sums over nodes.
        nodes, users_per_node: how many, and the fewest users on one.
        least_nodes: fewest nodes in a sum, under secure aggregation.
        simulated: its integers were summed without masks, in one process.
    """
    plain = aggregator != "secagg"
    values: dict[str, Any] = {
        "trust": plan.trust if plan else None,
        "aggregator": aggregator,
        "server_sees_node_sums": plain,
        "nodes": nodes,
        "users_per_node": users_per_node,
    }
    text = [*_whom(plan), "A node is trusted by its own users: it holds their data."]
    if aggregator == "simulated":
        text.append(
            "This run was a simulation: one process held all data and added up by function calls, so that nothing "
            "was hidden from it."
        )
    elif plain:
        sees = "the clean sum" if _is_clean(plan) else "the noised contribution"
        alone = "; with one user on a node that is this user's own update" if users_per_node == 1 else ""
        which = "the one node" if nodes == 1 else f"each of {nodes:,} nodes"
        sealed = (
            " Replies are sealed to the server, so no one on the way sees them."
            if aggregator == "sealed"
            else ""
        )
        text.append(f"There is no secure aggregation: the server sees {sees} of {which}{alone}.{sealed}")
    else:
        text += _secure(plan, least_nodes, nodes, simulated=simulated)
        values |= {"least_nodes": least_nodes, "simulated": simulated}
    if plan is not None and mechanism_of(plan).needs_secure_aggregation:
        values |= _shares(plan, plain, users_per_node, text)
    return {"text": text, **values}


def local_epsilon(plan: PrivacyPlan, users: float) -> float:
    """Epsilon, at the plan's delta, against a server that can take away all noise but that of `users` users.

    It sees the contribution of one node with so many users, or works with all the others in a sum. Infinite for a
    plan whose nodes add no noise.
    """
    return mechanism_of(plan).epsilon_of_nodes(users)


def uncovered(
    plan: PrivacyPlan | None,
    *,
    plain: bool,
    metrics: str,
    held_data: bool = False,
    exact_numbers: Sequence[str] = (),
    selected: bool = False,
    tuned: bool = False,
    lists_served: bool = False,
) -> list[str]:
    """Everything that the guarantee does not speak about, as sentences.

    Args:
        plan: None: no privacy, and so nothing is covered.
        plain: the coordinator sees what every node sends, sealed on its way or not.
        metrics: "noised": sums of some leave under the plan; "exact": without noise, in a run without a plan; "none".
        held_data: exact metrics were computed beside the run on data that a researcher holds.
        exact_numbers: names of other numbers that do.
        selected: rounds or settings were chosen on these users' held-out interactions.
        tuned: settings were chosen in other runs on this data.
        lists_served: recommendations are computed away from the users' data.
    """
    if plan is None:
        return ["Nothing is covered. In particular:", *_always(lists_served), *_choices(selected, tuned)]
    out = []
    if plan.noise_seed is not None:
        out.append("The noise itself: its seed is known, so it can be subtracted. Nothing below it counts.")
    out += mechanism_of(plan).uncovered(plain=plain)
    which = (
        "those released are noised and charged; any others"
        if metrics == "noised"
        else "none over users leave this run; any"
    )
    out.append(f"Evaluation metrics: {which} computed elsewhere would not be covered.")
    if held_data:
        out.append(
            "Metrics of held data: exact ones were computed beside this run by a researcher who holds all the data; "
            "they are not a release of this run, and a publication of them has no protection."
        )
    if exact_numbers:
        out.append(f"Numbers sent exactly beside the updates: {', '.join(exact_numbers)}.")
    return [*out, *_always(lists_served), *_choices(selected, tuned)]


def _whom(plan: PrivacyPlan | None) -> list[str]:
    if plan is None:
        return [
            "Protects against no one.",
            "The server, the network and everyone with the model are all trusted.",
        ]
    return mechanism_of(plan).adversary(_OUTSIDE)


def _secure(plan: PrivacyPlan | None, least: int, nodes: int, *, simulated: bool) -> list[str]:
    """What secure aggregation rests on, and what it leaves open."""
    text = [
        f"Secure aggregation: the server sees sums over at least {least} of {nodes:,} nodes and nothing of a single "
        "one, as long as the nodes around it that work with the server are too few to open its masks, and the list "
        "of nodes' keys was not written by the server; a server that wrote it is trusted to follow the protocol.",
    ]
    if _is_clean(plan):
        text.append(
            "The sum itself is exact and tells of single users where few took part: in a small cohort most items of "
            "the sum were touched by one user alone."
        )
    if simulated:
        text.append(
            "This run was a simulation in one process: the same integers were summed without the cryptography."
        )
    return text


def _shares(plan: PrivacyPlan, plain: bool, users: int, text: list[str]) -> dict[str, Any]:
    """Say what a single node's contribution is worth, for whoever sees it."""
    own = local_epsilon(plan, users)
    shown = "infinite" if math.isinf(own) else f"{own:.3g}"
    if plain:
        text.append(
            f"So against the server only the noise of one node counts: epsilon {shown} at delta {plan.delta:.2g} for "
            f"users of the smallest node ({users}). The stated guarantee needs secure aggregation."
        )
    else:
        text.append(
            f"Whoever breaks the secure aggregation of one node faces its own noise only: epsilon {shown} at delta "
            f"{plan.delta:.2g}."
        )
    return {"server_epsilon": own if plain else plan.epsilon(), "node_epsilon": own}


def _always(lists_served: bool) -> list[str]:
    served = (
        "Recommendation lists: they are computed from users's histories away from them, and tell about them."
        if lists_served
        else "Recommendation lists: made on a user's own node from the private history, they must not leave it."
    )
    return [
        "User vectors and histories: they stay on the user's node, and nothing is promised once they leave it.",
        served,
        "Who takes part: that someone is a user, answers, when, and how large a message is, can be seen.",
        "How many users there are, in all and in each round.",
        "The catalogue, and how the data was prepared: which items, users and interactions were kept was decided by "
        "looking at the data.",
        "What can be learned about a user from others who are like them: the model is meant to do that.",
    ]


def _choices(selected: bool, tuned: bool) -> list[str]:
    chosen = "were" if selected else "were not"
    return [
        f"Early stopping and the choice of rounds: they {chosen} decided on these users' held-out interactions"
        + (", which is not charged." if selected else "."),
        "Tuning: settings were chosen by other runs on this data, which is not charged."
        if tuned
        else "Tuning: settings chosen by other runs on this data, if any were, are not charged.",
    ]


def _is_clean(plan: PrivacyPlan | None) -> bool:
    """Whether nodes send sums without noise."""
    return plan is None or mechanism_of(plan).sends_clean_sums
