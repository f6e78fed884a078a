"""`fedrec model ...`: the registry of models that devices use, and the keys that stand for them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.errors import ConfigError, RegistryError, RunError, UpdateRejected
from fedrec.wire.files import PUBLIC, atomic_write
from fedrec.wire.manifest import Manifest
from fedrec.wire.signing import RootKey, RoundKey
from fedrec_simulations.cli.answer import Answer, notice, table
from fedrec_simulations.cli.options import JsonFlag, RunArgument

if TYPE_CHECKING:
    from fedrec_server.registry import Registry

app = typer.Typer(help="Models that devices use: publish, promote, roll back; and the keys that sign them.")
PASSPHRASE = "FEDREC_PASSPHRASE"
DAY = 86_400

Models = Annotated[Path, typer.Option("--registry", help="Folder of the registry.")]
Population = Annotated[str, typer.Option("--population", help="Whose models.", show_default=False)]
Key = Annotated[Path, typer.Option("--key", help="Round key that signs.", show_default=False)]
Days = Annotated[float, typer.Option("--days", min=0.01, help="Devices refuse it after so many days.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", show_default=False)]
HERE = Path("models")


@app.command()
def root(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the secret key goes.", show_default=False)
    ],
    json_: JsonFlag = False,
) -> Answer:
    """Make a root key: FILE, encrypted under FEDREC_PASSPHRASE, and FILE's public half to pin in apps."""
    public = path.with_suffix(".pub")
    if public == path or public.exists():
        raise RunError(
            f"public key {public} is there already, or has the secret key's own name: it is not replaced; "
            "give another name, e.g. root.pem"
        )
    key = RootKey.generate()
    key.save(path, _passphrase())
    atomic_write(public, (key.public.hex() + "\n").encode(), PUBLIC)
    notice("keep the root key offline: it is needed only to delegate")
    return Answer(
        {"root": path, "public": public, "key": key.public.hex()}, [f"pin {escape(str(public))} in apps"]
    )


@app.command()
def delegate(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the round key goes.", show_default=False)
    ],
    root_key: Annotated[Path, typer.Option("--root", help="Secret root key.", show_default=False)],
    population: Population,
    serial: Annotated[int, typer.Option(min=1, help="Higher than every earlier one of this root.")] = 1,
    days: Days = 90.0,
    registry: Models = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Make a round key that may sign models and tasks of a population, and the registry if there is none."""
    from fedrec_server.registry import Registry

    secret = RootKey.load(root_key, _passphrase())
    now = time.time()
    Registry.create(registry, population, secret.public)
    key = RoundKey.generate(
        secret, population, serial=serial, not_before=now - DAY, not_after=now + days * DAY
    )
    key.save(path)
    facts = {"key": path, "population": population, "serial": serial, "days": days}
    return Answer(facts, [f"{escape(str(path))} may sign for {population} for {days:g} days"])


@app.command()
def publish(
    run: RunArgument,
    population: Population,
    key: Key,
    registry: Models = HERE,
    days: Days = 90.0,
    int8: Annotated[bool, typer.Option(help="Tables of 8-bit integers.")] = True,
    min_client: Annotated[str, typer.Option(help="Oldest client that can use it.")] = "0.1.0",
    json_: JsonFlag = False,
) -> Answer:
    """Sign the model of a finished run under the next version; no device uses it before it is promoted."""
    from fedrec.wire.package import Terms
    from fedrec_server.registry import Registry
    from fedrec_simulations.publishing import files_of_run
    from fedrec_simulations.run_folder import RunFolder

    files, summary = files_of_run(RunFolder.open(run), int8=int8)
    terms, secret = Terms(0, int(time.time()), days, min_client, summary), RoundKey.load(key)
    made = Registry(registry, population).publish(files, terms, secret)
    return _answer(
        made, secret, f"promote it with: fedrec model promote {made.version} --population {population}"
    )


@app.command("list")
def list_(population: Population, registry: Models = HERE, json_: JsonFlag = False) -> Answer:
    """All versions, and which are in use."""
    from fedrec_server.registry import Registry

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
            _date(made.expires),
            "" if made.restores is None else f"weights of {made.restores}",
        ]
        for made in manifests
    ]
    columns = ["version", "alias", "kind", "items", "size", "created", "expires", ""]
    document = {
        "population": population,
        "aliases": vars(aliases),
        "versions": [m.payload() for m in manifests],
        "damaged": damaged,
    }
    return Answer(document, [table(f"models of {population}", columns, rows, left=3)])


@app.command()
def show(
    version: Version, population: Population, registry: Models = HERE, json_: JsonFlag = False
) -> Answer:
    """The manifest of a version, and its history."""
    from fedrec_server.registry import Registry

    books = Registry(registry, population)
    made = books.manifest(version)
    history = [entry for entry in books.history() if entry.get("version") == version]
    view = _view(made)
    view += [f"{_date(entry['time'])} {entry['what']} by {escape(str(entry['by']))}" for entry in history]
    return Answer(made.payload() | {"history": history}, view)


@app.command()
def verify(population: Population, registry: Models = HERE, json_: JsonFlag = False) -> Answer:
    """Check every signature, file, tensor and delta; exit 20 when one is not good."""
    from fedrec_server.registry import Registry

    found = Registry(registry, population).verify()
    bad = {version: text for version, text in found.items() if text != "good"}
    rows = [[str(version), text] for version, text in found.items()]
    code = 20 if bad else 0
    return Answer({"versions": found, "good": not bad}, [table("", ["version", "state"], rows, left=2)], code)


@app.command()
def sign(
    version: Version,
    population: Population,
    key: Key,
    registry: Models = HERE,
    days: Days = 90.0,
    json_: JsonFlag = False,
) -> Answer:
    """Sign the weights of a version anew, with a new expiry, under the next version."""
    from fedrec_server.registry import Registry

    secret = RoundKey.load(key)
    made = Registry(registry, population).renew(version, int(time.time()), secret, days)
    return _answer(made, secret, f"the weights of {version}; promote it to let devices use it")


@app.command()
def promote(
    version: Version,
    population: Population,
    alias: Annotated[str, typer.Option(help="champion or canary.")] = "champion",
    traffic: Annotated[int, typer.Option(help="Thousandths of the devices that get a canary.")] = 50,
    registry: Models = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Let devices use a version: all of them, or a share."""
    from fedrec_server.registry import Registry

    books = Registry(registry, population)
    expires = books.manifest(version).expires
    if expires < time.time():
        raise RegistryError(
            f"version {version} ended on {_date(expires)}, devices would refuse it: "
            f"sign it anew with `fedrec model sign {version}` and promote that"
        )
    after = books.promote(version, alias, traffic)
    return Answer(vars(after), [f"{population}: version {version} is {alias}"])


@app.command()
def rollback(
    version: Version,
    population: Population,
    key: Key,
    registry: Models = HERE,
    days: Days = 90.0,
    json_: JsonFlag = False,
) -> Answer:
    """Publish the weights of an earlier version under a higher one, and make it champion."""
    from fedrec_server.registry import Registry

    secret = RoundKey.load(key)
    made = Registry(registry, population).rollback(version, int(time.time()), secret, days)
    return _answer(made, secret, f"the weights of {version}; it is champion now")


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


def _answer(made: Manifest, key: RoundKey, hint: str) -> Answer:
    ends = key.delegation.not_after
    if ends < made.expires:
        notice(
            f"the round key ends on {_date(ends)}, before this version: "
            "devices can fetch it only until then; delegate a new key with a higher serial in time"
        )
    return Answer(made.payload(), [*_view(made), escape(hint)])


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
        ["expires", _date(made.expires)],
        ["needs client", made.min_client_version],
        ["weights of", str(made.restores or "its own")],
        *([f"privacy: {name}", str(value)] for name, value in made.privacy.items()),
    ]
    return [table(f"{made.population}, version {made.version}", ["", ""], rows, left=2)]


def _passphrase() -> str:
    """Of the root key.

    Raises:
        ConfigError: none is given, or it is short.
    """
    phrase = os.environ.get(PASSPHRASE, "")
    if len(phrase) < 8:
        raise ConfigError(
            f"the root key needs a passphrase of 8 characters: set {PASSPHRASE} in the environment"
        )
    return phrase


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (OverflowError, ValueError) as error:
        raise RunError(f"time {seconds} is none: the manifest is of no use") from error
