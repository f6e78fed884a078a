"""`fedrec config show|task|schema`: what a configuration means, its task for an operator, and all keys."""

from __future__ import annotations

import tomllib
from typing import Any

from rich.markup import escape

from fedrec_server.cli.answer import Answer, to_json
from fedrec_simulations.cli.options import ConfigArgument, JsonFlag, Overrides, find_config
from fedrec_simulations.cli.toml_text import to_toml
from fedrec_simulations.experiments.config import Config, load_config


def show(config: ConfigArgument, overrides: Overrides = None, json_: JsonFlag = False) -> Answer:
    """The configuration with every default filled in; each value says where it comes from."""
    path = find_config(config)
    resolved = load_config(path, overrides or ())
    values = resolved.model_dump(mode="json")
    text = to_toml(values, lambda where: _source(where, tomllib.loads(path.read_text()), overrides or []))
    warnings = resolved.warnings()
    return Answer({"config": values, "warnings": warnings}, [_literal(text), *(f"# {w}" for w in warnings)])


def task(config: ConfigArgument, overrides: Overrides = None, json_: JsonFlag = False) -> Answer:
    """The task of an experiment for `fedrec-server job create`: without its data, as TOML."""
    values = load_config(find_config(config), overrides or ()).task().model_dump(mode="json")
    return Answer({"task": values}, [_literal(to_toml(values, lambda where: ""))])


def schema(json_: JsonFlag = False) -> Answer:
    """The JSON schema of a configuration, for editors that check TOML."""
    document = Config.model_json_schema()
    return Answer(document, [_literal(to_json(document))])


def _source(where: tuple[str, ...], given: dict[str, Any], overrides: list[str]) -> str:
    if any(text.partition("=")[0].strip() == ".".join(where) for text in overrides):
        return "--set"
    inside: Any = given
    for key in where:
        if not isinstance(inside, dict) or key not in inside:
            return "default"
        inside = inside[key]
    return ""


def _literal(text: str) -> str:
    return escape(text.rstrip("\n"))
