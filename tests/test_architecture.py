"""Who may know whom: no circles, no two packages that import each other, private modules, short public lists.

Imports inside functions and for types alone count as all others do. `fedrec/__init__`, `fedrec_client/__init__` and
their like are facades: lazy tables of names on top of everything, from which no module of ours may import.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {
    "fedrec": ROOT,
    "fedrec_server": ROOT / "server",
    "fedrec_client": ROOT / "client",
    "fedrec_simulations": ROOT / "simulations",
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file; a package stands for its `__init__`."""
    found = {}
    for package, home in HOMES.items():
        for path in sorted((home / package).rglob("*.py")):
            parts = path.relative_to(home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Modules of ours that a source imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module


@cache
def graph() -> dict[str, frozenset[str]]:
    known = set(modules())
    return {
        name: frozenset(imports(path.read_text("utf-8"), known)) - {name} for name, path in modules().items()
    }


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """What is left when modules that import nothing of the rest are taken away again and again."""
    rest = {name: set(imported) for name, imported in edges.items()}
    while leaves := {name for name, imported in rest.items() if not imported}:
        rest = {name: imported - leaves for name, imported in rest.items() if name not in leaves}
    # Of the rest, drop what no other one imports: it only leads to a circle.
    while unused := set(rest) - set().union(*rest.values()) if rest else set():
        rest = {name: imported - unused for name, imported in rest.items() if name not in unused}
    return [sorted(rest)] if rest else []


def package_of(name: str) -> str:
    return name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]


def test_a_circle_is_seen() -> None:
    edges = {
        "a": frozenset("b"),
        "b": frozenset("c"),
        "c": frozenset("b"),
        "d": frozenset("a"),
        "e": frozenset(),
    }
    assert circles(edges) == [["b", "c"]]
    assert not circles({"a": frozenset("b"), "b": frozenset()})
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\n"
    )
    assert set(imports(source, {"a", "b", "b.c"})) == {"a", "b.c"}


def test_no_module_is_in_a_circle() -> None:
    assert not circles(graph())


def test_no_two_packages_import_each_other() -> None:
    edges = {
        (package_of(name), package_of(imported)) for name, found in graph().items() for imported in found
    }
    assert not [(a, b) for a, b in edges if a < b and (b, a) in edges]


def test_private_modules_are_imported_within_their_package_only() -> None:
    for name, found in graph().items():
        for imported in found:
            first = next((k for k, part in enumerate(imported.split(".")) if part.startswith("_")), None)
            if first is not None:
                owner = ".".join(imported.split(".")[:first])
                assert f"{name}.".startswith(f"{owner}."), f"{name} imports the private {imported}"


@pytest.mark.parametrize("package", sorted(HOMES))
def test_no_module_imports_from_a_facade(package: str) -> None:
    """A facade's names are for users; a module imports from where a name is defined."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == package:
                allowed = {"__version__"} | {
                    m.rpartition(".")[2] for m in modules() if m.startswith(f"{package}.")
                }
                assert {alias.name for alias in node.names} <= allowed, (
                    f"{name} imports from the facade {package}"
                )


def test_the_facade_of_the_sdk_names_what_exists() -> None:
    sdk = importlib.import_module("fedrec_client")
    for name in sdk.__all__:
        assert getattr(sdk, name) is not None
