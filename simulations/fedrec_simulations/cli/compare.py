"""`fedrec compare`: several runs side by side, as a table and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec_server.cli.answer import Answer, notice, table, warn
from fedrec_simulations.cli.options import JsonFlag
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.summary import Summary, same_question, side_by_side
from fedrec_simulations.report.tables import COLUMNS, comparison, notes


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("comparison.html"),
    json_: JsonFlag = False,
) -> Answer:
    """Compare runs that were evaluated on the same held-out items."""
    from fedrec_simulations.report.page import write_page

    summaries = side_by_side([Summary(RunFolder.open(path)) for path in runs])
    comparable = same_question(summaries)
    warn(list(dict.fromkeys(line for summary in summaries for line in summary.config.warnings())))
    if not comparable:
        notice(
            "warning: these runs saw different data or held-out items, or were measured differently: "
            "their numbers do not compare",
            "bold red",
        )
    page = write_page(out, summaries, comparable=comparable)
    document = {
        "runs": [summary.as_dict() for summary in summaries],
        "comparable": comparable,
        "report": page,
    }
    rows = comparison(summaries)
    found = table("comparison", ("run", *COLUMNS), rows)
    return Answer(document, [found, *notes(summaries), f"page: {escape(str(page))}"])
