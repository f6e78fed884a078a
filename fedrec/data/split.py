"""A split: what may be learnt from, what is held out, and how it is handed on.

Training code receives `split.train` (or `split.known`), never the split: what is held out cannot reach
negative sampling, candidate choice, the number of rounds or a hyper-parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray, Interactions, UserBatch


@dataclass(frozen=True)
class Split:
    """Parts of one data set; all share the same id maps.

    Attributes:
        train: what models learn from while rounds and hyper-parameters are chosen.
        validation: what choices are evaluated on; joins the training part for the final fit. None: no choices.
        test: what the final model is evaluated on, once. None: it lies with someone else.
        support: history of held-out users, shown to the model when it recommends, never trained on.
        user_key: [U] key from which all randomness of a user is derived; the index in the whole data set.
    """

    train: Interactions
    validation: Interactions | None
    test: Interactions | None
    support: Interactions | None = None
    user_key: IntArray | None = None

    def __post_init__(self) -> None:
        for part in (self.validation, self.test, self.support):
            if part is not None and not (
                np.array_equal(part.user_ids, self.train.user_ids)
                and np.array_equal(part.item_ids, self.train.item_ids)
            ):
                raise DataError("the parts of a split must share the same user and item ids")
        if self.user_key is None:
            object.__setattr__(self, "user_key", np.arange(self.train.n_users, dtype=np.int64))

    def learnable(self, phase: str) -> Interactions:
        """What the phase trains on: "tuning" the training part, "refit" training and validation part.

        Users who were held out for validation are trained on in "refit", support included.
        """
        if phase != "refit" or self.validation is None:
            return self.train
        return self.train.merge(self._support(validated=True)).merge(self.validation)

    def history(self, phase: str) -> Interactions:
        """What a user's device knows when it recommends: what is learnt from, and the support of held-out users."""
        learnable = self.learnable(phase)
        return self._support(validated=False if phase == "refit" else None).merge(learnable)

    def _support(self, validated: bool | None) -> Interactions:
        """Support of the users with (True) or without (False) a validation part, or of all (None)."""
        if self.support is None:
            return self.train.select(np.zeros(len(self.train), dtype=bool))
        if validated is None or self.validation is None:
            return (
                self.support
                if not validated
                else self.support.select(np.zeros(len(self.support), dtype=bool))
            )
        has = self.validation.counts[self.support.user] > 0
        return self.support.select(has if validated else ~has)

    def target(self, phase: str) -> Interactions | None:
        """What the phase is evaluated on."""
        return self.test if phase == "refit" else self.validation

    def batch(self, part: Interactions) -> UserBatch:
        """All users of the split with their histories in `part`, keyed by `user_key`."""
        assert self.user_key is not None
        return replace(part.batch(np.arange(part.n_users, dtype=np.int64)), user=self.user_key)

    def restrict(self, users: IntArray) -> Split:
        """Only the given users (a node's shard); keys and items stay those of the whole data set."""
        assert self.user_key is not None
        parts = (self.train, self.validation, self.test, self.support)
        train, validation, test, support = (None if p is None else _only(p, users) for p in parts)
        assert train is not None
        return Split(train, validation, test, support, self.user_key[users])

    def shard(self, index: int, of: int) -> Split:
        """Shard `index` of `of`: every `of`-th user, so that shards are alike in size and kind."""
        return self.restrict(np.arange(index, self.train.n_users, of, dtype=np.int64))


def _only(part: Interactions, users: IntArray) -> Interactions:
    """The interactions of the given (sorted) users, renumbered 0.. in that order."""
    position = np.full(part.n_users, -1, dtype=np.int64)
    position[users] = np.arange(len(users))
    mask = position[part.user] >= 0
    columns = part.columns(mask)
    columns["user"] = position[columns["user"]]
    return replace(part, **columns, user_ids=part.user_ids[users])
