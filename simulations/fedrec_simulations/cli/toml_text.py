"""Plain values as TOML text (the standard library only reads TOML). None is left out: TOML has no null."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Note = Callable[[tuple[str, ...]], str]
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any], note: Note = lambda path: "") -> str:
    """TOML with one table per nested mapping.

    Args:
        values: text, numbers, truth values, lists of them and mappings.
        note: a comment to stand behind the value at a path; empty: none.
    """
    return "\n".join(_table(values, (), note)).strip() + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...], note: Note) -> list[str]:
    flat = {
        key: value for key, value in values.items() if not isinstance(value, Mapping) and value is not None
    }
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and flat else []
    for key, value in flat.items():
        comment = note((*path, key))
        lines.append(f"{_key(key)} = {_value(value)}" + (f"  # {comment}" if comment else ""))
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*path, key), note)
    return lines


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # Text as in JSON is valid TOML, except that TOML wants DEL escaped, which no configuration holds.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
