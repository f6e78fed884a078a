"""`fedrec recommend`: titles for one user, from the state on the user's node."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec_server.cli.answer import Answer, table, warn
from fedrec_simulations.cli.options import JsonFlag, RunArgument
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.examples import Example
from fedrec_simulations.report.examples import recommend as recommend_to


def recommend(
    run: RunArgument,
    user: Annotated[str, typer.Option(help="The user, in the data set's own ids.", show_default=False)],
    n: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    json_: JsonFlag = False,
) -> Answer:
    """Recommend to one user of a finished run, from local state only."""
    folder = RunFolder.open(run)
    example = recommend_to(folder, user, n)
    warn(folder.config.warnings())
    return Answer({"run": run} | example.as_dict(), view(example))


def view(example: Example) -> list[RenderableType]:
    """The user's latest items and the list."""
    latest = "; ".join(escape(line.title) for line in example.latest) or "nothing"
    rows = [
        [
            str(k),
            line.title + ("  ◀ held out: really chosen next" if line.held_out else ""),
            f"{line.score:.4g}",
        ]
        for k, line in enumerate(example.recommended, start=1)
    ]
    title = f"user {example.user}, from the state on node {example.node} alone"
    return [
        f"latest of {example.interactions}: {latest}",
        table(title, ["rank", "item", "score"], rows, left=2),
    ]
