"""The page of a privacy statement: `privacy.json` for users, without any outside reference.

The sentences come from the statement; this page only lays them out, the warnings first. Out of scope: what is true.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedrec.core.errors import RunError
from fedrec.privacy.statement import FIELDS, Statement
from fedrec_simulations.report import html

TITLES = {
    "unit": "Who or what is protected",
    "adversary_and_trust": "Against whom, and who must be trusted",
    "adjacency": "What is compared",
    "guarantee": "The guarantee",
    "released": "What is released",
    "not_covered": "What is not covered",
    "mechanism": "How it is done",
    "sampling": "Who takes part",
    "accountant": "How epsilon was computed",
    "budget_period_and_composition": "The budget, and other runs",
    "audit": "Audit",
    "provenance": "Where this comes from",
}
#: What a reader needs first; the rest is for those who want to check it.
FIRST = ("guarantee", "not_covered", "adversary_and_trust", "unit")


def write_privacy_page(path: Path, statement: Statement) -> Path:
    """Write the HTML page of a statement.

    Raises:
        RunError: the statement lacks a field, or the page cannot be written.
    """
    missing = [name for name in FIELDS if name not in statement]
    if missing:
        raise RunError(f"privacy statement without {', '.join(missing)}: expected all fields; write it again")
    return html.write(path, html.render("privacy.html", _contents(statement)))


def _contents(statement: Statement) -> dict[str, Any]:
    return {
        "private": statement["private"],
        "headline": statement["headline"],
        "warnings": statement["warnings"],
        "tiles": _tiles(statement),
        "first": [_section(statement, name) for name in FIRST],
        "rest": [_section(statement, name) for name in FIELDS if name not in FIRST],
        "same": _same_schedule(statement["accountant"].get("same_schedule")),
    }


def _section(statement: Statement, name: str) -> dict[str, Any]:
    values = {key: value for key, value in statement[name].items() if key not in ("text", "same_schedule")}
    return {
        "name": name,
        "title": TITLES[name],
        "text": statement[name]["text"],
        "values": {key.replace("_", " "): _shown(value) for key, value in values.items()},
    }


def _tiles(statement: Statement) -> list[tuple[str, str]]:
    """The numbers that belong together, so that none is quoted without the others."""
    found = statement["guarantee"]
    if not statement["private"] or "max_hits_at_1_percent_false_alarms" not in found:
        return []
    tiles = [
        (f"epsilon for each {statement['unit']['unit']} ({found['tier']})", _shown(found["epsilon"])),
        ("delta", _shown(found["delta"])),
        ("users", f"{found['population']:,}"),
        ("trust", str(statement["adversary_and_trust"]["trust"])),
        (
            "of those in the data, found by the best attacker at 1% false alarms, at most",
            f"{found['max_hits_at_1_percent_false_alarms']:.1%}",
        ),
    ]
    if "user_epsilon" in found:
        tiles.insert(1, ("epsilon for a whole user", _shown(found["user_epsilon"])))
    own = statement["adversary_and_trust"].get("server_epsilon", found["epsilon"])
    if own != found["epsilon"]:
        tiles.insert(1, ("epsilon against the server, which sees each node", _shown(own)))
    return tiles


def _same_schedule(costs: dict[str, Any] | None) -> list[tuple[str, str]]:
    names = {
        "pld": "epsilon by privacy loss distributions",
        "rdp": "epsilon by Rényi divergences",
        "without_amplification": "epsilon without any benefit of sampling",
        "replace_one": "epsilon when one contribution may be replaced by another",
        "mu": "mu, as one Gaussian, without sampling",
        "rho": "rho, zero-concentrated, without sampling",
        "delta": "all at delta",
    }
    return [(name, _shown(costs[key])) for key, name in names.items() if key in costs] if costs else []


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        # A schedule of a hundred equal numbers says no more than one of them.
        return (
            f"{_shown(value[0])}, {len(value)} times"
            if len(set(map(str, value))) == 1 < len(value)
            else (", ".join(map(_shown, value)) or "none")
        )
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(each)}" for key, each in value.items()) or "none"
    return str(value)


def read_statement(path: Path) -> Statement:
    """A `privacy.json`.

    Raises:
        RunError: it is missing or broken.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read: expected the privacy.json of a run; run it again") from error
