"""What a privacy target asks for, and whether anything can be learned under it, before anything is trained.

Letters: N population, T rounds, P parameters, m users per round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from fedrec.core.errors import ConfigError
from fedrec.core.extras import needs
from fedrec.privacy.feasibility import Feasibility, feasibility
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import PrivacySettings
from fedrec_simulations.api.tables import Columns, Table


@dataclass(frozen=True)
class PlannedPrivacy(Table):
    """A frozen plan and what it means.

    Attributes:
        plan: everything that a guarantee depends on: noise, clip norm, sampling, delta, accountant.
        feasibility: noise compared with what is to be learned: ratio, verdict and advice.
        epsilons: by accountant, at the plan's delta; None: that accountant has none.
    """

    plan: PrivacyPlan
    feasibility: Feasibility
    epsilons: dict[str, float | None]

    @property
    def epsilon(self) -> float:
        """What the plan keeps, at its delta."""
        return self.plan.epsilon()

    @property
    def noise_multiplier(self) -> float:
        """Noise of the first round divided by the clip norm."""
        return self.plan.noise_multipliers[0]

    @property
    def verdict(self) -> str:
        """ "can learn", "hard" or "cannot learn"."""
        return self.feasibility.verdict

    def columns(self) -> Columns:
        """One row per quantity of the plan."""
        plan = self.plan
        rows: dict[str, Any] = {
            "epsilon": self.epsilon,
            "delta": plan.delta,
            "unit": plan.unit,
            "trust": plan.trust,
            "population": plan.population,
            "users per round": plan.denominator,
            "rounds": plan.rounds,
            "parameters": plan.parameters,
            "clip norm": plan.clip_norm,
            "noise multiplier": self.noise_multiplier,
            "noise-to-clip ratio": self.feasibility.ratio,
            "verdict": self.verdict,
        }
        rows |= {f"epsilon by {name}": value for name, value in self.epsilons.items()}
        shown = [value if isinstance(value, str) else _short(value) for value in rows.values()]
        return {"quantity": list(rows), "value": shown}


def plan_privacy(
    epsilon: float,
    *,
    population: int,
    rounds: int,
    parameters: int,
    cohort: int | None = None,
    delta: float | None = None,
    clip_norm: float = 1.0,
    trust: Literal["central", "distributed", "local"] = "central",
    gradient: bool = True,
    force: bool = False,
) -> PlannedPrivacy:
    """The noise that a target epsilon per user asks for.

    Args:
        epsilon: target, for all rounds together.
        population: N, users; public.
        rounds: T.
        parameters: P, numbers that one user sends per round.
        cohort: m, users per round on average, drawn independently at random; None: all.
        delta: None: N^-1.1.
        clip_norm: L2 bound of one user's update.
        trust: who adds the noise.
        gradient: refuse noise in which a gradient drowns; False, for closed forms: only say so.
        force: plan a meaningless setting, too.

    Raises:
        ConfigError: a value out of range.
        PrivacyRefused: the guarantee would be meaningless, or nothing could be learned.

    Example:
        >>> import fedrec
        >>> planned = fedrec.plan_privacy(3.0, population=100_000, rounds=1, parameters=1000, gradient=False)
        >>> planned.verdict, round(planned.noise_multiplier, 2)
        ('can learn', 1.47)
    """
    if cohort is not None and not 1 <= cohort <= population:
        raise ConfigError(f"cohort is {cohort}: expected 1 to the population, {population}")
    with needs("fedrec.plan_privacy"):
        from fedrec.privacy.accounting import summary
        from fedrec.privacy.planner import make_plan

        settings = _settings(
            unit="user", trust=trust, epsilon=epsilon, delta=delta, clip_norm=clip_norm, force=force
        )
        plan = make_plan(
            settings,
            population=population,
            rounds=rounds,
            schedule=(1.0,) * rounds,
            parameters=parameters,
            sampling_rate=1.0 if cohort is None else cohort / population,
            dense_gradient=gradient,
        )
        return PlannedPrivacy(plan, feasibility(plan), summary(plan.releases(), plan.delta))


def _settings(**values: Any) -> PrivacySettings:
    """Settings of a target.

    Raises:
        ConfigError: in one line, all that is wrong.
    """
    try:
        return PrivacySettings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(problems).replace("Value error, ", "")) from error


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
