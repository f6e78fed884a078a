"""The contract of a model that serves: scores for one user from the user's own history, with numpy alone.

A serving model is immutable and knows no one: what it needs of a user (`User`) is folded in from a history in
less than a millisecond, without a training round and without a network. Every score can be explained exactly: a
base that has nothing to do with the user, and one contribution for each entry of the history.

Out of scope: training (`fedrec.recommenders`), lists (`pipeline`), files (`fedrec.wire.package`).

Letters: I items, L entries of a history, d embedding size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.items import Arrays, Items

Header = dict[str, Any]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class History:
    """What one user did, oldest first.

    Attributes:
        item: [L] indices in the model's items.
        weight: [L] interaction weights above 0; 1 is an ordinary interaction, one of weight 2 counts twice.

    Raises:
        DataError: lengths differ, an index is negative, a weight is not above 0.
    """

    item: NDArray[np.int64]
    weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.item.shape != self.weight.shape or self.item.ndim != 1:
            raise DataError(
                f"history of {self.item.shape} items and {self.weight.shape} weights: expected one weight per item"
            )
        if len(self.item) and (self.item.min() < 0 or not np.all(self.weight > 0)):
            raise DataError(
                "a history has a negative index or a weight of 0 or less: build it with History.of"
            )

    def __len__(self) -> int:
        return len(self.item)

    @classmethod
    def of(cls, items: Items, ids: Sequence[str], weights: Sequence[float] | None = None) -> History:
        """The entries whose items the model knows; the others cannot be used by it."""
        given = np.ones(len(ids)) if weights is None else weights
        known = [(place, s) for i, s in zip(ids, given, strict=True) if (place := items.index(i)) is not None]
        return cls(
            np.array([place for place, _ in known], dtype=np.int64),
            np.array([s for _, s in known], dtype=np.float32),
        )


@dataclass(frozen=True)
class User:
    """A history, and what a model made of it.

    Attributes:
        history: see `History`.
        state: of the model that folded it in; no one else reads it.
    """

    history: History
    state: Any = None

    @property
    def known(self) -> bool:
        """Whether the model can use an entry of the history; without one its scores say nothing of the user."""
        return self.state.known if isinstance(self.state, User) else len(self.history) > 0


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score: score = base + sum of contributions, to 1e-4 of the largest of them.

    Attributes:
        score: as `scores` says.
        base: what the item would have for everyone (popularity, bias).
        contributions: [L] of each entry of the history.
    """

    score: float
    base: float
    contributions: NDArray[np.float64]


class Scorer(Protocol):
    """What making a list needs of a model; a `ServingModel` is one."""

    @property
    def n_items(self) -> int:
        """I."""

    def scores(self, user: User) -> Scores:
        """[I] higher is better, in an array of the caller's own; seen items are not masked."""

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, any] one vector per item, for diversity and exploration; alike items have alike vectors."""


@dataclass(frozen=True)
class Scored:
    """Scores of one user that are computed already, by a model that does not serve by itself.

    Attributes:
        values: [I] higher is better.
    """

    values: Scores

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.values)

    def scores(self, user: User) -> Scores:
        """[I] a copy of the values."""
        return self.values.copy()

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores alone say nothing of how alike items are.

        Raises:
            DataError: always.
        """
        raise DataError(
            "diversity and exploration need vectors of items, and there are scores alone: use the serving form of "
            "the model, or leave them out"
        )


#: Every kind whose module is imported.
_KINDS: dict[str, type[ServingModel]] = {}


class ServingModel(ABC):
    """Immutable, safe for several threads; a subclass that states its `kind` can be read again by it."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def n_items(self) -> int:
        """I."""

    @abstractmethod
    def fold_in(self, history: History) -> User:
        """What scoring needs of a user.

        Raises:
            DataError: a place is not below I.
        """

    @abstractmethod
    def scores(self, user: User) -> Scores:
        """[I] higher is better, in an array of the caller's own; seen items are not masked."""

    @abstractmethod
    def explain(self, user: User, item: int) -> Explanation:
        """Where the score of one item comes from."""

    @abstractmethod
    def similar(self, item: int) -> Scores:
        """[I] how alike items are to one; the item itself is of no meaning."""

    @abstractmethod
    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, any] one vector per item, for diversity and exploration; alike items have alike vectors.

        The items are all different; only vectors of one call can be compared.
        """

    @abstractmethod
    def quantised(self) -> ServingModel:
        """The same with tables of 8-bit integers, a quarter of the size."""

    @abstractmethod
    def to_arrays(self) -> tuple[Arrays, Header]:
        """Arrays and a header of plain values with "kind", for `read_model`."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> ServingModel:
        """The model of `to_arrays`; may raise KeyError, ValueError, TypeError, IndexError for what does not fit."""


def read_registered(arrays: Arrays, header: Header) -> ServingModel:
    """The model of `ServingModel.to_arrays`, of a kind whose module is imported; see `fedrec.ranking.read`.

    Raises:
        DataError: an unknown kind, or arrays that do not fit it.
    """
    kind = header.get("kind")
    if kind not in _KINDS:
        raise DataError(f"a model of kind {kind!r:.40}: expected one of {sorted(_KINDS)}; update the client")
    try:
        return _KINDS[kind].from_arrays(arrays, header)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"arrays that are not a model of kind {kind!r} ({error}): fetch it again") from error
