"""Single parts of the mechanism under attack: its noise, a round of one user or no one, and the bound on one user.

They find what a direction in a whole run does not see: noise that is the same twice, a release without noise where
there is nothing to hide, a bound that only some users break.

Letters: P values of the flat vector, C clip norm, z noise multiplier.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import Layout, UpdateSum
from fedrec.privacy.audit._bounds import Scores
from fedrec.privacy.audit._canaries import spread, stacked
from fedrec.privacy.audit._evaluation import ALPHA, evaluated
from fedrec.privacy.audit._pipeline import Learner, Pipeline
from fedrec.privacy.audit._runs import BUDGET, COMPARED, TOO_LONG, Watch
from fedrec.privacy.audit._theory import Theory, correlation_lower, noise_upper
from fedrec.privacy.audit.report import GameResult
from fedrec.privacy.plan import PrivacyPlan

Floats = NDArray[np.float64]

#: Room for rounding in a norm that is at the bound.
_NORM_SLACK = 1.0 + 1e-9


def noise(plan: PrivacyPlan, watch: Watch) -> GameResult:
    """Is the noise as large as planned, and new each time?"""
    alpha = ALPHA / (COMPARED + 1) ** 2
    rounds = sorted({round_ for round_, _ in watch.noise})
    theory = Theory.of(plan, max(rounds))
    scales = dict.fromkeys(range(1, max(rounds) + 1), math.inf)
    measured = math.inf
    for round_, left in watch.noise:
        planned = plan.noise_multipliers[round_ - 1] * plan.clip_norm
        squares = float(left @ left)
        scales[round_] = min(scales[round_], noise_upper(squares, len(left), alpha) / planned)
        measured = min(measured, math.sqrt(squares / len(left)) / planned)
    alike = 0.0
    for k, (first, a) in enumerate(watch.noise):
        for second, b in watch.noise[:k]:
            size = min(len(a), len(b))
            same = correlation_lower(a[:size], b[:size], alpha)
            alike = max(alike, same)
            for round_ in {first, second}:
                # A difference of the two has this much of their noise.
                scales[round_] = min(scales[round_], scales[round_] * math.sqrt(1.0 - same))
    found = [scales[round_] for round_ in range(1, max(rounds) + 1)]
    # Where a user is not in every round, the weakest of them may be the user's.
    lower = theory.epsilon_at(found if len(theory.multipliers) == len(found) else min(found))
    note = f"the smallest noise is {measured:.3f} of the planned" + (
        f", two releases correlate by {alike:.2f}" if alike else ""
    )
    view = f"what is left of {len(watch.noise)} outputs"
    values = sum(len(left) for _, left in watch.noise)
    return GameResult("noise", view, theory.epsilon, {"noise": lower}, values, note=note)


def lone_user(pipe: Pipeline, learner: Learner, rng: np.random.Generator) -> GameResult:
    """One canary among no one (or among users who contribute nothing): released or not, with it or without."""
    layout, plan = learner.layout(1), pipe.plan
    trials = int(np.clip(BUDGET // 2 // layout.size, 60, 400))
    line = spread(layout, rng, 1.0)
    line /= np.linalg.norm(line)
    quiet, std = pipe.least_users, pipe.planned_std(1)
    inside: list[float] = []
    outside: list[float] = []
    squares = values = 0.0
    refused = [0, 0]
    for trial in range(trials):
        here = bool(rng.random() < 0.5)
        total = UpdateSum(layout.zeros())
        if here:
            pipe.clip(total, stacked(layout, TOO_LONG * plan.clip_norm * line[None], np.ones(1)))
        total.users = max(total.users, quiet)
        flat = pipe.released(total, layout, 1, run=3 + trial)
        if flat is None:
            refused[here] += 1
            continue
        (inside if here else outside).append(float(line @ flat) / std)
        if not here:
            squares, values = squares + float(flat @ flat), values + len(flat)
    theory = Theory.lone(plan)
    view = "a round of one or no one" if quiet == 0 else "a cohort of zeros"
    if refused[0] and refused[1] and not inside and not outside:
        return GameResult("lone user", view, theory.epsilon, {}, trials, note="nothing is ever released")
    if not outside or not inside:
        note = "whether something is released depends on one user"
        return GameResult("lone user", view, theory.epsilon, {"release": math.inf}, trials, note=note)
    scores = Scores(np.array(inside), np.array(outside))
    found = evaluated("lone user", view, theory, scores, scores.perfect(), independent=True)
    scale = noise_upper(squares, int(values), ALPHA) / std
    lower = {**found.lower, "noise of no one": theory.epsilon_at(scale)}
    return GameResult(
        found.game, view, theory.epsilon, lower, trials, found.reach, found.estimate, found.interval
    )


def bound(pipe: Pipeline, learner: Learner, rng: np.random.Generator) -> GameResult:
    """How far the sum of four users moves when the first is zeroed out, at most over several ways to be the first."""
    plan, worst, which = pipe.plan, 0.0, ""
    for round_ in range(1, min(plan.rounds, 2) + 1):
        layout = learner.layout(round_)
        for name, vector, examples in _cases(layout, plan.clip_norm, rng):
            moved = _moved(pipe, layout, vector, examples, rng) / plan.clip_norm
            if moved > worst:
                worst, which = moved, name
    theory = Theory.of(plan, plan.rounds)
    # Rounding within the bound is no finding.
    scale = 1.0 if 1.0 < worst <= _NORM_SLACK else 1.0 / worst if worst > 0 else math.inf
    lower = theory.epsilon_at(scale)
    note = f"one user moves the sum by up to {worst:.4g} C ({which})"
    return GameResult("bound", "the sum without noise", theory.epsilon, {"bound": lower}, 4, note=note)


def _cases(layout: Layout, clip: float, rng: np.random.Generator) -> list[tuple[str, Floats, float]]:
    blocks = len(layout.blocks)
    each = spread(layout, rng, clip)
    return [
        ("100 times too long", 100.0 * each / math.sqrt(blocks), 1.0),
        ("as long as C in every block", each, 1.0),
        ("10000 examples", each / math.sqrt(blocks), 10_000.0),
        ("not finite", np.where(np.arange(layout.size) == 0, np.nan, each), 1.0),
    ]


def _moved(
    pipe: Pipeline, layout: Layout, vector: Floats, examples: float, rng: np.random.Generator
) -> float:
    others = np.stack([spread(layout, rng, 0.1 * pipe.plan.clip_norm) for _ in range(3)])
    ends = []
    for first, count in ((vector, examples), (np.zeros_like(vector), 0.0)):
        total = UpdateSum(layout.zeros())
        pipe.clip(total, stacked(layout, np.vstack([first, others]), np.array([count, 1.0, 1.0, 1.0])))
        ends.append(layout.flatten(total.blocks))
    distance = float(np.linalg.norm(ends[0] - ends[1]))
    return distance if math.isfinite(distance) else math.inf
