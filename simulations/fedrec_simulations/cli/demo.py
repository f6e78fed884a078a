"""`fedrec demo`: real, bundled data; six federated recommenders, one of them private, and their
baselines; titles for one shown_user.

About a minute on two cores. Out of scope: getting the most out of a model (`simulations/experiments`, `fedrec tune`).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import RunError
from fedrec_server.cli.answer import INTERRUPTED, Answer, notice, table, warn
from fedrec_simulations.cli.options import JsonFlag, read_config
from fedrec_simulations.cli.recommend import view as view_user
from fedrec_simulations.cli.running import drive, lay_out
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.report.examples import recommend, typical_users
from fedrec_simulations.report.summary import Summary, side_by_side, write_baseline
from fedrec_simulations.report.tables import COLUMNS, comparison, notes

MARK = "demo.txt"
#: Experiments that come with fedrec, and what the demo changes to stay within a minute.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "movietweetings-popularity": (),
    "movietweetings-item-knn": (),
    "movietweetings-ease": (),
    "movietweetings-ials": ("model.embedding_size=32", "federation.rounds=5"),
    "movietweetings-mf": (),
    "movietweetings-dp-ease": (),
}
#: Whose lists are shown; fixed beforehand, since choosing it by the test part would be peeking.
SHOWN = "movietweetings-item-knn"


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the runs and the report; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    user: Annotated[
        str | None, typer.Option(help="To whom titles are recommended; someone typical by default.")
    ] = None,
    json_: JsonFlag = False,
) -> Answer:
    """Train, compare and recommend on real, bundled data: about a minute."""
    from fedrec_simulations.report.page import write_page

    started = time.perf_counter()
    configs = {name: read_config(name, list(changes)) for name, changes in EXPERIMENTS.items()}
    _clear(out)
    prepared = prepare(next(iter(configs.values())))
    _introduce(prepared)
    warn(list(dict.fromkeys(line for config in configs.values() for line in config.warnings())))
    runs = []
    for name, config in configs.items():
        run = _one(out / name, config, prepared)
        if run is None:
            return Answer({"interrupted": True}, ["interrupted: start `fedrec demo` again"], INTERRUPTED)
        runs.append(run)
    runs = side_by_side(runs)
    shown = next(run for run in runs if run.config.name == SHOWN)
    shown_user = recommend(shown.run, user or typical_users(shown.run)[1], n=10)
    page = write_page(out / "report.html", runs, examples_of=shown)
    seconds = time.perf_counter() - started
    document = {
        "runs": [run.as_dict() for run in runs],
        "example": {"run": shown.run.path} | shown_user.as_dict(),
        "report": page,
        "seconds": seconds,
    }
    results = table(
        "on the film that each user rated last, held out from training", ("run", *COLUMNS), comparison(runs)
    )
    view: list[RenderableType] = [results, *notes(runs), "", *view_user(shown_user), ""]
    view.append(f"report: {escape(str(page))}   ({seconds:.0f} s)")
    view.append(
        f"go on: fedrec recommend {escape(str(shown.run.path))} --user {escape(shown_user.user)} --n 20"
    )
    return Answer(document, view)


def _introduce(prepared: Prepared) -> None:
    train = prepared.split.train
    sizes = prepared.description["split"]
    total = sum(part["interactions"] for part in sizes.values() if isinstance(part, dict))
    notice(
        f"MovieTweetings: {train.n_users:,} users, {train.n_items:,} films, {total:,} ratings; last film held out"
    )


def _one(folder: Path, config: Config, prepared: Prepared) -> Summary | None:
    """A run and its centralised baseline; None if interrupted."""
    notice(f"{config.name}: federated, then its centralised baseline", "bold")
    run = lay_out(config, prepared, folder, "in-process")
    if not drive(run, "in-process").finished:
        return None
    categories, features = category_matrix(prepared.catalog), prepared.catalog.features
    write_baseline(run, fit_baseline(config, prepared.split, categories, features))
    return Summary(run)


def _clear(out: Path) -> None:
    """Make room for the demo; only a folder that a demo has written is ever removed.

    Raises:
        RunError: something else lies there.
    """
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} holds something else than a demo: give another folder with --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text("Written by `fedrec demo`, which replaces this folder.\n")
