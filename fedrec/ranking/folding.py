"""How a user vector comes from a history and an item table, in closed form and without a training round.

Ridge: the least squares of iALS, p = (α G + Σ_j w_j q_j q_jᵀ + λ_u I)⁻¹ Σ_j w_j q_j (Hu, Koren and Volinsky 2008,
equation 4). Newton: a few Newton steps on the loss that matrix factorisation trains, in which the sampled negatives
are replaced by their expectation over the whole catalogue, taken at p = 0 once and for all when the model is loaded.

In both, p = A⁻¹ (c_0 + Σ_j c_j z_j) with a matrix A and coefficients c that are known at the end: that is what makes
a score a sum of one part per entry of the history. Out of scope: scores (`factors`).

Letters: I items, L entries of a history, d embedding size, n negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.model import History
from fedrec.ranking.tables import Table

Floats = NDArray[np.float64]
NEWTON_STEPS = 3


@dataclass(frozen=True)
class Folded:
    """A user vector and where it comes from: left @ vector = offset + Σ_j coefficient_j parts_j.

    Attributes:
        vector: [d] p.
        left: [d, d] A.
        offset: [d] the part that no entry of the history explains.
        parts: [L, d] z.
        coefficients: [L] c.
    """

    vector: Floats
    left: Floats
    offset: Floats
    parts: Floats
    coefficients: Floats

    def shares(self, row: NDArray[np.floating]) -> tuple[float, Floats]:
        """What offset and each entry add to `row` · p; [d] -> scalar and [L]."""
        seen = np.linalg.solve(self.left, row.astype(np.float64))
        return float(seen @ self.offset), self.coefficients * (self.parts @ seen)


def recency(count: int, half_life: float | None) -> Floats:
    """[L] 2^(-newer entries / half_life), all ones without a half-life."""
    if half_life is None:
        return np.ones(count)
    return np.asarray(np.exp2(-np.arange(count - 1, -1, -1) / half_life))


@dataclass(frozen=True)
class Ridge:
    """Weighted least squares against all items.

    Attributes:
        unobserved_weight: α.
        reg: λ.
        reg_exponent: ν; λ_u = λ (n_u + α I)^ν.
        half_life: recency of the weights w, in entries; None: w = the interaction weights.
        weighted_count: n_u is the sum of the weights w; False: of the interaction weights.
    """

    kind: ClassVar[str] = "ridge"

    unobserved_weight: float
    reg: float
    reg_exponent: float = 1.0
    half_life: float | None = None
    weighted_count: bool = False

    def prepare(self, table: Table, bias: NDArray[np.float32] | None) -> Floats:
        """α G [d, d]: what does not depend on a user."""
        return self.unobserved_weight * table.gramian()

    def fold(
        self, prepared: Any, rows: NDArray[np.float32], history: History, bias: Any, n_items: int
    ) -> Folded:
        """The vector of a history whose item rows are `rows` [L, d]."""
        parts = rows.astype(np.float64)
        weight = recency(len(history), self.half_life) * history.weight
        left = prepared + parts.T @ (parts * weight[:, None])
        count = float((weight if self.weighted_count else history.weight).sum())
        ridge = self.reg * (count + self.unobserved_weight * n_items) ** self.reg_exponent
        left[np.diag_indices_from(left)] += max(ridge, 1e-9)
        vector = np.linalg.solve(left, parts.T @ weight)
        return Folded(vector, left, np.zeros(len(left)), parts, weight)


@dataclass(frozen=True)
class Newton:
    """Newton steps on the loss of matrix factorisation.

    Attributes:
        loss: "bce" or "bpr".
        negatives: n.
        reg: weight of |p|² / 2 per entry of the history.
        pull: weight of |p|² / 2 for everyone. Gradient descent that stops after T steps of size η does what a
            penalty of about 1 / (η T) does (Bishop 2006, "Pattern recognition and machine learning", section 5.5.2).
    """

    kind: ClassVar[str] = "newton"

    loss: Literal["bce", "bpr"]
    negatives: int
    reg: float
    pull: float = 0.0

    def prepare(self, table: Table, bias: NDArray[np.float32] | None) -> Background:
        """Curvature, slope and mean of the catalogue at p = 0."""
        n_items, _ = table.shape
        level: Floats = np.zeros(n_items) if bias is None else np.asarray(bias, dtype=np.float64)
        everyone = np.full(n_items, 1.0 / n_items)
        if self.loss == "bpr":
            mean = _mean(table, everyone)
            spread = table.gramian(everyone) - np.outer(mean, mean)
            return Background(spread, np.zeros(len(mean)), mean, float(level.mean()))
        chance = _sigmoid(level)
        slope = _mean(table, chance / n_items)
        curvature = table.gramian(chance * (1.0 - chance) / n_items)
        return Background(curvature, slope, np.zeros(len(slope)), 0.0)

    def fold(
        self, prepared: Background, rows: NDArray[np.float32], history: History, bias: Any, n_items: int
    ) -> Folded:
        """See `Ridge.fold`; bias [L] of the items of the history."""
        parts = rows.astype(np.float64) - prepared.mean
        level = (0.0 if bias is None else np.asarray(bias, dtype=np.float64)) - prepared.level
        weight = history.weight.astype(np.float64)
        copies = float(self.negatives) if self.loss == "bpr" else 1.0
        total = float(weight.sum())
        vector: Floats = np.zeros(parts.shape[1])
        ridge = (self.reg * total + self.pull) * np.eye(len(vector))
        for _ in range(NEWTON_STEPS):
            logits = parts @ vector
            chance = _sigmoid(logits + level)
            curvature = copies * weight * chance * (1.0 - chance)
            coefficients = copies * weight * (1.0 - chance) + curvature * logits
            beyond = curvature.sum() if self.loss == "bpr" else self.negatives * total
            left = parts.T @ (parts * curvature[:, None]) + beyond * prepared.curvature + ridge
            left[np.diag_indices_from(left)] += 1e-9
            offset = -self.negatives * total * prepared.slope
            vector = np.asarray(np.linalg.solve(left, parts.T @ coefficients + offset), dtype=np.float64)
        return Folded(vector, left, offset, parts, coefficients)


@dataclass(frozen=True)
class Background:
    """What the catalogue as a whole does to a user vector.

    Attributes:
        curvature: [d, d] mean second derivative of the loss of one negative at p = 0.
        slope: [d] mean first derivative.
        mean: [d] what is taken off each item vector (BPR looks at differences).
        level: the same of the bias.
    """

    curvature: Floats
    slope: Floats
    mean: Floats
    level: float


Folding = Ridge | Newton


def read_folding(plain: dict[str, Any]) -> Folding:
    """The folding of a header; raises KeyError or TypeError where there is none."""
    kinds: dict[str, type[Ridge] | type[Newton]] = {"ridge": Ridge, "newton": Newton}
    return kinds[plain["kind"]](**{name: value for name, value in plain.items() if name != "kind"})


def _mean(table: Table, weight: Floats) -> Floats:
    """[d] Σ_i w_i q_i."""
    n_items, d = table.shape
    total, height = np.zeros(d), 1 << 14
    for start in range(0, n_items, height):
        part = np.arange(start, min(start + height, n_items))
        total += weight[part] @ table.rows(part).astype(np.float64)
    return total


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
