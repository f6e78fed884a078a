"""What models of the next item have in common: windows of local histories, losses over the catalogue, tied scores.

The hidden state h_t after the first t items of a window scores every item as h_t · q_i + b_i with the table that the
items are read from. Losses: cross-entropy over the whole catalogue (to which Klenitskiy and Vasilev 2023, RecSys,
trace most of what later models gained), or over the target and n sampled items, whose share of the catalogue is
corrected for (Jean et al. 2015, ACL). A user with more events than fit gives another window in every round.

Where users write about what they had, vectors of their words can be read beside the items; they stay with them.

Letters: K users, L positions (right-aligned: the latest is the last), d embedding size, n negatives, R width of a
review.
Final classes give `encoder_parameters` and `encode`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.randomness import Purpose, bits, key, user_keys
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores
from fedrec.core.updates import State
from fedrec.neural.dropout import dropout_masks
from fedrec.neural.head import with_head
from fedrec.neural.recommender import NeuralConfig, NeuralRecommender, Parameter
from fedrec.neural.windows import Lesson, Windows, windows_of

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work


class SequenceConfig(NeuralConfig):
    """Keys of every model of the next item.

    Attributes:
        embedding_size: d.
        max_length: L, the most events of a window.
        windows: which part of a longer history is learned from: another "random" one each round, or the "latest".
        dropout: rate, of embeddings and of what layers add.
        init_scale: standard deviation of the initial item vectors' entries.
        loss: "full" cross-entropy over the catalogue, or "sampled" over the target and `negatives` items.
        negatives: n, common to the positions of a window (sampled).
        reviews: R, width of the vectors of what users wrote (`data.reviews`), a small map of which is added to the
            vectors of the events; 0: nothing is read of it.
    """

    embedding_size: int = Field(default=64, ge=1)
    max_length: int = Field(default=50, ge=2)
    windows: Literal["random", "latest"] = "random"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    init_scale: float = Field(default=0.02, gt=0)
    loss: Literal["full", "sampled"] = "full"
    negatives: int = Field(default=256, ge=1)
    reviews: int = Field(default=0, ge=0)


class AttentionConfig(SequenceConfig):
    """Keys of every model of the next item that attends.

    Attributes:
        heads: H, parts of d that attend on their own.
    """

    heads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.embedding_size % self.heads:
            raise ValueError(
                f"embedding_size {self.embedding_size} and heads {self.heads}: expected a multiple of the heads"
            )
        return self


class SequenceRecommender(NeuralRecommender):
    """Base of the models of the next item."""

    sorts_by_length: ClassVar[bool] = True
    #: M, masks of dropout that `encode` takes.
    dropout_masks: int = 1

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self._sequence = config
        #: Entries that masks of dropout have for each position.
        self.mask_width = config.embedding_size

    @property
    def needs(self) -> DataNeeds:
        """Reviews, where it is configured for them."""
        return DataNeeds(reviews=self._sequence.reviews)

    @property
    def settings(self) -> SequenceConfig:
        """The common part of the configuration."""
        return self._sequence

    @abstractmethod
    def encoder_parameters(self) -> dict[str, Parameter]:
        """Of `encode`."""

    @abstractmethod
    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:
        """[K, L, d] hidden states.

        Args:
            params: [K, ...].
            x: [K, L, d] item vectors, right-aligned.
            real: [K, L] 1 where there is an event.
            masks: [M, K, L, d] of dropout; None: none (serving).
        """

    def hidden(
        self, params: Params, x: Tensor, review: Tensor | None, real: Tensor, masks: Tensor | None
    ) -> Tensor:
        """`encode`, before it what was written [K, L, R] about the events, behind it a personal head, if any."""
        import torch

        if review is not None:
            x = x + torch.bmm(review, params["review"])
        return with_head(params, self.encode(params, x, real, masks))

    def item_parameters(self) -> dict[str, Parameter]:
        """What the items' rows are, or are made of."""
        c = self._sequence
        return {
            "item_table": Parameter((c.embedding_size,), c.init_scale, where="table"),
            "item_bias": Parameter((), where="table"),
        }

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self._sequence
        # A review counts nothing at first.
        review = {"review": Parameter((c.reviews, c.embedding_size))} if c.reviews else {}
        return self.item_parameters() | review | self.encoder_parameters()

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        from fedrec.neural._sequence_task import ItemInPlace

        passes = [self._pass(batch, key, epoch) for epoch in range(self._sequence.local_epochs)]
        return ItemInPlace.prepare(self, passes, batch, key, n_items)

    def lesson(self, window: Windows, batch: UserBatch, key_: RoundSeed, epoch: int) -> Lesson:
        """What a window teaches: here, behind every event the next one."""
        item, real = window.item, window.real
        review = None if window.review is None else window.review[:, :-1]
        return Lesson(item[:, :-1], item[:, 1:], real[:, :-1], real[:, :-1] & real[:, 1:], review=review)

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        import torch

        from fedrec.neural.gather import gather_rows

        windows = self.windows(batch, self._sequence.max_length)
        x = gather_rows(params["item_table"], torch.from_numpy(windows.item))
        review = None if windows.review is None else torch.from_numpy(windows.review)
        real = torch.from_numpy(windows.real.astype(np.float32))
        last = self.hidden(params, x, review, real, None)[:, -1] * real[:, -1:]
        return torch.baddbmm(
            params["item_bias"].unsqueeze(1), last.unsqueeze(1), params["item_table"].transpose(1, 2)
        ).squeeze(1)

    def draw_masks(self, batch: UserBatch, key_: RoundSeed, epoch: int, length: int) -> Scores | None:
        """[M, K, L, mask_width] of dropout for one pass; None: no dropout."""
        c = self._sequence
        if not c.dropout:
            return None
        keys = user_keys(key(key_.seed, Purpose.DROPOUT, key_.round), batch.user)
        keys = bits(keys, epoch + 1)[:, epoch]
        return dropout_masks(keys, self.dropout_masks, length, self.mask_width, c.dropout)

    def windows(
        self, batch: UserBatch, length: int, starts: IntArray | None = None, least: int = 1
    ) -> Windows:
        """`windows_of` with what this model reads.

        Raises:
            ConfigError: reviews of another width than the model was made for.
        """
        wanted = self._sequence.reviews
        if not wanted:
            batch = replace(batch, review=None)
        elif batch.review is not None and batch.review.shape[1] != wanted:
            raise ConfigError(
                f"model.reviews = {wanted} and the encoder in data.reviews makes vectors of "
                f"{batch.review.shape[1]}: set model.reviews to their width"
            )
        return windows_of(batch, length, starts, least)

    def _pass(self, batch: UserBatch, key_: RoundSeed, epoch: int) -> Windows:
        """Windows of one pass: L + 1 events, the inputs and behind each its target."""
        size = self._sequence.max_length + 1
        if self._sequence.windows == "latest":
            return self.windows(batch, size, least=2)
        draws = bits(user_keys(key(key_.seed, Purpose.WINDOW, key_.round), batch.user), epoch + 1)[:, epoch]
        room = np.maximum(batch.counts - size, 0) + 1
        return self.windows(batch, size, (draws % room.astype(np.uint64)).astype(np.int64), least=2)
