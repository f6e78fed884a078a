"""`fedrec privacy plan`: what a target epsilon asks for, its cost by every accountant, and whether it can learn."""

from __future__ import annotations

from typing import Annotated, Literal

import click
import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.privacy.accounting import summary
from fedrec.privacy.feasibility import EASY, LOST, Feasibility, feasibility
from fedrec.privacy.interaction import user_epsilon
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import InteractionPlan, PrivacySettings
from fedrec_server.cli.answer import Answer, table, warn
from fedrec_simulations.cli.options import JsonFlag

_COLOURS = {"can learn": "green", "hard": "yellow", "cannot learn": "bold red"}


def plan(
    epsilon: Annotated[float, typer.Option(help="Target, for all rounds together.", show_default=False)],
    population: Annotated[int, typer.Option(min=1, help="Users N; public.", show_default=False)],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds T.", show_default=False)],
    parameters: Annotated[
        int, typer.Option(min=1, help="Numbers that one user sends per round.", show_default=False)
    ],
    cohort: Annotated[
        int | None,
        typer.Option(min=1, help="Users per round on average, drawn by secret coins; all if left out."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="N^-1.1 if left out.", show_default=False)] = None,
    clip_norm: Annotated[float, typer.Option(help="L2 bound of one user's update.")] = 1.0,
    trust: Annotated[
        Literal["central", "distributed", "local"], typer.Option(help="Who adds the noise.")
    ] = "central",
    unit: Annotated[
        Literal["user", "interaction"], typer.Option(help="Whose contribution is hidden.")
    ] = "user",
    local_steps: Annotated[int, typer.Option(min=1, help="Unit interaction: steps per round.")] = 5,
    batch_rate: Annotated[
        float, typer.Option(help="Unit interaction: probability of each to join a step.")
    ] = 0.2,
    max_interactions: Annotated[int, typer.Option(min=1, help="Unit interaction: most of one user.")] = 200,
    gradient: Annotated[
        bool,
        typer.Option(
            "--gradient/--closed-form", help="Refuse noise in which a gradient drowns, or only warn."
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Go on with a meaningless setting.")] = False,
    json_: JsonFlag = False,
) -> Answer:
    """Print the noise that a target epsilon asks for, and whether anything can be learned under it."""
    if cohort is not None and cohort > population:
        raise click.UsageError(f"--cohort {cohort}: expected at most the population, {population}")
    settings = _settings(epsilon, delta, clip_norm, trust, unit, force)
    if unit == "interaction":
        limits = _limits(local_steps, batch_rate, max_interactions)
        settings = settings.model_copy(update={"interaction": limits})
    found = make_plan(
        settings,
        population=population,
        rounds=rounds,
        schedule=(1.0,) * rounds,
        parameters=parameters,
        sampling_rate=1.0 if cohort is None else cohort / population,
        dense_gradient=gradient,
    )
    return _answer(found, feasibility(found))


def _settings(
    epsilon: float, delta: float | None, clip_norm: float, trust: str, unit: str, force: bool
) -> PrivacySettings:
    bounds = {"--epsilon": epsilon, "--clip-norm": clip_norm, "--delta": 0.5 if delta is None else delta}
    for name, value in bounds.items():
        if not 0 < value < (1.0 if name == "--delta" else float("inf")):
            wanted = "a number between 0 and 1" if name == "--delta" else "a finite number above 0"
            raise click.UsageError(f"{name} {value:g}: expected {wanted}")
    if unit == "interaction" and trust == "distributed":
        raise click.UsageError(
            "--trust distributed: expected unit user; interactions are hidden on the device"
        )
    return PrivacySettings.model_validate(
        {
            "unit": unit,
            "trust": trust,
            "epsilon": epsilon,
            "delta": delta,
            "clip_norm": clip_norm,
            "force": force,
        }
    )


def _limits(local_steps: int, batch_rate: float, max_interactions: int) -> InteractionPlan:
    if not 0 < batch_rate <= 1:
        raise click.UsageError(f"--batch-rate {batch_rate:g}: expected a number above 0, up to 1")
    return InteractionPlan(
        local_steps=local_steps,
        batch_rate=batch_rate,
        max_interactions=max_interactions,
        expected_batch=batch_rate * max_interactions,
    )


def _answer(found: PrivacyPlan, evaluated: Feasibility) -> Answer:
    costs = summary(found.releases(), found.delta)
    warnings = found.warnings()
    warn(warnings)
    whole = user_epsilon(found) if found.unit == "interaction" else None
    document = {
        "plan": found.model_dump(mode="json"),
        "noise_multiplier": found.noise_multipliers[0],
        "epsilon": {**costs, "kept": found.epsilon(), "whole_user": whole},
        "noise_to_clip": evaluated.ratio,
        "verdict": evaluated.verdict,
        "advice": list(evaluated.advice),
        "warnings": warnings,
    }
    rows = [[name, "-" if value is None else f"{value:.4g}"] for name, value in _costs(found, costs, whole)]
    view: list[RenderableType] = [
        table(
            f"{found.unit}-level privacy, trust {found.trust}, epsilon {found.target_epsilon:g}",
            ["", ""],
            _facts(found),
        ),
        table(f"epsilon at delta {found.delta:.3g}", ["accountant", "epsilon"], rows),
        f"noise-to-clip ratio of a round: {evaluated.ratio:.3g}  "
        f"[{_COLOURS[evaluated.verdict]}]{evaluated.verdict}[/]: {_meaning(evaluated)}",
        *(f"  what helps: {escape(line)}" for line in evaluated.advice),
    ]
    return Answer(document, view)


def _facts(found: PrivacyPlan) -> list[list[str]]:
    facts = [
        ["noise multiplier z (noise / clip norm)", f"{found.noise_multipliers[0]:.4f}"],
        ["clip norm C", f"{found.clip_norm:g}"],
        ["users in the population N", str(found.population)],
        ["users per round m = qN", f"{found.denominator:g}"],
        ["sampling", f"{found.sampling}, q = {found.sampling_rate:.4g}"],
        ["rounds T", str(found.rounds)],
        ["parameters P", str(found.parameters)],
    ]
    if found.distributed is not None:
        integers = found.distributed
        facts += [
            ["integer steps per unit", f"{integers.scale:.5g}"],
            ["modulus", f"2^{integers.bits}"],
            ["users who must reply", f"{integers.survivors * found.denominator:.0f}"],
        ]
    return facts


def _costs(
    found: PrivacyPlan, costs: dict[str, float | None], whole: float | None
) -> list[tuple[str, float | None]]:
    server = "against the server, which sees who takes part" if found.unit == "user" else "without sampling"
    rows = [
        ("privacy loss distributions (PLD)", costs["pld"]),
        ("Rényi divergences (RDP)", costs["rdp"]),
        (f"no amplification: {server}", costs["without_amplification"]),
        ("if a contribution may be replaced, not only left out", costs["replace_one"]),
    ]
    if whole is not None:
        rows.append(("of a whole user with all interactions", whole))
    return rows


def _meaning(evaluated: Feasibility) -> str:
    if evaluated.verdict == "can learn":
        return f"below {EASY:g}, the mean update stands out of the noise"
    if evaluated.verdict == "hard":
        return "the mean update, usually far below the clip norm, is hard to see in the noise"
    return f"above {LOST:g}, a gradient drowns; counts and closed forms may bear it"
