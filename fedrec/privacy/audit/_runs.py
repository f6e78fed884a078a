"""Whole runs under attack: canaries of random directions, and planted users with rare items.

The attacker knows everything but who of the canaries is in, the real users' clean sums included. A run is also
repeated without any noise, to say what could have been seen at all.

Letters: M canaries, P values of the flat vector, C clip norm, z noise multiplier.
Out of scope: single parts of the mechanism (`parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import UpdateSum
from fedrec.privacy.audit._bounds import Scores
from fedrec.privacy.audit._canaries import Directions
from fedrec.privacy.audit._evaluation import evaluated
from fedrec.privacy.audit._pipeline import Learner, Pipeline
from fedrec.privacy.audit._theory import Theory
from fedrec.privacy.audit.report import GameResult
from fedrec.privacy.mechanism import Mechanism
from fedrec.privacy.plan import PrivacyPlan

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Canaries are this much longer than C before they are clipped.
TOO_LONG = 10.0
#: Values of noise that are drawn where every canary needs its own.
BUDGET = 40_000_000
#: Releases of a run whose noise is kept, to be compared.
COMPARED = 4


@dataclass
class Watch:
    """What is kept of a run under attack: scores, and the noise of its first releases.

    Attributes:
        mechanism: whose outputs are seen.
        along: for each round, [M] the output along each canary, over the standard deviation of the planned noise.
        quiet: the same without noise.
        lengths: [M] how long what each canary adds is, over the same; 0 in rounds in which it cannot be.
        noise: of the first releases.
    """

    mechanism: Mechanism
    along: list[Floats] = field(default_factory=list)
    quiet: list[Floats] = field(default_factory=list)
    lengths: list[Floats] = field(default_factory=list)
    noise: list[tuple[int, Floats]] = field(default_factory=list)

    def see(self, along: Floats, clean: Floats, lengths: Floats, std: float) -> None:
        """One output.

        Args:
            along: [M] products of the output with the direction of what each canary would add.
            clean: [M] the same without noise.
            lengths: [M] norms of what each canary would add.
            std: of the planned noise.
        """
        self.along.append(along / std)
        self.quiet.append(clean / std)
        self.lengths.append(lengths / std)

    @property
    def scores(self) -> Floats:
        """[M] the matched filter over all rounds, of standard deviation 1 for those who are not in."""
        return self._filtered(self.along)

    @property
    def clean(self) -> Floats:
        """[M] the same scores, had there been no noise at all."""
        return self._filtered(self.quiet)

    def _filtered(self, seen: list[Floats]) -> Floats:
        lengths = np.array(self.mechanism.independent(self.lengths))
        products = np.array(self.mechanism.independent(seen)) * lengths
        return np.asarray(products.sum(axis=0) / np.sqrt(np.maximum(np.square(lengths).sum(axis=0), 1e-300)))

    def independent_noise(self) -> None:
        """Make the noise that is kept independent between rounds, as an attacker would."""
        if self.mechanism.correlates_rounds:
            rounds, noise = zip(*self.noise, strict=True)
            self.noise = list(zip(rounds, self.mechanism.independent(noise), strict=True))


def directions(
    pipe: Pipeline, learner: Learner, canaries: int, rng: np.random.Generator
) -> tuple[list[GameResult], Watch]:
    """The games on every round's release and on the final model, and on the noise of that run."""
    size = min(learner.layout(r).size for r in range(1, pipe.plan.rounds + 1))
    local = pipe.mechanism.view == "every message"
    count = min(canaries, size, max(20, 4 * BUDGET // (size * pipe.plan.rounds)) if local else canaries)
    rounds = _rounds(pipe.plan, size * (count if local else 1))
    included = rng.random(count) < 0.5
    watch = Watch(pipe.mechanism)
    learner.restart()
    one_round = local_round if local else central_round
    known: dict[int, Directions] = {}
    joins: list[Bools] = []
    for round_ in range(1, rounds + 1):
        layout = learner.layout(round_)
        if layout.size not in known:
            known[layout.size] = Directions(layout, count, rng)
        turn = in_turn(pipe.plan, count, round_)
        joins.append(coins(pipe.plan, included & turn, rng))
        flat = one_round(pipe, learner, known[layout.size], joins[-1], turn, round_, watch)
        learner.apply(pipe.applied(flat, layout, round_))
    theory = Theory.of(pipe.plan, rounds)
    view = pipe.mechanism.view
    scores, clean = Scores.split(watch.scores, included), Scores.split(watch.clean, included)
    out = [evaluated("directions", view, theory, scores, clean, independent=True)]
    seen = _change_along(learner, known, rounds)
    if seen is not None:
        _train_clean(pipe, learner, known, joins)
        quiet = _change_along(learner, known, rounds)
        clean = Scores.split(np.zeros(count) if quiet is None else quiet, included)
        scores = Scores.split(seen, included)
        out.append(evaluated("directions", "final model", theory, scores, clean, independent=False))
    watch.independent_noise()
    if not local:
        watch.noise.append(_once_more(pipe, learner))
    return out, watch


def central_round(
    pipe: Pipeline, learner: Learner, lines: Directions, joins: Bools, turn: Bools, round_: int, watch: Watch
) -> Floats:
    """One release with the canaries who join; [P] what becomes public."""
    layout = lines.layout
    clean = learner.clean_sum(round_)
    total = UpdateSum(layout.zeros())
    total.merge(clean)
    pipe.clip(total, lines.updates(np.flatnonzero(joins), TOO_LONG * pipe.plan.clip_norm))
    flat = pipe.release(total, layout, round_)
    std, lengths = pipe.planned_std(round_), np.where(turn, pipe.plan.clip_norm, 0.0)
    rest = flat - layout.flatten(clean.blocks)
    added = layout.flatten(total.blocks) - layout.flatten(clean.blocks)
    watch.see(lines.scores(rest), lines.scores(added), lengths, std)
    if len(watch.noise) < COMPARED:
        watch.noise.append((round_, flat - layout.flatten(total.blocks)))
    return flat


def local_round(
    pipe: Pipeline, learner: Learner, lines: Directions, joins: Bools, turn: Bools, round_: int, watch: Watch
) -> Floats:
    """One message of each canary's own device, and of the others' together; [P] their sum."""
    layout, clean = lines.layout, learner.clean_sum(round_)
    flat = pipe.release(clean, layout, round_)
    products, quiet = np.zeros(lines.count), np.zeros(lines.count)
    for k in range(lines.count):
        total = UpdateSum(layout.zeros())
        if joins[k]:
            pipe.clip(total, lines.updates(np.array([k]), TOO_LONG * pipe.plan.clip_norm))
        total.users = 1
        message = pipe.message(total, layout, round_, k)
        products[k] = lines.scores(message)[k]
        quiet[k] = lines.scores(layout.flatten(total.blocks).astype(np.float64))[k]
        flat = flat + message
        if k < 2 and len(watch.noise) < COMPARED:
            watch.noise.append((round_, message - layout.flatten(total.blocks)))
    watch.see(products, quiet, np.where(turn, pipe.plan.clip_norm, 0.0), pipe.planned_std(round_))
    return flat


def _once_more(pipe: Pipeline, learner: Learner) -> tuple[int, Floats]:
    """The noise of round 1 in a second run."""
    learner.restart()
    layout, clean = learner.layout(1), learner.clean_sum(1)
    left = pipe.release(clean, layout, 1, run=2) - layout.flatten(clean.blocks)
    return 1, pipe.mechanism.independent([left])[0]


def _change_along(learner: Learner, known: Mapping[int, Directions], rounds: int) -> Floats | None:
    """[M] how far the model moved along each canary, or None if it holds nothing of the shape of an update."""
    change = learner.change()
    lines = known[learner.layout(rounds).size]
    found, blocks = False, lines.layout.zeros()
    for name, spec in lines.layout.blocks.items():
        like = [change[name]] if name in change else list(change.values())
        fitting = [values for values in like if values.shape == spec.shape]
        if fitting:
            found, blocks[name] = True, np.nan_to_num(fitting[0].astype(np.float64))
    return lines.scores(lines.layout.flatten(blocks).astype(np.float64)) if found else None


def planted(pipe: Pipeline, learner: Learner, rng: np.random.Generator) -> GameResult:
    """Users of rare items train with the others; the attacker knows what each of them would have sent."""
    plan, count = pipe.plan, learner.planted
    size = max(learner.layout(r).size for r in range(1, plan.rounds + 1))
    rounds = _rounds(plan, size * max(2, count // 4))
    included = rng.random(count) < 0.5
    watch = Watch(pipe.mechanism)
    learner.restart()
    for round_ in range(1, rounds + 1):
        layout, clean = learner.layout(round_), learner.clean_sum(round_)
        joins = coins(plan, included & in_turn(plan, count, round_), rng)
        total = UpdateSum(layout.zeros())
        total.merge(clean)
        planted = learner.planted_sum(round_, joins)
        total.merge(planted)
        total.users = max(total.users, pipe.least_users)
        updates = learner.planted_updates(round_)
        flat = pipe.release(total, layout, round_)
        rest = flat - layout.flatten(clean.blocks)
        products, quiet, norms = np.zeros(count), np.zeros(count), updates.norms()
        factor = plan.clip_norm / np.maximum(norms, plan.clip_norm)
        added = layout.flatten(planted.blocks)
        for k in range(count):
            own = factor[k] * updates.vector(k, layout)
            products[k], quiet[k] = own @ rest, own @ added
        lengths = factor * norms
        known = np.maximum(lengths, 1e-300)
        watch.see(products / known, quiet / known, lengths, pipe.planned_std(round_))
        learner.apply(pipe.applied(flat, layout, round_))
    scores, quietly = Scores.split(watch.scores, included), Scores.split(watch.clean, included)
    return evaluated("planted", "every round", Theory.of(plan, rounds), scores, quietly, independent=False)


def _train_clean(
    pipe: Pipeline, learner: Learner, known: Mapping[int, Directions], joins: list[Bools]
) -> None:
    """The same run without any noise: what the final model could show at most."""
    learner.restart()
    for round_, who in enumerate(joins, start=1):
        layout = learner.layout(round_)
        total = learner.clean_sum(round_)
        pipe.clip(total, known[layout.size].updates(np.flatnonzero(who), TOO_LONG * pipe.plan.clip_norm))
        learner.apply(UpdateSum(total.blocks, pipe.plan.denominator))


def coins(plan: PrivacyPlan, included: Bools, rng: np.random.Generator) -> Bools:
    """Who of the included takes part in this round, which is their turn."""
    if plan.sampling in ("everyone", "min_separation"):
        return included
    return np.asarray(included & (rng.random(len(included)) < plan.turn_rate))


def in_turn(plan: PrivacyPlan, canaries: int, round_: int) -> Bools:
    """[M] whose turn it is; which group a user is in is public."""
    groups = plan.cycle or 1
    return np.asarray(np.arange(canaries) % groups == (round_ - 1) % groups)


def _rounds(plan: PrivacyPlan, values: int) -> int:
    """How many rounds fit into ten times the budget of noise values."""
    return max(1, min(plan.rounds, 10 * BUDGET // max(values, 1)))
