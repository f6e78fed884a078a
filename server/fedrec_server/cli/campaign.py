"""`fedrec-server campaign run|list`: train with devices that enrol themselves, publish what comes of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedrec.core.errors import FedrecError
from fedrec_server.cli.answer import Answer, notice, table, warn
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag, Overrides

TaskFile = Annotated[
    Path, typer.Argument(metavar="TASK", help="TOML file of the task, as `fedrec config task` writes it.")
]
Folder = Annotated[Path, typer.Option("--campaigns", help="Folder of all campaigns, as the service has it.")]
HERE = Path("campaigns")


def run(
    task: TaskFile,
    population: Annotated[str, typer.Option("--population", help="Whose devices.", show_default=False)],
    devices: Annotated[int, typer.Option(min=3, help="Begin when so many are enrolled.")] = 100,
    wait: Annotated[float, typer.Option(min=1, help="For at most so many seconds.")] = 86_400.0,
    most: Annotated[int, typer.Option("--max-devices", min=3, help="More are refused.")] = 1000,
    overrides: Overrides = None,
    registry: Annotated[Path, typer.Option("--registry", help="Folder of the registry.")] = Path("models"),
    keys: Annotated[Path, typer.Option("--keys", help="Folder of all keys.")] = Path("keys"),
    folder: Folder = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Open a campaign, wait for devices, train with them, sign and promote the result.

    TASK says model, privacy, rounds and secure aggregation.
    """
    from fedrec_server.operations.campaign_book import CampaignBook
    from fedrec_server.operations.campaigns import Campaign
    from fedrec_server.operations.key_folder import KeyFolder
    from fedrec_server.operations.specification import load_specification
    from fedrec_server.registry import Registry

    settings = load_specification(task, overrides or ())
    warn(settings.warnings())
    with StopRequest("ending the campaign: its devices are told") as stop:
        campaign = Campaign.open(
            CampaignBook(folder),
            Registry(registry, population),
            settings,
            KeyFolder(keys, population).online(),
            most,
            stop=stop,
        )
        notice(f"campaign {campaign.id} is open for {population}")
        try:
            campaign.await_devices(devices, wait, notice)
            made = campaign.run(notice, _tell)
        except FedrecError as error:
            if stop.asked:
                raise KeyboardInterrupt from error
            raise
    view = [f"version {made.version} of {escape(population)} is champion: {made.privacy.get('headline', '')}"]
    return Answer({"campaign": campaign.id} | made.payload(), view)


def list_(folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """All campaigns: whose, since when, how many devices, how many of them have left, and how it ended."""
    from fedrec_server.operations.campaign_book import DONE, STATE, CampaignBook

    book = CampaignBook(folder)
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*/{STATE}")):
        state, name = book.state(path.parent.name), path.parent.name
        found = {"campaign": name, "population": state.population, "opened": state.opened}
        found |= {"devices": len(book.roster(name)), "left": len(book.left(name)), "closed": state.closed}
        word = "closed" if state.closed else "open"
        if state.ended:
            word = "done" if state.ended == DONE else "failed"
        elif book.is_over(name):
            word = "dead"  # its operator's process is gone
        rows.append(found | {"state": word, "ended": state.ended})
    rows.sort(key=lambda row: row["opened"])
    cells = [
        [
            row["campaign"],
            row["population"],
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["opened"])),
            row["state"],
            str(row["devices"]),
            str(row["left"]),
        ]
        for row in rows
    ]
    columns = ["campaign", "population", "opened", "state", "devices", "left"]
    return Answer({"campaigns": rows}, [table("", columns, cells, left=4)])


def _tell(event: dict[str, Any]) -> None:
    if "round" in event:
        failures = len(event.get("failures", {}))
        notice(f"round {event['round']}: {event['nodes']} devices in the sum, {failures} not")
