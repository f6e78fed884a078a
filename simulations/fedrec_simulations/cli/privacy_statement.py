"""`fedrec privacy statement`: write a run's statement again, with the audit that was made since."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec_server.cli.answer import Answer, warn
from fedrec_simulations.cli.options import JsonFlag
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.privacy_facts import write_privacy


def statement(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    json_: JsonFlag = False,
) -> Answer:
    """Write RUN/privacy.json and RUN/privacy.html again; an audit of the same plan in RUN/audit.json goes in.

    To have one: fedrec privacy audit CONFIG --out RUN/audit.json
    """
    made = write_privacy(RunFolder.open(run))
    warn(made["warnings"])
    audit = " ".join(made["audit"]["text"])
    view = [made["headline"], audit, f"page: {run / 'privacy.html'}"]
    return Answer(dict(made), [escape(line) for line in view])
