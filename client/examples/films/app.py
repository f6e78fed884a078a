"""Starts the example app: `python client/examples/films/app.py [--people 4] [--port 8080] [--offline]`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the folder above is where `films` is found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    try:
        from films.command import main  # takes seconds
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
