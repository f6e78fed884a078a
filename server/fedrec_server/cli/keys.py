"""`fedrec-server keys ...`: the ceremonies that make, replace and renew the keys of a population's repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec.core.errors import ConfigError, FedrecError
from fedrec_server.cli.answer import Answer, notice
from fedrec_server.cli.options import JsonFlag, Keys, Models, Population
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry

PASSPHRASE = "FEDREC_PASSPHRASE"

Offline = Annotated[
    Path | None, typer.Option("--offline", help="Folder of the offline keys, when it was moved away.")
]
Threshold = Annotated[int, typer.Option(min=1, help="So many root keys must sign.")]
HERE, MODELS = Path("keys"), Path("models")


def init(
    population: Population,
    keys: Keys = HERE,
    registry: Models = MODELS,
    root_keys: Annotated[int, typer.Option(min=1, max=9, help="So many root keys are made.")] = 1,
    threshold: Threshold = 1,
    json_: JsonFlag = False,
) -> Answer:
    """Make offline keys (under FEDREC_PASSPHRASE), online keys and the registry; its root.json is what apps pin."""
    _check_threshold(threshold, root_keys)
    folder = KeyFolder(keys, population)
    offline, online = folder.create(_passphrase(), root_keys)
    try:
        made = Registry.create(registry, population, offline, online, threshold=threshold)
    except (FedrecError, OSError):
        folder.remove((folder.offline_folder, folder.online_folder))
        raise
    pinned = made.folder / "root.json"
    notice(
        f"move {folder.offline_folder} to a machine that is not on the network: it is needed for ceremonies only"
    )
    facts = {"root": pinned, "offline": folder.offline_folder, "online": folder.online_folder}
    return Answer(facts, [f"pin {escape(str(pinned))} in apps"])


def rotate_online(
    population: Population,
    keys: Keys = HERE,
    registry: Models = MODELS,
    offline: Offline = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="The online keys in force are not here any more.")
    ] = False,
    json_: JsonFlag = False,
) -> Answer:
    """Replace the online keys, e.g. after one was stolen; devices forget what the old ones signed last."""
    folder = KeyFolder(keys, population, offline)
    books = Registry(registry, population)
    version = folder.replace_online(books, _passphrase(), lost=lost)
    return Answer({"root": version}, [f"root metadata {version}: new online keys are in force"])


def rotate_root(
    population: Population,
    keys: Keys = HERE,
    registry: Models = MODELS,
    offline: Offline = None,
    root_keys: Annotated[int, typer.Option(min=1, max=9, help="So many root keys are made.")] = 1,
    threshold: Threshold = 1,
    json_: JsonFlag = False,
) -> Answer:
    """Replace the offline keys; apps that pin the old root follow by themselves."""
    _check_threshold(threshold, root_keys)
    folder = KeyFolder(keys, population, offline)
    books = Registry(registry, population)
    version = folder.replace_offline(books, _passphrase(), root_keys=root_keys, threshold=threshold)
    return Answer({"root": version}, [f"root metadata {version}: new offline keys are in force"])


def renew(
    population: Population,
    keys: Keys = HERE,
    registry: Models = MODELS,
    offline: Offline = None,
    json_: JsonFlag = False,
) -> Answer:
    """Sign root and targets anew with the same keys, before they end (a year)."""
    folder = KeyFolder(keys, population, offline)
    same = (folder.offline(_passphrase()), folder.online())
    version = Registry(registry, population).replace_keys(same, same)
    return Answer({"root": version}, [f"root metadata {version}: the same keys, for another year"])


def _check_threshold(threshold: int, root_keys: int) -> None:
    if threshold > root_keys:
        raise ConfigError(f"threshold {threshold} with {root_keys} root keys: expected 1 to {root_keys}")


def _passphrase() -> str:
    """Of the offline keys.

    Raises:
        ConfigError: none is given, or it is short.
    """
    phrase = os.environ.get(PASSPHRASE, "")
    if len(phrase) < 8:
        raise ConfigError(
            f"offline keys need a passphrase of 8 characters: set {PASSPHRASE} in the environment"
        )
    return phrase
