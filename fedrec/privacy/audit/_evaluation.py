"""Scores of canaries against a claim: every method that applies, at its part of the false alarms of a whole audit.

Out of scope: the methods themselves (`bounds`), and the claim (`theory`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedrec.privacy.accounting import gaussian_epsilon
from fedrec.privacy.audit import _bounds as bounds
from fedrec.privacy.audit._bounds import Scores
from fedrec.privacy.audit._theory import Theory
from fedrec.privacy.audit.report import FALSE_ALARM, GameResult

#: Tests of an audit that can each raise a false alarm; every one gets its part of it.
TESTS = 16
ALPHA = FALSE_ALARM / TESTS


def evaluated(
    game: str, view: str, theory: Theory, scores: Scores, clean: Scores, *, independent: bool
) -> GameResult:
    """Scores against a claim, by every method that applies; `clean`: the scores, had there been no noise.

    A game whose canaries disturb each other is an extra: if it can show nothing, the audit may still be conclusive.
    """
    counts = independent
    if min(len(scores.included), len(scores.excluded)) < 8:
        return GameResult(
            game, view, theory.epsilon, {}, scores.count, reach=0.0, note="too few", counts=counts
        )
    lower = {name: method(scores) for name, method in _methods(theory, independent).items()}
    reach = max(method(clean) for method in _methods(theory, independent).values())
    most, low, high = (
        theory.epsilon_at(s) for s in theory.scales_of_effect(bounds.effect(scores, 2 * ALPHA))
    )
    if independent:
        # Distances have no largest value: no noise at all would show, however few canaries there are.
        lower["one-shot"], reach = low, math.inf
    return GameResult(
        game, view, theory.epsilon, lower, scores.count, reach, most, (low, high), counts=counts
    )


def _methods(theory: Theory, independent: bool) -> dict[str, Callable[[Scores], float]]:
    methods: dict[str, Callable[[Scores], float]] = {
        "one-run": lambda scores: bounds.one_run_epsilon(scores, theory.delta, ALPHA)
    }
    if theory.sampling_rate == 1.0:
        methods["one-run f-DP"] = lambda scores: gaussian_epsilon(
            bounds.one_run_mu(scores, ALPHA), theory.delta
        )
    if independent:
        methods["Clopper-Pearson"] = lambda scores: bounds.rates(scores, ALPHA).epsilon(theory.delta)
        methods["trade-off"] = lambda scores: theory.epsilon_at(
            theory.scale_of_rates(bounds.rates(scores, ALPHA))
        )
    return methods
