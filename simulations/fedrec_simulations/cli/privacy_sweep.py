"""`fedrec privacy sweep`: what privacy costs in quality, as one table and one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import RunError
from fedrec_server.cli.answer import INTERRUPTED, Answer, notice, table, warn
from fedrec_server.cli.interrupts import StopRequest
from fedrec_simulations.cli.options import JsonFlag, Overrides, find_config
from fedrec_simulations.sweep.cells import Cell, CellResult, base_config, cells
from fedrec_simulations.sweep.data import SweepData, prepare_sweep, read_data
from fedrec_simulations.sweep.page import COLUMNS, row, write_page
from fedrec_simulations.sweep.reading import read, sentences
from fedrec_simulations.sweep.runner import run_sweep
from fedrec_simulations.sweep.spec import SweepSpec, load_sweep
from fedrec_simulations.sweep.table import CAVEAT, as_dict, plain, points, write_tables

#: Columns of the page that fit a terminal, too.
SHOWN = (0, 1, 2, 3, 6, 7, 8, 11, 12)


def sweep(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT", help="TOML file, or the name of a sweep that comes with fedrec."
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; sweeps/<name> by default. One that exists is gone on with.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    json_: JsonFlag = False,
) -> Answer:
    """Train methods at several budgets and compare them. Ctrl-C finishes the cells that run; start again to go on."""
    source = find_config(experiment)
    spec = load_sweep(source, overrides or ())
    folder = _folder(out or Path("sweeps") / spec.name)
    base = base_config(spec, str(source))
    # Every cell is checked before data is read: bounds of groups decide nothing about that.
    cells(spec, folder, (1, 2), str(source))
    place = prepare_sweep(folder, base, spec.sweep.evaluate)
    data = read_data(place)
    todo = cells(spec, place, data.group_bounds, str(source))
    warn([f"{CAVEAT}: these runs protect no one, they show what protection costs"])
    results = _run(folder, todo, jobs or os.cpu_count() or 1)
    return _answer(folder, spec, todo, results, data)


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {folder} cannot be made ({error.strerror}): give another folder") from error
    return folder


def _run(folder: Path, todo: list[Cell], jobs: int) -> dict[str, CellResult]:
    done = 0

    def progress(cell: Cell, result: CellResult) -> None:
        nonlocal done
        done += 1
        what = " ".join([cell.method, f"epsilon {cell.epsilon:g}", *(f"{k}={v}" for k, v in cell.axes)])
        said = result.error or f"{result.seconds:.1f} s"
        notice(f"{done} done  {what}  seed {cell.seed}  ({said})")

    with StopRequest() as stop:
        return run_sweep(folder, todo, jobs, progress, stop)


def _answer(
    folder: Path, spec: SweepSpec, todo: list[Cell], results: dict[str, CellResult], data: SweepData
) -> Answer:
    found, metric = points(todo, results), spec.sweep.metric
    said = sentences(read(spec, found))
    good = [result for result in results.values() if result.error is None]
    facts: dict[str, Any] = {
        "cells": len(todo),
        "finished": len(good),
        "users": good[0].users if good else {"all": 0, "small": 0, "tail": 0},
        "description": data.description,
    }
    write_tables(folder, todo, results, {"name": spec.name, "metric": metric, "says": said} | facts)
    page = write_page(folder, spec, found, facts)
    document = plain(
        {"folder": folder, "page": page, "metric": metric, "says": said, "note": CAVEAT, **facts}
        | {"points": [as_dict(point) for point in found]}
    )
    rows = [[row(point, metric)[k] for k in SHOWN] for point in found]
    shown = table(f"{spec.name}: {metric}", [COLUMNS[k] for k in SHOWN], rows)
    view: list[RenderableType] = [shown, *map(escape, said)]
    failed = [f"{p.series}, epsilon {p.epsilon:g}: {p.error}" for p in found if p.error]
    warn([f"no result for {line}" for line in failed])
    unfinished = len(results) < len(todo)
    end = "stopped; the same command goes on" if unfinished else f"page: {page}"
    return Answer(document, [*view, escape(end)], INTERRUPTED if unfinished else 0)
