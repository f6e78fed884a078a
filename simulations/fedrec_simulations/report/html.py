"""Self-contained HTML pages from templates, the same way for every kind of page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fedrec.core.errors import RunError
from fedrec.core.files import PUBLIC, atomic_write

#: Where templates lie that pages share.
SHARED = "fedrec_simulations.report"


def render(template: str, contents: Mapping[str, Any], package: str = SHARED) -> str:
    """A template of a package, filled in; head, style and tables come from the shared ones."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(SHARED)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(contents)


def write(path: Path, html: str) -> Path:
    """Write a page, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, html.encode(), PUBLIC)
    except OSError as error:
        raise RunError(f"page {path} cannot be written ({error.strerror}): give another file") from error
    return path
