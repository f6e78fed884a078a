"""Network models that serve: a network reads the own history, and its vector scores the whole table.

Serves the sequence, two-tower, content and autoencoder families. A network cannot be taken apart into one part per
event exactly; an explanation says instead what each event changes: how much lower the score would be had it not
happened. What events do together lies in the base.

Letters: I items, L events, d width. Out of scope: training, the networks themselves (`encoders`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking._encoders import ENCODERS
from fedrec.ranking.factors import Factors
from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Explanation, Header, History, Scores, ServingModel, User
from fedrec.ranking.tables import Table, read_table

WEIGHT = "weight."


class Network(ServingModel):
    """A table, perhaps a bias, and an encoder.

    Args:
        encoder: name of one of `ENCODERS`.
        settings: plain values for it, and "max_length", the latest events that are read.
        weights: arrays for it.
        table: [I, d] that is scored.
        bias: [I] or None.
        read: [I, h] that events are read from; None: the scored one.

    Raises:
        ValueError: an unknown encoder, or shapes that do not fit.
    """

    kind: ClassVar[str] = "network"

    def __init__(
        self,
        encoder: str,
        settings: Header,
        weights: Arrays,
        table: Table,
        bias: NDArray[np.float32] | None = None,
        read: Table | None = None,
    ) -> None:
        if encoder not in ENCODERS:
            raise ValueError(f"encoder {encoder!r:.40}: expected one of {sorted(ENCODERS)}")
        if bias is not None and bias.shape != table.shape[:1]:
            raise ValueError(f"bias of shape {bias.shape} for {table.shape[0]} items")
        if read is not None and read.shape[0] != table.shape[0]:
            raise ValueError(f"{read.shape[0]} rows to read for {table.shape[0]} items")
        self.encoder, self.settings, self.weights = encoder, settings, weights
        self.table, self.bias, self.read = table, bias, read
        if len(self._vector(History(np.zeros(1, np.int64), np.ones(1, np.float32)))) != table.shape[1]:
            raise ValueError(f"encoder {encoder!r} does not give vectors of {table.shape[1]} entries")

    @property
    def n_items(self) -> int:
        """See `ServingModel`."""
        return self.table.shape[0]

    def fold_in(self, history: History) -> User:
        """See `ServingModel`; the network runs once."""
        if len(history) and history.item.max() >= self.n_items:
            raise DataError(f"a history with item {history.item.max()}: the model has {self.n_items}")
        return User(history, self._vector(history))

    def scores(self, user: User) -> Scores:
        """See `ServingModel`."""
        scores = self.table.dot(user.state)
        if self.bias is not None:
            scores += self.bias
        return scores

    def explain(self, user: User, item: int) -> Explanation:
        """What the score loses without each event; base is the rest. The network runs once per event."""
        row = self.table.rows(np.array([item]))[0].astype(np.float64)
        bias = 0.0 if self.bias is None else float(self.bias[item])
        score, history = bias + float(row @ user.state), user.history
        contributions = np.zeros(len(history))
        for position in range(max(0, len(history) - self.settings["max_length"]), len(history)):
            rest = History(np.delete(history.item, position), np.delete(history.weight, position))
            contributions[position] = score - bias - float(row @ self._vector(rest))
        return Explanation(score, score - float(contributions.sum()), contributions)

    def similar(self, item: int) -> Scores:
        """[I] cosines of what is scored."""
        return self._cosines.similar(item)

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `ServingModel`."""
        return self.table.rows(items)

    def quantised(self) -> Network:
        """See `ServingModel`; the network itself is small and stays as it is."""
        read = None if self.read is None else self.read.quantised()
        return Network(self.encoder, self.settings, self.weights, self.table.quantised(), self.bias, read)

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        arrays = self.table.to_arrays("item_table") | {WEIGHT + name: a for name, a in self.weights.items()}
        if self.bias is not None:
            arrays["item_bias"] = self.bias
        if self.read is not None:
            arrays |= self.read.to_arrays("read_table")
        return arrays, {"kind": self.kind, "encoder": self.encoder, "settings": dict(self.settings)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> Network:
        """See `ServingModel`."""
        bias = arrays.get("item_bias")
        weights: Arrays = {
            name.removeprefix(WEIGHT): np.asarray(values, dtype=np.float32)
            for name, values in arrays.items()
            if name.startswith(WEIGHT)
        }
        has_read = any(name.startswith("read_table") for name in arrays)
        return cls(
            str(header["encoder"]),
            dict(header["settings"]),
            weights,
            read_table(arrays, "item_table"),
            None if bias is None else np.asarray(bias, dtype=np.float32),
            read_table(arrays, "read_table") if has_read else None,
        )

    def _vector(self, history: History) -> NDArray[Any]:
        kept = slice(max(0, len(history) - int(self.settings["max_length"])), None)
        rows = (self.read or self.table).rows(history.item[kept])
        return ENCODERS[self.encoder](self.weights, self.settings, rows, history.weight[kept])

    @property
    def _cosines(self) -> Factors:
        from fedrec.ranking.folding import Ridge

        if not hasattr(self, "_likeness"):
            self._likeness = Factors(self.table, Ridge(1.0, 1.0))
        return self._likeness
