"""Lazy tables of public names: a package's `__init__` lists them, and each is loaded when it is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fedrec.core.extras import needs


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        homes: public name to the module that defines it, or to "module:name" where it is called otherwise there.

    The former raises AttributeError for other names, and EnvironmentProblem, in one line, where a name needs a
    package of an extra that is not installed.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = homes[name].partition(":")
        with needs(f"{package}.{name}"):
            found = getattr(importlib.import_module(module), own or name)
        setattr(sys.modules[package], name, found)
        return found

    return getattr_, lambda: sorted({*vars(sys.modules[package]), *homes})
