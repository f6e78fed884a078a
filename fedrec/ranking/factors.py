"""Factor models that serve: score_i = q_i · p + b_i with the user vector p folded in from the history.

Serves iALS and its private sibling (ridge) and matrix factorisation (Newton steps). Out of scope: training.

Letters: I items, d embedding size.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.folding import Folded, Folding, read_folding
from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Explanation, Header, History, Scores, ServingModel, User
from fedrec.ranking.tables import Table, read_table


class Factors(ServingModel):
    """An item table, perhaps a bias, and a way to fold a user in.

    Args:
        table: [I, d].
        folding: how p comes from a history.
        bias: [I] or None.
    """

    kind: ClassVar[str] = "factors"

    def __init__(self, table: Table, folding: Folding, bias: NDArray[np.float32] | None = None) -> None:
        if bias is not None and bias.shape != table.shape[:1]:
            raise ValueError(f"bias of shape {bias.shape} for {table.shape[0]} items")
        self.table = table
        self.bias = bias
        self.folding = folding
        self._prepared = folding.prepare(table, bias)
        self._norms: NDArray[np.float32] | None = None

    @property
    def n_items(self) -> int:
        """See `ServingModel`."""
        return self.table.shape[0]

    def fold_in(self, history: History) -> User:
        """See `ServingModel`."""
        if not len(history):
            return User(history)
        if history.item.max() >= self.n_items:
            raise DataError(f"a history with item {history.item.max()}: the model has {self.n_items}")
        bias = None if self.bias is None else self.bias[history.item]
        rows = self.table.rows(history.item)
        return User(history, self.folding.fold(self._prepared, rows, history, bias, self.n_items))  # type: ignore[arg-type]

    def scores(self, user: User) -> Scores:
        """See `ServingModel`; without a history only the bias is left."""
        if user.state is None:
            return np.zeros(self.n_items, np.float32) if self.bias is None else self.bias.copy()
        scores = self.table.dot(cast(Folded, user.state).vector)
        if self.bias is not None:
            scores += self.bias
        return scores

    def explain(self, user: User, item: int) -> Explanation:
        """See `ServingModel`."""
        bias = 0.0 if self.bias is None else float(self.bias[item])
        if user.state is None:
            return Explanation(bias, bias, np.zeros(len(user.history)))
        folded, row = cast(Folded, user.state), self.table.rows(np.array([item]))[0]
        rest, contributions = folded.shares(row)
        return Explanation(bias + float(row @ folded.vector), bias + rest, contributions)

    def similar(self, item: int) -> Scores:
        """[I] cosines."""
        norms = self._lengths()
        row = self.table.rows(np.array([item]))[0]
        return np.asarray(self.table.dot(row) / (norms * max(float(norms[item]), 1e-12)), dtype=np.float32)

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `ServingModel`."""
        return self.table.rows(items)

    def quantised(self) -> Factors:
        """See `ServingModel`."""
        return Factors(self.table.quantised(), self.folding, self.bias)

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        arrays = self.table.to_arrays("item_table")
        if self.bias is not None:
            arrays["item_bias"] = self.bias
        return arrays, {"kind": self.kind, "folding": {"kind": self.folding.kind} | asdict(self.folding)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> Factors:
        """See `ServingModel`."""
        bias = arrays.get("item_bias")
        return cls(
            read_table(arrays, "item_table"),
            read_folding(header["folding"]),
            None if bias is None else np.asarray(bias, dtype=np.float32),
        )

    def _lengths(self) -> NDArray[np.float32]:
        if self._norms is None:
            everything = np.arange(self.n_items)
            parts = np.array_split(everything, max(1, self.n_items >> 14))
            squares = [np.square(self.table.rows(part)).sum(axis=1) for part in parts]
            self._norms = np.maximum(np.sqrt(np.concatenate(squares)), 1e-12).astype(np.float32)
        return self._norms
