"""`fedrec privacy`: choose a budget, see what it costs, attack it, audit it, read what was spent."""

from __future__ import annotations

import typer

from fedrec_simulations.cli import (
    privacy_attack,
    privacy_audit,
    privacy_ledger,
    privacy_plan,
    privacy_statement,
    privacy_sweep,
)

app = typer.Typer(help="Privacy budgets: plan, sweep, audit, attack, statement, ledger.")
app.command("plan")(privacy_plan.plan)
app.command("sweep")(privacy_sweep.sweep)
app.command("audit")(privacy_audit.audit)
app.command("attack")(privacy_attack.privacy_attack)
app.command("statement")(privacy_statement.statement)
app.command("ledger")(privacy_ledger.ledger)
