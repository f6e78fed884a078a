"""`fedrec-server model ...`: the registry of models that devices use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import RegistryError, RunError, UpdateRejected
from fedrec.wire.layout import DELEGATED, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from fedrec.wire.manifest import Manifest
from fedrec_server.cli.answer import Answer, notice, table
from fedrec_server.cli.options import JsonFlag, Keys, Models, Population, RunArgument
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.operations.run_artifacts import RunArtifacts
from fedrec_server.registry import Registry, write_bundle

ROLES = (ROOT, TARGETS, *DELEGATED, SNAPSHOT, TIMESTAMP)

Version = Annotated[int, typer.Argument(metavar="VERSION", show_default=False)]
HERE, KEYS = Path("models"), Path("keys")


def publish(
    run: RunArgument,
    population: Population,
    registry: Models = HERE,
    keys: Keys = KEYS,
    int8: Annotated[bool, typer.Option(help="Tables of 8-bit integers.")] = True,
    min_client: Annotated[str, typer.Option(help="Oldest client that can use it.")] = "0.1.0",
    json_: JsonFlag = False,
) -> Answer:
    """Sign the model of a finished run under the next version; no device uses it before it is promoted."""
    from fedrec.wire.package import Terms
    from fedrec_server.operations.publishing import files_of_run

    files, summary = files_of_run(RunArtifacts.open(run), int8=int8)
    terms = Terms(0, int(time.time()), min_client, summary)
    made = Registry(registry, population).publish(files, terms, KeyFolder(keys, population).online())
    hint = f"promote it with: fedrec-server model promote {made.version} --population {population}"
    return Answer(made.payload(), [*_view(made), escape(hint)])


def list_(population: Population, registry: Models = HERE, json_: JsonFlag = False) -> Answer:
    """All versions, and which are in use."""
    books = Registry(registry, population)
    aliases = books.aliases
    manifests, damaged = _manifests(books)
    names = {aliases.champion: "champion", aliases.canary: f"canary {aliases.canary_traffic / 10:g} %"}
    names.pop(0, None)
    rows = [
        [
            str(made.version),
            names.get(made.version, ""),
            made.model_kind,
            f"{made.n_items:,}",
            f"{sum(entry.size for entry in made.files.values()) / 2**20:.2f} MiB",
            _date(made.created),
        ]
        for made in manifests
    ]
    columns = ["version", "alias", "kind", "items", "size", "created"]
    document = {
        "population": population,
        "aliases": vars(aliases),
        "versions": [m.payload() for m in manifests],
        "damaged": damaged,
    }
    return Answer(document, [table(f"models of {population}", columns, rows, left=3)])


def show(
    version: Version, population: Population, registry: Models = HERE, json_: JsonFlag = False
) -> Answer:
    """The manifest of a version, and its history."""
    books = Registry(registry, population)
    made = books.manifest(version)
    history = [entry for entry in books.history() if entry.get("version") == version]
    view = _view(made)
    view += [f"{_date(entry['time'])} {entry['what']} by {escape(str(entry['by']))}" for entry in history]
    return Answer(made.payload() | {"history": history}, view)


def verify(population: Population, registry: Models = HERE, json_: JsonFlag = False) -> Answer:
    """Check every signature, file, tensor and delta; exit 20 when one is not good."""
    found = Registry(registry, population).verify()
    bad = {version: text for version, text in found.items() if text != "good"}
    rows = [[str(version), text] for version, text in found.items()]
    code = 20 if bad else 0
    return Answer({"versions": found, "good": not bad}, [table("", ["version", "state"], rows, left=2)], code)


def promote(
    version: Version,
    population: Population,
    alias: Annotated[str, typer.Option(help="champion or canary.")] = "champion",
    traffic: Annotated[int, typer.Option(help="Thousandths of the devices that get a canary.")] = 50,
    registry: Models = HERE,
    keys: Keys = KEYS,
    json_: JsonFlag = False,
) -> Answer:
    """Let devices use a version: all of them, or a share."""
    after = Registry(registry, population).promote(
        version, KeyFolder(keys, population).online(), alias, traffic
    )
    return Answer(vars(after), [f"{population}: version {version} is {alias}"])


def rollback(
    version: Version,
    population: Population,
    registry: Models = HERE,
    keys: Keys = KEYS,
    json_: JsonFlag = False,
) -> Answer:
    """Make an earlier version champion again; a canary ends."""
    after = Registry(registry, population).rollback(version, KeyFolder(keys, population).online())
    return Answer(vars(after), [f"{population}: version {version} is champion again"])


def refresh(
    population: Population, registry: Models = HERE, keys: Keys = KEYS, json_: JsonFlag = False
) -> Answer:
    """Sign anew what is past half of its life; run it daily where no service with --keys does."""
    books = Registry(registry, population)
    done = books.renew(KeyFolder(keys, population).online())
    ends = {role: _date(books.state().expires(role)) for role in ROLES}
    rows = [[role, "signed anew" if role in done else "", when] for role, when in ends.items()]
    return Answer({"renewed": done, "expires": ends}, [table("", ["role", "", "expires"], rows, left=2)])


def bundle(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    population: Population,
    registry: Models = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Copy the champion with its signed metadata into a new FOLDER, for an app to bring along as its start model."""
    made = write_bundle(Registry(registry, population), folder)
    hint = f"Client.open(..., start_model={str(folder)!r})"
    return Answer(made.payload() | {"folder": folder}, [*_view(made), escape(hint)])


def _manifests(books: Registry) -> tuple[list[Manifest], dict[int, str]]:
    """Those that can be believed, and what is wrong with the others."""
    good, damaged = [], {}
    for version in books.versions():
        try:
            good.append(books.manifest(version))
        except (UpdateRejected, RegistryError) as error:
            damaged[version] = str(error)
            notice(f"version {version} is damaged: {error}")
    return good, damaged


def _view(made: Manifest) -> list[RenderableType]:
    rows = [
        ["version", str(made.version)],
        ["model", f"{made.model_kind}, {made.n_items:,} items"],
        ["size", f"{sum(entry.size for entry in made.files.values()) / 2**20:.2f} MiB"],
        [
            "deltas",
            ", ".join(f"from {v}: {e.size / 2**10:.0f} kiB" for v, e in made.deltas.items()) or "none",
        ],
        ["created", _date(made.created)],
        ["needs client", made.min_client_version],
        *([f"privacy: {name}", str(value)] for name, value in made.privacy.items()),
    ]
    return [table(f"{made.population}, version {made.version}", ["", ""], rows, left=2)]


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (OverflowError, ValueError) as error:
        raise RunError(f"time {seconds} is none: the manifest is of no use") from error
