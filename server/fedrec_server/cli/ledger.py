"""`fedrec privacy ledger`: verify a ledger and say what each account has spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrec.core.errors import RunError
from fedrec.privacy.ledger import Ledger
from fedrec_server.cli.answer import Answer, table
from fedrec_server.cli.options import JsonFlag


def ledger(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A ledger folder, or the run folder of a private run.")
    ],
    json_: JsonFlag = False,
) -> Answer:
    """Verify every entry of a ledger, and show what was spent on whom."""
    place = folder / "coordinator" / "ledger" if (folder / "config.json").exists() else folder
    if not (place / "ledger.jsonl").exists():
        raise RunError(f"{folder} holds no ledger: give a ledger folder, or the run folder of a private run")
    with Ledger.open(place, read_only=True) as book:
        spent = {account: book.spent(account) for account in book.accounts()}
        entries = len(book.history())
    rows = [
        [
            account.subject,
            account.dataset,
            f"{s.epsilon:.4g}",
            f"{s.delta:.2g}",
            str(s.plans),
            str(s.releases),
        ]
        for account, s in spent.items()
    ]
    columns = ["who is charged", "data set", "epsilon", "delta", "plans", "releases"]
    document = {
        "folder": place,
        "entries": entries,
        "accounts": [
            {"subject": a.subject, "dataset": a.dataset, "epsilon": s.epsilon, "delta": s.delta}
            | {"plans": s.plans, "releases": s.releases}
            for a, s in spent.items()
        ],
    }
    return Answer(document, [table(f"{entries} entries, all verified", columns, rows, left=2)])
