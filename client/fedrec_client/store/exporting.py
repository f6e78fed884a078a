"""Everything in a store as JSON lines, for the user whose data it is; and events back into another store.

An export is the user's own copy: no later deletion reaches it, and the receipt of one says so.
Each line is an object with "kind": "event" (its fields), "record" (name and value) or "entry" (log, number, value).
A value that is JSON stands as it is under "json"; any other as base64 under "bytes".
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedrec.core.errors import DataError
from fedrec.core.files import create, sync_folder
from fedrec_client.store.base import Store
from fedrec_client.store.events import Event


def export_lines(store: Store) -> Iterator[str]:
    """All events, records and log entries."""
    for event in store.events():
        yield json.dumps({"kind": "event"} | event.to_json(), sort_keys=True)
    for name in store.names():
        content = _value(store.get(name) or b"")
        yield json.dumps({"kind": "record", "name": name} | content, sort_keys=True)
    for log in store.logs():
        for number, value in enumerate(store.entries(log), start=1):
            yield json.dumps({"kind": "entry", "log": log, "number": number} | _value(value), sort_keys=True)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Into a new file, for its owner only; nothing is left where that cannot be.

    It is written under its own name: a kill leaves half a file where the user looks for it, not one that is hidden.

    Raises:
        DataError: the file exists or cannot be written.
    """
    if os.path.lexists(path):
        raise DataError(f"{path} is there already: give a new file")
    try:
        handle = create(path)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): give another") from error


def import_events(store: Store, lines: Iterable[str]) -> int:
    """Events of `export_lines` into a store; how many were new. All of them, or none when a line is bad.

    Raises:
        DataError: a line is not one of an export.
    """
    added = 0
    with store.transaction():
        for number, line in enumerate(lines, start=1):
            try:
                plain = json.loads(line)
                kind = plain.pop("kind")
            except (ValueError, KeyError, AttributeError) as error:
                raise DataError(
                    f"line {number} is no line of an export: give the file of export_data"
                ) from error
            if kind == "event":
                added += store.add_event(Event.parse(plain))
    return added


def _value(value: bytes) -> dict[str, Any]:
    try:
        return {"json": json.loads(value)}
    except ValueError:
        return {"bytes": base64.b64encode(value).decode()}
