"""How a name in a configuration becomes a class: registered inside, by entry point or import path from outside.

    RULES = Registry[type[AggregationRule]]("aggregation_rules", "aggregation.rule", ("fedrec_server.rounds.rules",))

    @RULES.register("trimmed_mean")                     # inside, or in a module that is imported
    class TrimmedMean: ...

    [project.entry-points."fedrec.aggregation_rules"]   # an installed package, imported when its name is asked for
    mine = "my_package:Mine"

    rule = "my_package:Mine"                            # in a configuration, without an entry point

A file registers what is in it, and no other file has to name it. Nothing is imported before it is asked for. A name
is registered once: a second object under it is an error.

An import path runs code. It is followed only where the configuration is the caller's own (`paths=True`); what arrives
over a network may name what is built in, what this process has registered, and what is installed with an entry point.

Out of scope: what is registered, and what its configuration says.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

from fedrec.core.errors import ConfigError

T = TypeVar("T")
U = TypeVar("U")

#: Validation context (pydantic's) of a configuration that is the caller's own.
OWN_CONFIGURATION = {"import_paths": True}


def paths_allowed(context: object) -> bool:
    """Whether a validation context is that of a configuration of the caller's own."""
    return isinstance(context, Mapping) and bool(context.get("import_paths"))


class Registry(Generic[T]):
    """Names and what they stand for.

    Args:
        group: as in the entry-point group `fedrec.<group>`.
        key: the key of a configuration that names one, for messages.
        packages: packages or modules that register by being imported; names that begin with `_` are passed over.
        by_module: a module of `packages` is named like what it registers, so that it alone has to be imported.
        check: raises ConfigError for a name and an object that does not fulfil the contract.
    """

    def __init__(
        self,
        group: str,
        key: str,
        packages: tuple[str, ...] = (),
        *,
        by_module: bool = False,
        check: Callable[[str, object], None] | None = None,
    ) -> None:
        self.group = f"fedrec.{group}"
        self.key = key
        self._packages, self._by_module, self._check = packages, by_module, check
        self._found: dict[str, T] = {}
        self._origin: dict[str, str] = {}

    def register(self, *names: str) -> Callable[[U], U]:
        """A decorator that registers a class, a function or another object under its names.

        Raises:
            ConfigError: a name that stands for another object already, or an object that breaks the contract.
        """
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))

        def add(made: U) -> U:
            by_helper = hasattr(made, "__qualname__") and not self._is_ours(caller)
            origin = str(made.__module__) if by_helper else caller
            for name in names:
                self._add(name, made, origin)
            return made

        return add

    def names(self) -> list[str]:
        """Every name, sorted: fedrec's own, those of this process, and those that installed packages bring."""
        names = {*self.builtin_names(), *self._found, *self._points()}
        return sorted(name for name in names if ":" not in name)

    def builtin_names(self) -> list[str]:
        """Names of fedrec's own objects, sorted."""
        if self._by_module:
            return sorted(self._modules())
        self._import_all()
        return sorted(name for name, origin in self._origin.items() if self._is_ours(origin))

    def builtin(self) -> Iterator[tuple[str, T]]:
        """Names and objects of fedrec's own, sorted by name."""
        for name in self.builtin_names():
            yield name, self.get(name)

    def get(self, name: str, *, paths: bool = False) -> T:
        """What a name or an import path "package.module:Name" stands for.

        Args:
            name: as configured.
            paths: whether modules are imported because the name says so; never for a name that came over a network.

        Raises:
            ConfigError: an unknown name, a package that cannot be imported, or an object of another kind.
        """
        if name not in self._found:
            self._import_of(name)
        if name not in self._found:
            point = self._points().get(name)
            if point is not None:
                self._load(name, point)
            elif ":" in name:
                self._follow(name, paths)
        if name not in self._found:
            raise ConfigError(self._unknown(name, paths))
        return self._found[name]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """What others than fedrec register within the block is forgotten after it; for tests and documentation."""
        before = set(self._found)
        try:
            yield
        finally:
            for name in [*self._found]:
                if name not in before and not self._is_ours(self._origin[name]):
                    del self._found[name], self._origin[name]

    # Parts -----------------------------------------------------------------------------------------------

    def _add(self, name: str, made: object, origin: str) -> None:
        if self._check is not None:
            self._check(name, made)
        known = self._found.get(name)
        if known is not None and known is not made and _defined(known) != _defined(made):
            raise ConfigError(
                f"{self.key} {name!r} of {origin} is registered by {self._origin[name]} already: rename one of them"
            )
        self._found[name], self._origin[name] = cast(T, made), origin

    def _import_of(self, name: str) -> None:
        """Import what of ours may register a name."""
        if not self._by_module:
            self._import_all()
        elif name in (modules := self._modules()):
            importlib.import_module(modules[name])

    def _import_all(self) -> None:
        for package in self._packages:
            importlib.import_module(package)
        for module in self._modules().values():
            importlib.import_module(module)

    def _modules(self) -> dict[str, str]:
        """The modules of the packages by their last name."""
        out = {}
        for package in self._packages:
            path = getattr(importlib.import_module(package), "__path__", ())
            for found in pkgutil.walk_packages(path, f"{package}."):
                if not found.ispkg and "._" not in found.name:
                    out[found.name.rpartition(".")[2]] = found.name
        return out

    def _is_ours(self, origin: str) -> bool:
        return any(f"{origin}.".startswith(f"{package}.") for package in self._packages)

    def _points(self) -> dict[str, str]:
        from importlib.metadata import entry_points

        return {point.name: point.value for point in entry_points(group=self.group)}

    def _load(self, name: str, path: str) -> None:
        module, _, attribute = path.partition(":")
        try:
            made: object = importlib.import_module(module)
            for part in attribute.split("."):
                made = getattr(made, part)
        except Exception as error:  # whatever a foreign module raises
            raise ConfigError(
                f"{self.key} {name!r}: {path} cannot be imported ({error}); install its package, or correct the path"
            ) from error
        if self._found.get(name) is not made:
            self._add(name, made, path)

    def _follow(self, path: str, allowed: bool) -> None:
        """An import path: without leave only to what is registered already."""
        module = path.partition(":")[0]
        if not allowed and module not in sys.modules:
            raise ConfigError(self._not_followed(path))
        known = [*self._found.values()]
        self._load(path, path)
        if not allowed and not any(self._found[path] is made for made in known):
            del self._found[path], self._origin[path]
            raise ConfigError(self._not_followed(path))

    def _unknown(self, name: str, paths: bool) -> str:
        names = self.names()
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{self.key} {name!r} is not known: {hint}expected one of {', '.join(names)}" + (
            ', or an import path "package.module:Name"' if paths else ""
        )

    def _not_followed(self, path: str) -> str:
        return (
            f"{self.key} {path!r} is an import path, which is followed in your own configuration alone: import its "
            f"module before, or install its package with an entry point of {self.group}"
        )


def _defined(made: object) -> tuple[object, object]:
    """Where an object is defined; a module that is loaded again defines the same things."""
    return getattr(made, "__module__", None), getattr(made, "__qualname__", id(made))
