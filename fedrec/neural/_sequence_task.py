"""Learning items from their place in a history: the work of a round, its loss over the catalogue or sampled items.

Kept apart from `sequence` so that torch is imported only where this is used.
Letters: K users, L positions, S rows, n negatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, bits, key, user_keys
from fedrec.core.recommender import RoundSeed, Scores
from fedrec.neural._full_cross_entropy import cross_entropy, read_rows
from fedrec.neural.batched import Params, Touched
from fedrec.neural.gather import gather_rows
from fedrec.neural.windows import Lesson, Windows, log_share


class _Settings(Protocol):
    @property
    def loss(self) -> str: ...
    @property
    def negatives(self) -> int: ...
    @property
    def max_length(self) -> int: ...


class SequenceModel(Protocol):
    """What the loss needs of a model of the next item; see `fedrec.neural.sequence.SequenceRecommender`."""

    @property
    def settings(self) -> _Settings:
        """Its configuration."""

    def lesson(self, window: Windows, batch: UserBatch, key_: RoundSeed, epoch: int) -> Lesson:
        """What a window teaches."""

    def draw_masks(self, batch: UserBatch, key_: RoundSeed, epoch: int, length: int) -> Scores | None:
        """Masks of dropout."""

    def hidden(
        self, params: Params, x: Tensor, review: Tensor | None, real: Tensor, masks: Tensor | None
    ) -> Tensor:
        """[K, L, d] hidden states."""


@dataclass(frozen=True)
class _Pass:
    """Tensors of one pass.

    Attributes:
        read: [K, L] rows that go in.
        target: [K, L] rows that come next.
        real: [K, L] 1 where an input event is.
        learned: [K, L] 1 where a target is learned.
        hidden: [K, L] True where the input event is not shown; None: all are.
        review: [K, L, R] what was written about the input events; None: it is not read.
        negative: [K, n] rows, or None for the whole catalogue.
        masks: of dropout.
    """

    read: Tensor
    target: Tensor
    real: Tensor
    learned: Tensor
    hidden: Tensor | None
    review: Tensor | None
    negative: Tensor | None
    masks: Tensor | None


@dataclass(frozen=True)
class ItemInPlace:
    """One step per pass: the loss over the window's positions."""

    model: SequenceModel
    passes: list[_Pass]
    examples: NDArray[np.float64]
    sampled_share: float

    @property
    def steps(self) -> int:
        """Passes of a round."""
        return len(self.passes)

    @classmethod
    def prepare(
        cls,
        model: SequenceModel,
        windows: list[Windows],
        batch: UserBatch,
        key_: RoundSeed,
        n_items: int,
    ) -> tuple[ItemInPlace, Touched | None]:
        """The work of a batch, and the rows it touches (None: all of them)."""
        c = model.settings
        drawn = None
        if c.loss == "sampled":
            keys = user_keys(key(key_.seed, Purpose.NEGATIVE, key_.round), batch.user)
            drawn = (bits(keys, c.negatives * len(windows)) % np.uint64(n_items)).astype(np.int64)
        touched, places = (None, None) if drawn is None else _touched(windows, drawn, n_items)
        passes = []
        for epoch, window in enumerate(windows):
            item = window.item if places is None else places[:, _columns(windows, epoch)]
            negative = None
            if places is not None:
                start = sum(w.length for w in windows) + epoch * c.negatives
                negative = torch.from_numpy(places[:, start : start + c.negatives])
            lesson = model.lesson(replace(window, item=item), batch, key_, epoch)
            masks = model.draw_masks(batch, key_, epoch, lesson.read.shape[1])
            passes.append(
                _Pass(
                    torch.from_numpy(lesson.read.copy()),
                    torch.from_numpy(lesson.target.copy()),
                    torch.from_numpy(lesson.real.astype(np.float32)),
                    torch.from_numpy(lesson.learned.astype(np.float32)),
                    None if lesson.hidden is None else torch.from_numpy(lesson.hidden),
                    None if lesson.review is None else torch.from_numpy(lesson.review),
                    negative,
                    None if masks is None else torch.from_numpy(masks),
                )
            )
        examples = np.array([p.learned.sum(1).double().numpy() for p in passes]).sum(axis=0)
        return cls(model, passes, examples, log_share(n_items, c.negatives)), touched

    def active(self, step: int) -> Tensor | None:
        """Everyone takes every step; who has nothing to learn has no gradient."""
        return None

    def half(self, *, newer: bool) -> ItemInPlace:
        """The same windows, of which the newer or the older half of the targets is learned."""
        passes = [replace(p, learned=_half(p.learned, newer=newer)) for p in self.passes]
        examples = np.array([p.learned.sum(1).double().numpy() for p in passes]).sum(axis=0)
        return replace(self, passes=passes, examples=examples)

    def loss(self, params: Params, step: int) -> Tensor:
        """[K] summed over the positions, in units of a full window."""
        p = self.passes[step]
        return self._full(params, p) if p.negative is None else self._sampled(params, p)

    def _hidden(self, params: Params, x: Tensor, p: _Pass) -> Tensor:
        """[K, L, d] states, of the item vectors that go in."""
        if p.hidden is not None:
            x = torch.where(p.hidden.unsqueeze(-1), params["hidden_item"].unsqueeze(1), x)
        return self.model.hidden(params, x, p.review, p.real, p.masks)

    def _full(self, params: Params, p: _Pass) -> Tensor:
        """[K] cross-entropy over all items."""
        x, table = read_rows(params["item_table"], p.read)
        weight = p.learned / self.model.settings.max_length
        return cross_entropy(self._hidden(params, x, p), table, params["item_bias"], p.target, weight)

    def _sampled(self, params: Params, p: _Pass) -> Tensor:
        """[K] cross-entropy over the target and the negatives, each of which stands for I / n items."""
        assert p.negative is not None
        table, bias = params["item_table"], params["item_bias"]
        h = self._hidden(params, gather_rows(table, p.read), p)
        positive = (h * gather_rows(table, p.target)).sum(-1) + gather_rows(bias, p.target)
        others = torch.baddbmm(
            gather_rows(bias, p.negative).unsqueeze(1), h, gather_rows(table, p.negative).transpose(1, 2)
        )
        same = p.negative.unsqueeze(1) == p.target.unsqueeze(2)
        others = (others + self.sampled_share).masked_fill(same, -torch.inf)
        each = torch.logsumexp(torch.cat([positive.unsqueeze(-1), others], -1), -1) - positive
        return (each * p.learned).sum(1) / self.model.settings.max_length


def _half(learned: Tensor, *, newer: bool) -> Tensor:
    """[K, L] the newer or the older half of the learned positions; of an odd number the newer half is larger."""
    count = learned.sum(1, keepdim=True)
    recent = count - learned.cumsum(1) < torch.ceil(count / 2)
    return learned * (recent == newer)


def _columns(windows: list[Windows], epoch: int) -> slice:
    start = sum(w.length for w in windows[:epoch])
    return slice(start, start + windows[epoch].length)


def _touched(
    windows: list[Windows], drawn: NDArray[np.int64], n_items: int
) -> tuple[Touched, NDArray[np.int64]]:
    """Rows of each user, and every window's items and then the negatives as places among them [K, ...]."""
    everything = np.concatenate([*(w.item for w in windows), drawn], axis=1)
    n_users = len(everything)
    flat = everything + np.arange(n_users)[:, None] * n_items
    row, where = np.unique(flat, return_inverse=True)
    ptr = np.searchsorted(row, np.arange(n_users + 1) * n_items)
    owner = row // n_items
    places = where.reshape(everything.shape) - ptr[:-1][:, None]
    return Touched(ptr.astype(np.int64), row - owner * n_items), places
