"""Attacks: what someone who sees an update, a sum or a released model can tell about one user.

The attackers here are strong and honest about it: they know the model, the layout, the popularity of items, and for
membership the whole update the user would send. Each attack gives scores; `measured` turns them into an AUC with
a 95 % interval. An AUC of 0.5 is guessing and 1.0 is certainty; an attack that fails proves nothing, since a
better one may exist: what holds against all of them is the plan's epsilon.

Items that a user has are compared with items of about the same popularity that the user does not have
(`matched_controls`): otherwise knowing what everyone likes would look like a leak.

Letters: U users, I items, d embedding size, P values of the flat vector.
Out of scope: which vectors are attacked (`fedrec_simulations.audit.attacks`); canary audits (`fedrec.privacy.audit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.core.interactions import IntArray
from fedrec.core.updates import Layout

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Measured:
    """The outcome of an attack.

    Attributes:
        auc: chance that a true case scores above a false one, ties count half.
        low, high: 95 % interval, over the subjects that were attacked.
        positives, negatives: number of true and false cases.
        subjects: number of users whose cases were compared with each other.
    """

    auc: float
    low: float
    high: float
    positives: int
    negatives: int
    subjects: int


def auc(scores: Floats, labels: Bools) -> float:
    """Chance that a true case scores above a false one; ties count half (Mann and Whitney 1947).

    Raises:
        PrivacyRefused: a score is no number, or there are no true or no false cases.
    """
    above, _ = _placements(scores, labels)
    return float(above.mean())


def measured(scores: Floats, labels: Bools) -> Measured:
    """AUC over cases that are one user each, with the interval of DeLong, DeLong and Clarke-Pearson 1988.

    Where all true cases score above all false ones, or none does, the variance is estimated as zero; the interval is
    then that of a proportion (Wilson 1927) at the smaller number of cases.
    """
    above, below = _placements(scores, labels)
    value, m, n = float(above.mean()), len(above), len(below)
    spread = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    low, high = _interval(value, spread, min(m, n))
    return Measured(value, low, high, m, n, m + n)


def measured_by_user(cases: Sequence[tuple[Floats, Bools]]) -> Measured:
    """Mean over users of the AUC among each user's own cases; the interval is over users, not over items.

    Args:
        cases: (scores, labels) of each user; users without both kinds of cases are left out.

    Raises:
        PrivacyRefused: no user has both kinds.
    """
    usable = [(scores, labels) for scores, labels in cases if labels.any() and not labels.all()]
    if not usable:
        raise PrivacyRefused(
            "attack without a user with true and false cases: give users with longer histories"
        )
    values = np.array([auc(scores, labels) for scores, labels in usable])
    spread = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.25
    low, high = _interval(float(values.mean()), spread, len(values))
    positives = int(sum(labels.sum() for _, labels in usable))
    total = sum(len(labels) for _, labels in usable)
    return Measured(float(values.mean()), low, high, positives, total - positives, len(values))


def item_evidence(flat: Floats, layout: Layout, n_items: int) -> Floats:
    """[I] how much a vector (or a sum) of updates speaks for each item being in the history.

    It is read off the layout, not the model. Of a block over items: one number per item speaks for itself; of a
    symmetric matrix over items the diagonal, of a symmetric matrix per item the trace. Rows of an item table lie
    on one line, along the hidden user vector, positive items on one side and sampled negatives on the other (the
    gradient of item i is (σ(p·q_i) - y_i) p): each row's place on that line, its direction taken from
    the numbers per item.
    Evidence of several blocks is added in units of each block's own spread.

    Args:
        flat: [P] of the layout.
        layout: of the vector.
        n_items: I.
    """
    blocks = layout.unflatten(flat)
    evidence = [e for name, e in _direct(blocks, layout, n_items)]
    lines = [values for values in blocks.values() if values.ndim == 2 and _is_table(values, n_items)]
    sign_from = np.sum([_in_spreads(e) for e in evidence], axis=0) if evidence else None
    evidence += [_along_line(table, sign_from) for table in lines]
    if not evidence:
        return np.zeros(n_items)
    return np.asarray(np.sum([_in_spreads(e) for e in evidence], axis=0))


def matched_controls(
    items: IntArray, owned: IntArray, popularity: IntArray, rng: np.random.Generator, tolerance: float = 0.1
) -> tuple[IntArray, IntArray]:
    """For each item one that the user does not have, of about the same popularity, each used once.

    Args:
        items: true items to be matched.
        owned: all items of the user.
        popularity: [I] public popularity.
        rng: which of the suitable ones is taken.
        tolerance: largest relative difference in popularity; items without a match are left out.

    Returns:
        The items that were matched, and their controls.
    """
    free = np.ones(len(popularity), dtype=bool)
    free[owned] = False
    kept, controls = [], []
    for item in rng.permutation(items):
        allowed = np.maximum(1.0, tolerance * popularity[item])
        suitable = np.flatnonzero(free & (np.abs(popularity - popularity[item]) <= allowed))
        if len(suitable):
            control = rng.choice(suitable)
            free[control] = False
            kept.append(item)
            controls.append(control)
    return np.array(kept, dtype=np.int64), np.array(controls, dtype=np.int64)


def matched_filter(released: Floats, expected: Floats, candidate: Floats) -> float:
    """How much more of a user's own update a release holds than is to be expected: the best linear test.

    (released - expected) · candidate / |candidate|; against white noise no test of membership is better
    (Neyman and Pearson), and the users' own variation is what blurs it without noise.
    """
    norm = float(np.linalg.norm(candidate))
    return float((released - expected) @ candidate) / norm if norm else 0.0


def _placements(scores: Floats, labels: Bools) -> tuple[Floats, Floats]:
    """Share of false cases below each true case, and of true cases above each false one."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if np.isnan(scores).any() or labels.all() or not labels.any():
        raise PrivacyRefused(
            f"attack with {int(labels.sum())} true and {int((~labels).sum())} false cases, "
            f"{int(np.isnan(scores).sum())} without a score: expected some of both, all with a score"
        )
    true, false = scores[labels], scores[~labels]
    return _share_below(true, false), 1.0 - _share_below(false, true)


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(both / (2.0 * len(others)))


def _interval(value: float, variance: float, cases: int) -> tuple[float, float]:
    if variance > 0.0:
        half = _Z95 * math.sqrt(variance)
        return max(0.0, value - half), min(1.0, value + half)
    centre = (value + _Z95**2 / (2 * cases)) / (1 + _Z95**2 / cases)
    half = _Z95 * math.sqrt(value * (1 - value) / cases + (_Z95 / (2 * cases)) ** 2) / (1 + _Z95**2 / cases)
    return max(0.0, centre - half), min(1.0, centre + half)


def _direct(
    blocks: Mapping[str, NDArray[np.floating]], layout: Layout, n_items: int
) -> list[tuple[str, Floats]]:
    """Evidence of the blocks in which one number per item can be read off."""
    out: list[tuple[str, Floats]] = []
    for name, values in blocks.items():
        exact, symmetric = values.astype(np.float64), layout.blocks[name].symmetric
        if exact.shape == (n_items,):
            out.append((name, exact))
        elif symmetric and exact.shape == (n_items, n_items):
            out.append((name, np.diagonal(exact).copy()))
        elif symmetric and exact.ndim == 3 and len(exact) == n_items:
            out.append((name, np.trace(exact, axis1=1, axis2=2)))
    return out


def _is_table(values: NDArray[np.floating], n_items: int) -> bool:
    return len(values) == n_items and values.shape[1] != n_items


def _along_line(table: NDArray[np.floating], sign_from: Floats | None) -> Floats:
    """[I] each row's place on the line through the origin that fits the rows best."""
    rows = table.astype(np.float64)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    place = rows @ vectors[:, -1]
    # Which end is which: the other blocks know, else the rarer and larger deviations are the positives.
    towards = float(place @ sign_from) if sign_from is not None else float((place**3).sum())
    return np.asarray(-place if towards < 0 else place)


def _in_spreads(evidence: Floats) -> Floats:
    spread = float(evidence.std())
    return evidence / spread if spread > 0.0 else evidence
