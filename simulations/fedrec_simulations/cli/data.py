"""`fedrec data describe|prepare`: what a data set holds, and a split of it to be handed on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import DataError
from fedrec.core.interactions import Dataset
from fedrec.data import splits
from fedrec.data.cleaning import CleaningReport
from fedrec_server.cli.answer import Answer, table
from fedrec_simulations.cli.options import JsonFlag
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import FIRST_TIME, load, prepare

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="Name of a data set (`movietweetings`, `ml-1m`), or a table of your own."
    ),
]
At = Annotated[Path | None, typer.Option("--path", help="Where the original files of a named data set lie.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the original files if they are not here.")]
User = Annotated[str, typer.Option("--user-column", help="For a table of your own.")]
Item = Annotated[str, typer.Option("--item-column", help="For a table of your own.")]
Rating = Annotated[
    str | None, typer.Option("--rating-column", help="For a table of your own; none: all count 1.")
]
Time = Annotated[
    str | None, typer.Option("--timestamp-column", help="None: the order of rows is the order in time.")
]
MinRating = Annotated[float | None, typer.Option(help="Drop interactions rated below.")]
Core = Annotated[int, typer.Option(help="Drop users and items with fewer interactions, until none is left.")]


def describe(
    source: Source = "movietweetings",
    path: At = None,
    download: Download = False,
    user_column: User = "user",
    item_column: Item = "item",
    rating_column: Rating = None,
    timestamp_column: Time = None,
    min_rating: MinRating = None,
    core: Core = 1,
    json_: JsonFlag = False,
) -> Answer:
    """Users, items, density, lengths of histories, time span, most popular items; what cleaning removed."""
    columns = (user_column, item_column, rating_column, timestamp_column)
    config = _config(_data(source, path, download, columns, min_rating, core), {})
    dataset, report = load(config.data)
    facts = _facts(dataset)
    return Answer(facts | {"cleaning": report.as_dict()}, _view(facts, report))


def prepare_split(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder to write the split to.", show_default=False)],
    path: At = None,
    download: Download = False,
    user_column: User = "user",
    item_column: Item = "item",
    rating_column: Rating = None,
    timestamp_column: Time = None,
    min_rating: MinRating = None,
    core: Core = 1,
    method: Annotated[
        Literal["leave_one_out", "temporal", "per_user_ratio", "held_out_users"],
        typer.Option(help="What is held out."),
    ] = "leave_one_out",
    ties: Annotated[
        Literal["file_order", "smallest_item", "largest_item"],
        typer.Option(help="Which of several last interactions with one time stamp is the last."),
    ] = "file_order",
    fraction: Annotated[float, typer.Option(help="Held-out fraction, except for leave_one_out.")] = 0.1,
    validation: Annotated[bool, typer.Option(help="Hold a validation part out, too.")] = True,
    seed: Annotated[int, typer.Option(help="For methods that draw.")] = 0,
    json_: JsonFlag = False,
) -> Answer:
    """Clean and split a data set, and write the split in its own ids, to be handed on."""
    columns = (user_column, item_column, rating_column, timestamp_column)
    rule = {"method": method, "ties": ties, "fraction": fraction, "validation": validation}
    config = _config(_data(source, path, download, columns, min_rating, core), rule, seed)
    if out.is_file():
        raise DataError(f"--out {out} is a file: give a folder")
    prepared = prepare(config)
    splits.write_split(prepared.split, out, rule=config.split.model_dump_json())
    sizes = [[name, str(value)] for name, value in prepared.description["split"].items()]
    next_step = f"use it: \\[split] method = 'folder', path = '{escape(str(out))}'"
    return Answer(
        prepared.description | {"folder": out}, [table(f"split in {out}", ["", ""], sizes), next_step]
    )


def _data(
    source: str,
    path: Path | None,
    download: bool,
    columns: tuple[str, str, str | None, str | None],
    min_rating: float | None,
    core: int,
) -> dict[str, Any]:
    """The `data` section of a configuration that the options mean; a SOURCE that is a file is a table."""
    names = ("user_column", "item_column", "rating_column", "timestamp_column")
    file = Path(source)
    named: dict[str, Any] = {"name": source, "path": path, "download": download}
    if file.is_file() or (file.suffix and path is None):
        if not file.exists():
            raise DataError(f"{source} does not exist: give an existing table, or the name of a data set")
        named = {"name": "file", "path": file} | dict(zip(names, columns, strict=True))
    return named | {"min_rating": min_rating, "core": core}


def _config(data: dict[str, Any], split: dict[str, Any], seed: int = 0) -> Config:
    """Checked by the same rules as a configuration file; nothing is trained with it."""
    rest = {
        "model": {"kind": "popularity"},
        "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
    }
    return parse_config({"data": data, "split": split, "federation": {"seed": seed}} | rest, (), "options")


def _facts(dataset: Dataset) -> dict[str, Any]:
    data = dataset.interactions
    counts, item_counts = data.counts, data.item_counts
    top = np.argsort(-item_counts, kind="stable")[:10].tolist()
    timed = len(data) > 0 and int(data.timestamp.max()) >= FIRST_TIME
    ends = [
        datetime.fromtimestamp(int(t), UTC).isoformat() for t in (data.timestamp.min(), data.timestamp.max())
    ]
    same = data.timestamp[1:] == data.timestamp[:-1]
    ties = np.unique(data.user[1:][same & (data.user[1:] == data.user[:-1])])
    return {
        "name": dataset.name,
        "terms": dataset.terms,
        "users": data.n_users,
        "items": data.n_items,
        "interactions": len(data),
        "density": len(data) / (data.n_users * data.n_items),
        "history_length": {f"{q:.0%}": float(np.quantile(counts, q)) for q in QUANTILES},
        "users_with_one_interaction": int((counts == 1).sum()),
        "time_span": ends if timed else None,
        "users_with_equal_times": len(ties) if timed else None,
        "top_items": [
            {"item": str(data.item_ids[k]), "title": dataset.catalog.label(k), "users": int(item_counts[k])}
            for k in top
        ],
    }


def _view(facts: dict[str, Any], report: CleaningReport) -> list[RenderableType]:
    span = (
        " to ".join(text[:10] for text in facts["time_span"])
        if facts["time_span"]
        else "no times: order of rows"
    )
    lengths = ", ".join(f"{q} {value:g}" for q, value in facts["history_length"].items())
    rows = [
        ["users", f"{facts['users']:,}"],
        ["items", f"{facts['items']:,}"],
        ["interactions", f"{facts['interactions']:,}"],
        ["density", f"{facts['density']:.4%}"],
        ["history length (quantiles)", lengths],
        ["users with one interaction", f"{facts['users_with_one_interaction']:,}"],
        ["time span", span],
    ]
    if facts["users_with_equal_times"] is not None:
        # Their "last" interaction depends on the tie rule.
        rows.append(["users with equal time stamps", f"{facts['users_with_equal_times']:,}"])
    if facts["terms"]:
        rows.append(["terms", facts["terms"]])
    top = [[item["title"], f"{item['users']:,}"] for item in facts["top_items"]]
    return [
        table(facts["name"], ["", ""], rows, left=2),
        table("most popular", ["item", "users"], top),
        "cleaning:",
        escape(str(report)),
    ]
