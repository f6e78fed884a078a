"""Limits and admissions as an operator writes them: NAME=VALUE, NAME=FILE."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec_server.devices.admission.verifier import Admission, AdmissionSettings, make_admission
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.state.database import State
from fedrec_server.network.limits import Limits

#: Of the model service alone.
_OTHERS = {"downloads", "downloads_per_address", "reports_per_address", "reports_per_day"} | {
    "piece_seconds",
    "download_seconds",
}


def limit_names() -> list[str]:
    """Every limit that can be set, sorted."""
    own = {field.name for field in fields(DeviceLimits)} - {"network"}
    return sorted(own | {field.name for field in fields(Limits)} - _OTHERS)


def parse_limits(given: Iterable[str]) -> DeviceLimits:
    """The usual limits with some changed.

    Args:
        given: NAME=VALUE; a later one replaces an earlier one.

    Raises:
        ConfigError: a name that is not a limit, or a value that is not valid for it.
    """
    limits = DeviceLimits()
    for entry in given:
        name, _, value = entry.partition("=")
        if name not in limit_names():
            near = difflib.get_close_matches(name, limit_names(), 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(limit_names())}"
            raise ConfigError(f"--limit {name!r} is not a limit: {hint}")
        if any(field.name == name for field in fields(DeviceLimits)):
            limits = replace(limits, **{name: _value(name, value, getattr(limits, name))})
        else:
            changed = {name: _value(name, value, getattr(limits.network, name))}
            limits = replace(limits, network=replace(limits.network, **changed))
    return limits


def parse_admissions(given: Iterable[str], state: State) -> dict[str, Admission]:
    """Verifiers by name; without any, every device may join.

    Args:
        given: NAME or NAME=FILE.
        state: where used tokens are noted.

    Raises:
        ConfigError: a name that is not known, or one twice.
        ServiceError: a file that cannot be used.
    """
    made: dict[str, Admission] = {}
    for entry in given:
        name, _, file = entry.partition("=")
        if name in made:
            raise ConfigError(f"--admission {name!r} is given twice: expected each name once")
        made[name] = make_admission(name, AdmissionSettings(state, Path(file) if file else None))
    return made


def _value(name: str, text: str, usual: Any) -> Any:
    kind = type(usual)
    least = 0 if name == "hold_seconds" else None
    try:
        value = kind(text)
    except ValueError as error:
        raise ConfigError(f"--limit {name}={text!r}: expected a number like {usual}") from error
    if not value < float("inf") or value < 0 or (value == 0 and least is None):
        raise ConfigError(f"--limit {name}={text!r}: expected a number above 0")
    return value
