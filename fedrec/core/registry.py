"""How a name in a configuration becomes a class: registered inside, by entry point or import path from outside.

    RECOMMENDERS = Registry[type[Recommender]]("recommenders", "model.kind", packages=("fedrec.recommenders",))

    @RECOMMENDERS.register("transitions")            # inside, or in a module that is imported
    class Transitions(Recommender): ...

    [project.entry-points."fedrec.recommenders"]     # an installed package, loaded when its name is asked for
    transitions = "my_package:Transitions"

    kind = "my_package:Transitions"                  # in a configuration, without an entry point

Modules of `packages` are imported when a name or the list of names is first asked for, so that a file registers what
is in it and no other file has to name it. A name is registered once: a second class under it is an error.
Out of scope: what is registered, and what its configuration says.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from fedrec.core.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for.

    Args:
        group: as in the entry-point group `fedrec.<group>`.
        key: the key of a configuration that names one, for messages.
        packages: whose modules register by being imported; modules that begin with `_` are passed over.
    """

    def __init__(self, group: str, key: str, packages: tuple[str, ...] = ()) -> None:
        self.group = f"fedrec.{group}"
        self.key = key
        self._packages = packages
        self._found: dict[str, T] = {}
        self._is_complete = not packages

    def register(self, *names: str) -> Callable[[T], T]:
        """A decorator that registers a class or function under its names.

        Raises:
            ConfigError: a name that stands for another object already.
        """

        def add(made: T) -> T:
            for name in names:
                if self._found.setdefault(name, made) is not made:
                    raise ConfigError(
                        f"{self.key} {name!r}: registered by {self._found[name]!r} and {made!r}; rename one of them"
                    )
            return made

        return add

    def names(self) -> list[str]:
        """Every name, sorted: what is registered here and what installed packages bring."""
        self._complete()
        return sorted({*self._found, *(point.name for point in self._points())})

    def builtin(self) -> Iterator[tuple[str, T]]:
        """Names and objects of this process, without entry points, sorted by name."""
        self._complete()
        yield from sorted(self._found.items(), key=lambda item: item[0])

    def get(self, name: str, *, paths: bool = True) -> T:
        """What a name or an import path "package.module:Name" stands for.

        Args:
            name: as configured.
            paths: whether an import path is allowed; never for a name that came over a network.

        Raises:
            ConfigError: an unknown name, or a package that cannot be imported.
        """
        if name in self._found:
            return self._found[name]
        self._complete()
        if name in self._found:
            return self._found[name]
        for point in self._points():
            if point.name == name:
                return self._load(name, point.value)
        if paths and ":" in name:
            return self._load(name, name)
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{self.key} {name!r} is not known: {hint}expected one of {', '.join(self.names())}"
            + (', or an import path "package.module:Name"' if paths else "")
        )

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        for package in self._packages:
            found = importlib.import_module(package)
            for module in pkgutil.walk_packages(found.__path__, f"{package}."):
                if not any(part.startswith("_") for part in module.name.split(".")):
                    importlib.import_module(module.name)

    def _points(self) -> Iterator[EntryPoint]:
        yield from entry_points(group=self.group)

    def _load(self, name: str, path: str) -> T:
        module, _, attribute = path.partition(":")
        try:
            made: T = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{self.key} {name!r}: {path} cannot be imported ({error}); install its package, or correct the path"
            ) from error
        self._found[name] = made
        return made
