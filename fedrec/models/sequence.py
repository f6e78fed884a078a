"""What models of the next item have in common: windows of local histories, losses over the catalogue, tied scores.

The hidden state h_t after the first t items of a window scores every item as h_t · q_i + b_i with the table that the
items are read from. Losses: cross-entropy over the whole catalogue (to which Klenitskiy and Vasilev 2023, RecSys,
trace most of what later models gained), or over the target and n sampled items, whose share of the catalogue is
corrected for (Jean et al. 2015, ACL). A user with more events than fit gives another window in every round.

Letters: K users, L positions (right-aligned: the latest is the last), d embedding size, n negatives.
Final classes give `encoder_parameters` and `encode`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrec.data.interactions import IntArray, UserBatch
from fedrec.learning.dropout import dropout_masks
from fedrec.learning.keys import Purpose, bits, key, user_keys
from fedrec.learning.updates import State
from fedrec.models.base import RoundKey, Scores
from fedrec.models.head import with_head
from fedrec.models.neural import NeuralConfig, NeuralRecommender, Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.learning.batched import Params, Touched, Work

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class SequenceConfig(NeuralConfig):
    """What every model of the next item is configured by.

    Attributes:
        embedding_size: d.
        max_length: L, the most events of a window.
        windows: which part of a longer history is learned from: another "random" one each round, or the "latest".
        dropout: rate, of embeddings and of what layers add.
        init_scale: standard deviation of the initial item vectors' entries.
        loss: "full" cross-entropy over the catalogue, or "sampled" over the target and `negatives` items.
        negatives: n, common to the positions of a window (sampled).
    """

    embedding_size: int = Field(default=64, ge=1)
    max_length: int = Field(default=50, ge=2)
    windows: Literal["random", "latest"] = "random"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    init_scale: float = Field(default=0.02, gt=0)
    loss: Literal["full", "sampled"] = "full"
    negatives: int = Field(default=256, ge=1)


@dataclass(frozen=True)
class Windows:
    """Right-aligned pieces of K histories.

    Attributes:
        item: [K, L] 0 where there is none.
        real: [K, L].
    """

    item: IntArray
    real: Mask

    @property
    def length(self) -> int:
        """L."""
        return int(self.item.shape[1])


@dataclass(frozen=True)
class Lesson:
    """What is read and what is to be told from it, every array [K, L].

    Attributes:
        read: items that go in.
        target: items that are asked for, position by position.
        real: where an input event is.
        learned: where a target is asked for.
        hidden: where the input event is replaced by the hidden item's vector; None: nowhere.
    """

    read: IntArray
    target: IntArray
    real: Mask
    learned: Mask
    hidden: Mask | None = None


def windows_of(batch: UserBatch, length: int, starts: IntArray | None = None, least: int = 1) -> Windows:
    """At most `length` consecutive events of each user, the latest ones unless `starts` [K] says where they begin.

    `least` columns there are in any case.
    """
    counts = np.minimum(batch.counts, length)
    first = batch.counts - counts if starts is None else starts
    width = int(counts.max(initial=least))
    column = np.arange(width) - (width - counts)[:, None]
    real = column >= 0
    item = np.zeros(real.shape, dtype=np.int64)
    item[real] = batch.item[((batch.indptr[:-1] + first)[:, None] + column)[real]]
    return Windows(item, real)


class SequenceRecommender(NeuralRecommender):
    """Base of the models of the next item."""

    sorts_by_length: ClassVar[bool] = True
    #: M, masks of dropout that `encode` takes.
    dropout_masks: int = 1

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self._sequence = config

    @property
    def settings(self) -> SequenceConfig:
        """The common part of the configuration."""
        return self._sequence

    @abstractmethod
    def encoder_parameters(self) -> dict[str, Parameter]:
        """Everything but the item table and its bias."""

    @abstractmethod
    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:
        """[K, L, d] hidden states.

        Args:
            params: [K, ...].
            x: [K, L, d] item vectors, right-aligned.
            real: [K, L] 1 where there is an event.
            masks: [M, K, L, d] of dropout; None: none (serving).
        """

    def hidden(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:
        """`encode`, and behind it the personal head where there is one."""
        return with_head(params, self.encode(params, x, real, masks))

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self._sequence
        tables = {
            "item_table": Parameter((c.embedding_size,), c.init_scale, where="table"),
            "item_bias": Parameter((), where="table"),
        }
        return tables | self.encoder_parameters()

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundKey, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        from fedrec.models.sequence_work import ItemInPlace

        passes = [self._pass(batch, key, epoch) for epoch in range(self._sequence.local_epochs)]
        return ItemInPlace.prepare(self, passes, batch, key, n_items)

    def lesson(self, window: Windows, batch: UserBatch, key_: RoundKey, epoch: int) -> Lesson:
        """What a window teaches: here, behind every event the next one."""
        item, real = window.item, window.real
        return Lesson(item[:, :-1], item[:, 1:], real[:, :-1], real[:, :-1] & real[:, 1:])

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        import torch

        from fedrec.learning.gather import gather_rows

        windows = windows_of(batch, self._sequence.max_length)
        x = gather_rows(params["item_table"], torch.from_numpy(windows.item))
        real = torch.from_numpy(windows.real.astype(np.float32))
        last = self.hidden(params, x, real, None)[:, -1] * real[:, -1:]
        return torch.baddbmm(
            params["item_bias"].unsqueeze(1), last.unsqueeze(1), params["item_table"].transpose(1, 2)
        ).squeeze(1)

    def draw_masks(self, batch: UserBatch, key_: RoundKey, epoch: int, length: int) -> Scores | None:
        """[M, K, L, d] of dropout for one pass; None: no dropout."""
        c = self._sequence
        if not c.dropout:
            return None
        keys = user_keys(key(key_.seed, Purpose.DROPOUT, key_.round), batch.user)
        keys = bits(keys, epoch + 1)[:, epoch]
        return dropout_masks(keys, self.dropout_masks, length, c.embedding_size, c.dropout)

    def _pass(self, batch: UserBatch, key_: RoundKey, epoch: int) -> Windows:
        """Windows of one pass: L + 1 events, the inputs and behind each its target."""
        size = self._sequence.max_length + 1
        if self._sequence.windows == "latest":
            return windows_of(batch, size, least=2)
        draws = bits(user_keys(key(key_.seed, Purpose.WINDOW, key_.round), batch.user), epoch + 1)[:, epoch]
        room = np.maximum(batch.counts - size, 0) + 1
        return windows_of(batch, size, (draws % room.astype(np.uint64)).astype(np.int64), least=2)


def log_share(n_items: int, negatives: int) -> float:
    """What a sampled item's score is raised by: the log of how many items it stands for."""
    return log(max(n_items - 1, 1) / negatives)
