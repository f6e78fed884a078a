"""The experiment files that come with fedrec, by name."""

from __future__ import annotations

from pathlib import Path

import fedrec_simulations
from fedrec.core.errors import ConfigError


def experiments_folder() -> Path | None:
    """The experiments that come with fedrec: inside the installed package, or beside it in a checkout."""
    package = Path(fedrec_simulations.__file__).parent
    for folder in (package / "experiments", package.parent / "experiments"):
        if any(folder.glob("*.toml")):
            return folder
    return None


def find_config(source: str) -> Path:
    """The file that CONFIG names.

    Raises:
        ConfigError: there is none.
    """
    path, folder = Path(source), experiments_folder()
    if path.exists() or path.suffix:
        return path
    known = sorted(file.stem for file in folder.glob("*.toml")) if folder else []
    if folder and source in known:
        return folder / f"{source}.toml"
    raise ConfigError(
        f"configuration {source!r} is neither a file nor an experiment of fedrec: give a TOML file or one of "
        f"{', '.join(known) or '(none installed)'}"
    )
