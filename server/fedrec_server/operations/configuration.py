"""Configurations as they are read: TOML and overrides into a frozen model, all problems reported at once.

Out of scope: which sections there are (`specification`; an experiment adds its own).
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedrec.core.errors import ConfigError
from fedrec.core.registry import OWN_CONFIGURATION
from fedrec.recommenders.registry import RECOMMENDERS

M = TypeVar("M", bound=BaseModel)
#: Errors of a model's kind, whose messages say everything.
KIND_PROBLEMS = ("missing_kind", "unknown_kind", "refused_kind")


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a file.

    Raises:
        ConfigError: the file cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"configuration {path} cannot be read ({error.strerror}): give an existing TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path} is not valid TOML ({error}): fix the line named") from error


def parse(
    kind: type[M], values: dict[str, Any], overrides: Sequence[str] = (), source: str = "configuration"
) -> M:
    """A configuration from plain values.

    Args:
        kind: its class.
        values: sections; changed by the overrides.
        overrides: `a.b=value` (value in TOML; bare words are text).
        source: for messages.

    Raises:
        ConfigError: any value is wrong; the message lists all problems.
    """
    override(values, overrides)
    try:
        return kind.model_validate(values, context=OWN_CONFIGURATION)
    except ValidationError as error:
        problems = "; ".join(_problem(kind, item, values) for item in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with overrides `a.b=value` (value in TOML; bare words are text) written into them.

    Raises:
        ConfigError: an override that cannot be read, or that leads through a value.
    """
    for text in overrides:
        _override(values, text)
    return values


def _override(values: dict[str, Any], text: str) -> None:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise ConfigError(
            f"--set {text!r}: expected section.key=value, for example --set federation.rounds=5"
        )
    *sections, key = path.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(
                f"--set {text!r}: {section!r} is a value, not a section; see `fedrec config show`"
            )
    try:
        target[key] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        target[key] = value


def _problem(kind: type[BaseModel], item: Any, values: dict[str, Any]) -> str:
    """One validation error as text: where, what was given, what was expected."""
    where = [str(part) for part in item["loc"] if part not in ("none", "private")]
    place = ".".join(where) or "top level"
    if item["type"] == "extra_forbidden":
        known = _keys_near(kind, where[:-1], values)
        near = difflib.get_close_matches(where[-1], known, n=1)
        return f"unknown key {place}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if item["type"] in KIND_PROBLEMS:
        return str(item["msg"]) if item["type"] == "unknown_kind" else f"{place}: {item['msg']}"
    if item["type"] == "missing":
        hint = {
            "privacy": " (nothing is assumed: set privacy.unit, 'none' switches differential privacy off)",
            "model": " (set model.kind)",
        }.get(place, "")
        return f"{place} is missing{hint}"
    if not where:
        return str(item["msg"]).removeprefix("Value error, ")
    given = json.dumps(item.get("input"), default=str)
    return f"{place} = {given[:80]}: {item['msg'].removeprefix('Value error, ')}"


def _keys_near(kind: type[BaseModel], sections: list[str], values: dict[str, Any]) -> list[str]:
    """Keys that are known in a section; deeper within a model, those of all kinds."""
    if sections == ["model"]:
        return list(RECOMMENDERS.get(values["model"]["kind"], paths=True).config_class.model_fields)
    schema = kind.model_json_schema()
    return sorted(set(_keys(schema))) if sections else list(schema["properties"])


def _keys(schema: object) -> Iterator[str]:
    """Names of properties anywhere in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _keys(part)
