"""The self-test of per-example gradients: what Opacus gets wrong is refused, what is right passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy._norm_check import check_per_sample_norms, verify_model
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig

IDS = torch.tensor([[0, 1, 1], [2, 3, 0], [4, 4, 4], [5, 0, 2]])


class Head(nn.Module):
    """Scores by the table a second time, past the layer's hooks."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(n, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids % self.table.num_embeddings).mean(1)
        return cross_entropy(
            linear(hidden, self.table.weight), ids[:, 0] % self.table.num_embeddings, reduction="none"
        )


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids.reshape(-1), torch.arange(len(ids)) * ids.shape[1]).square().sum(1)


class Towers(nn.Module):
    """Two vectors per example: the mean of its items, and its first item."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, **options)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.table(ids)
        return vectors.mean(1), vectors[:, 0] * torch.arange(1.0, 5.0)


class Normed(Towers):
    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=affine, track_running_stats=affine)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        left, right = super().forward(ids)
        return self.norm(left), right


class Unused(Towers):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(2, 2)


class Counting(Towers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = self.seen + 1
        return super().forward(ids)


def plain(losses: Tensor) -> Tensor:
    return losses


def pairwise(out: tuple[Tensor, Tensor]) -> Tensor:
    return (out[0] - out[1]).square().sum(1)


def in_batch_softmax(out: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(out[0] @ out[1].T, torch.arange(len(out[0])), reduction="none")


def mean_of_batch(out: tuple[Tensor, Tensor]) -> Tensor:
    return pairwise(out) / len(out[0])


@pytest.mark.parametrize(
    ("build", "loss"),
    [
        (Head, plain),
        (Bag, plain),
        (Towers, in_batch_softmax),
        (Towers, mean_of_batch),
        (lambda: Towers(max_norm=0.1), pairwise),
        (lambda: Towers(max_norm=100.0), pairwise),
        (lambda: Normed(affine=True), pairwise),
        (lambda: Normed(affine=False), pairwise),
        (Unused, pairwise),
        (Counting, pairwise),
        (lambda: Towers().eval(), pairwise),
        (Towers, lambda out: 0.0 * pairwise(out)),
    ],
    ids=["functional head", "bag", "in-batch", "mean", "max_norm", "max_norm idle", "batch norm", "plain batch norm",
         "unused layer", "buffer", "eval mode", "no gradient"],
)  # fmt: skip
def test_gradients_that_opacus_gets_wrong_are_refused(
    build: Callable[[], nn.Module], loss: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    with pytest.raises(PrivacyRefused, match="per-example gradients cannot be bounded") as refusal:
        check_per_sample_norms(build(), loss, (IDS,))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("build", [Towers, Bag], ids=["towers", "bag without repeats"])
def test_right_gradients_are_accepted(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = build()
    ids = torch.tensor([[0, 1], [3, 2], [4, 5]])
    before = {name: p.clone() for name, p in module.named_parameters()}
    norms = check_per_sample_norms(module, pairwise if isinstance(module, Towers) else plain, (ids,))
    assert norms.shape == (3,) and bool((norms > 0).all())
    assert all(
        torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in module.named_parameters()
    )


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("n_items", [1, 2, 50])
def test_matrix_factorisation_passes_the_self_test(loss: str, n_items: int) -> None:
    verify_model(MatrixFactorisation(MfConfig(embedding_size=4, loss=loss)), n_items)
