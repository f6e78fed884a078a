"""`fedrec privacy attack`: what can be told about single users from what a configuration sends and releases."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrec.recommenders.registry import build
from fedrec_server.cli.answer import Answer, table, warn
from fedrec_simulations.audit.attack_views import Target, planner_of
from fedrec_simulations.audit.attacks import Row, attack
from fedrec_simulations.cli.options import ConfigArgument, JsonFlag, Overrides, read_config
from fedrec_simulations.experiments.prepare import prepare

READING = (
    "AUC 0.5 is guessing, 1.0 is certainty; intervals hold 95 %. Own items are compared with others as popular.",
    "'Of others' is the same attack on users the model never saw: that much is the model's skill, not a leak.",
    "An attack that fails proves nothing; what holds against every attack is the plan's epsilon.",
)


def privacy_attack(
    config: ConfigArgument,
    overrides: Overrides = None,
    cohort: Annotated[int, typer.Option(min=2, help="Users whose updates are summed, and attacked.")] = 100,
    json_: JsonFlag = False,
) -> Answer:
    """Attack plain federation and, where the configuration has privacy, the private run; print each AUC."""
    chosen = read_config(config, overrides)
    warn(chosen.warnings())
    split, federation = prepare(chosen).split, chosen.federation
    target = Target.of(build(chosen.model), split, federation.rounds, federation.clip_norm, federation.seed)
    rows = attack(target, planner_of(chosen.privacy, target), cohort)
    document = {"name": chosen.name, "cohort": cohort, "attacks": [row.as_dict() for row in rows]}
    columns = ["attack", "what the attacker sees", "privacy", "AUC", "95 %", "users"]
    view = table(f"attacks on {chosen.name}", columns, [_cells(row) for row in rows], left=3)
    return Answer(document, [view, *READING])


def _cells(row: Row) -> list[str]:
    r = row.result
    protection = "as configured" if row.private else "none"
    return [
        row.attack, row.view, protection, f"{r.auc:.3f}", f"{r.low:.3f} to {r.high:.3f}", str(r.subjects)
    ]  # fmt: skip
