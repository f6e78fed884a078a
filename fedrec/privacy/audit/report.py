"""What an audit found: one line per game, and a verdict that says no more than was shown.

    VIOLATED       a bound on what was really spent is above what is claimed; false alarms of a whole audit stay
                   under `FALSE_ALARM`
    consistent     no bound is above the claim, and a mechanism without any privacy would have been noticed
    inconclusive   not even that would have been noticed, with so few canaries

Out of scope: how to print it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["consistent", "VIOLATED", "inconclusive"]

#: Probability that a correct mechanism is called VIOLATED, over all games and methods of one audit.
FALSE_ALARM = 0.05
#: Bounds above the claim by less than this part are rounding of the accountants.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class GameResult:
    """One game.

    Attributes:
        game: its name.
        view: what the attacker sees.
        theory: epsilon claimed of that view.
        lower: lower bounds on epsilon by method, all of them together wrong with probability below `FALSE_ALARM`.
        estimate, interval: epsilon as estimated, with its interval; None where a game has none.
        canaries: how many were in and out together (or trials, or values of noise).
        reach: the largest bound that so many could have shown.
        note: what a reader should know.
        counts: whether an inconclusive game makes the audit inconclusive.
    """

    game: str
    view: str
    theory: float
    lower: Mapping[str, float]
    canaries: int
    reach: float = math.inf
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    counts: bool = True

    @property
    def bound(self) -> float:
        """The largest lower bound."""
        return max(self.lower.values(), default=0.0)

    @property
    def verdict(self) -> Verdict:
        """See the module's text."""
        if self.bound > self.theory * (1.0 + _ROUNDING):
            return "VIOLATED"
        return "consistent" if self.reach > self.theory else "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "game": self.game,
            "view": self.view,
            "eps_theory": self.theory,
            "eps_lower": dict(self.lower),
            "eps_lower_best": self.bound,
            "eps_estimate": self.estimate,
            "eps_estimate_interval": None if self.interval is None else list(self.interval),
            "n_canaries": self.canaries,
            "largest_bound_possible": self.reach,
            "verdict": self.verdict,
            "note": self.note,
        }


COLUMNS = ("game", "view", "eps theory", "eps lower", "by", "estimate", "canaries", "verdict")


@dataclass(frozen=True)
class AuditReport:
    """All games of one audit.

    Attributes:
        plan: what was audited, plain.
        bug: the bug that was planted, or None.
        results: one per game.
        notes: what was left out, and why.
    """

    plan: Mapping[str, Any]
    results: Sequence[GameResult]
    bug: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def verdict(self) -> Verdict:
        """VIOLATED if any game says so; inconclusive if one that counts could not have said anything."""
        if any(result.verdict == "VIOLATED" for result in self.results):
            return "VIOLATED"
        weak = any(result.verdict == "inconclusive" and result.counts for result in self.results)
        return "inconclusive" if weak else "consistent"

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "bug": self.bug,
            "verdict": self.verdict,
            "false_alarm": FALSE_ALARM,
            "games": [result.as_dict() for result in self.results],
            "notes": list(self.notes),
            "plan": dict(self.plan),
        }

    def rows(self) -> list[list[str]]:
        """Cells for `COLUMNS`."""
        return [_row(result) for result in self.results]


def _row(result: GameResult) -> list[str]:
    best = max(result.lower, key=lambda name: result.lower[name]) if result.bound > 0 else "-"
    return [
        result.game,
        result.view,
        number(result.theory),
        number(result.bound),
        best,
        _with_interval(result),
        str(result.canaries),
        result.verdict,
    ]


def number(value: float) -> str:
    """Three digits; nothing finite is printed as infinite."""
    return "inf" if math.isinf(value) else f"{value:.3g}" if value < 1e4 else f"{value:.0f}"


def _with_interval(result: GameResult) -> str:
    if result.estimate is None or result.interval is None:
        return "-"
    low, high = result.interval
    return f"{number(result.estimate)} [{number(low)}, {number(high)}]"
