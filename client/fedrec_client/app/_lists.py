"""Lists for the user of this device: made, explained, and remembered to join what happens to them.

No network. Out of scope: how scores and lists are computed (`fedrec.ranking`), what an app calls (`client`).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import OrderedDict
from typing import Any

import numpy as np

from fedrec.core.errors import DataError
from fedrec.ranking.model import History, User
from fedrec.ranking.pipeline import Ranked, RecommendationRequest, rank
from fedrec.ranking.top_scores import top_k
from fedrec_client.app._client_state import ClientState
from fedrec_client.store.events import Scalar
from fedrec_client.terms.results import Because, Reasons, Recommendation, Recommended, Similar
from fedrec_client.updates.model_updates import Served

#: Lists whose places are remembered.
RECENT_LISTS = 200


class Lists:
    """See the module.

    Args:
        state: of the client.
    """

    def __init__(self, state: ClientState) -> None:
        self._state = state
        self._rng = np.random.default_rng()
        self._recent: OrderedDict[str, tuple[int, Ranked]] = OrderedDict()
        self._users: dict[tuple[int, int], tuple[User, Any]] = {}

    def forget_user(self) -> None:
        """What a model has made of the history."""
        with self._state.lock:
            self._users.clear()

    def forget(self) -> None:
        """Everything about the user."""
        with self._state.lock:
            self.forget_user()
            self._recent.clear()

    def recommend(self, request: RecommendationRequest) -> Recommendation:
        """See `Client.recommend`."""
        state = self._state
        with state.lock:
            served = state.models.served
            if served is None:
                return Recommendation(secrets.token_hex(16), (), 0)
            user, seen = self._user(served)
            against = state.profile.against if state.consent.personalize else frozenset()
        if against:
            request = dataclasses.replace(request, exclude={*request.exclude, *against})
        made = rank(served.item_index, user, seen, request, rng=self._rng, now=state.setup.now())
        return self._told(served, made)

    def similar(self, item: str, n: int) -> tuple[Similar, ...]:
        """See `Client.similar`."""
        served = self._state.served()
        place = _place(served, item)
        likeness = served.item_index.model.similar(place).astype(np.float32, copy=True)
        likeness[place] = -np.inf
        items = served.item_index.items
        return tuple(
            Similar(items.ids[k], items.titles[k], float(likeness[k])) for k in top_k(likeness, n).tolist()
        )

    def explain(self, item: str, rec: Recommendation | None) -> Reasons:
        """See `Client.explain`."""
        with self._state.lock:
            served = self._state.served()
            if rec is not None and rec.model_version != served.version:
                raise DataError(
                    f"the list was made by model version {rec.model_version}, {served.version} serves now: "
                    "recommend again"
                )
            place = _place(served, item)
            user, _ = self._user(served)
        told = served.item_index.model.explain(user, place)
        items = served.item_index.items
        order = np.argsort(-told.contributions, kind="stable").tolist()
        because = tuple(
            Because(items.ids[int(k)], items.titles[int(k)], float(told.contributions[at]))
            for at in order
            for k in user.history.item[at : at + 1]
        )
        return Reasons(item, items.titles[place], told.score, told.base, because)

    def shown(self, rec: str | None, item: str) -> dict[str, Scalar]:
        """Where an item stood in a recent list of the model in use; nothing when it did not."""
        with self._state.lock:
            known = self._recent.get(rec or "")
            served = self._state.models.served
        if known is None or served is None or served.version != known[0]:
            return {}
        version, made = known
        place = served.item_index.items.index(item)
        if place not in made.items:
            return {}
        at = made.items.index(place)
        return {
            "place": at + 1,
            "propensity": made.propensities[at],
            "source": made.sources[at],
            "model_version": version,
        }

    def _user(self, served: Served) -> tuple[User, Any]:
        """The user for a model, folded in once per change of the history; places of what was seen."""
        profile = self._state.profile
        if not self._state.consent.personalize:
            no_one = History.of(served.item_index.items, ())
            return served.item_index.model.fold_in(no_one), no_one.item
        key = (served.version, profile.revision)
        if key not in self._users:
            user = served.item_index.model.fold_in(profile.history(served.item_index.items))
            self._users = {key: (user, user.history.item)}
        return self._users[key]

    def _told(self, served: Served, made: Ranked) -> Recommendation:
        rec = secrets.token_hex(16)
        with self._state.lock:
            self._recent[rec] = (served.version, made)
            while len(self._recent) > RECENT_LISTS:
                self._recent.popitem(last=False)
        items = served.item_index.items
        listed = tuple(
            Recommended(items.ids[place], items.titles[place], score, chance, source)
            for place, score, chance, source in zip(
                made.items, made.scores, made.propensities, made.sources, strict=True
            )
        )
        return Recommendation(rec, listed, served.version, made.unknown)


def make_request(n: int, constraints: dict[str, Any]) -> RecommendationRequest:
    """A request from constraints by name.

    Raises:
        DataError: a constraint has an unknown name or a value that is not valid.
    """
    try:
        return RecommendationRequest(n=n, **constraints)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(RecommendationRequest))
        raise DataError(f"recommend({', '.join(constraints)}=...): {error}; there are {known}") from error


def _place(served: Served, item: str) -> int:
    place = served.item_index.items.index(item)
    if place is None:
        raise DataError(
            f"item {item!r:.80}: model version {served.version} does not know it; give one it recommends"
        )
    return place
