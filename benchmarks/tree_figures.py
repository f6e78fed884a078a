"""Figures of the source tree, from its syntax alone: sizes, circles, comparisons of modes, documentation.

    python -m benchmarks.tree_figures [FOLDER ...]

prints one column for each folder (default: this checkout). A folder is a checkout of this repository, of any commit:
nothing of it is imported. Generated files (`*_pb2.py`) do not count.

* circles: groups of modules that reach each other by imports, those inside functions and for types alone included;
* mutual pairs: two packages of which modules import each other;
* comparisons of modes: comparisons and `case` patterns between a text that names a mode of privacy or aggregation and
  something called by one of `SUBJECTS`;
* private accesses in tests: `object._name` (but not of `self` and `cls`) and the same by `getattr` or `setattr`;
* public: functions, methods and classes without a leading underscore anywhere in their dotted name.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOMES = {
    "fedrec": ".",
    "fedrec_server": "server",
    "fedrec_client": "client",
    "fedrec_simulations": "simulations",
}
LONG_FUNCTION = 50
MODES = frozenset(
    (
        *("central", "distributed", "local", "user", "interaction", "none"),
        *("secagg", "sealed", "plain", "simulated"),
    )
)
SUBJECTS = frozenset(("unit", "trust", "aggregator", "mode"))
ACCESSORS = frozenset(("getattr", "setattr", "delattr", "hasattr"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: dotted.
        package: the dotted name of its package; of an `__init__`, itself.
    """

    name: str
    package: str
    lines: int
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, home: Path) -> Module:
        """The module of a file below the folder that holds its top-level package."""
        parts = path.relative_to(home).with_suffix("").parts
        text = path.read_text("utf-8")
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        return cls(name, package, text.count("\n"), ast.parse(text))


@dataclass
class Figures:
    """Rows of the table, in their order."""

    rows: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float | str) -> None:
        """One row; numbers are written plainly."""
        self.rows[name] = value if isinstance(value, str) else f"{value:,.0f}"


def figures(folder: Path) -> Figures:
    """All figures of a checkout."""
    modules = [m for package, home in HOMES.items() for m in _modules(folder / home / package, folder / home)]
    out = Figures()
    _sizes(modules, out)
    edges = _edges(modules)
    circles = _circles(edges)
    out.add("circles", len(circles))
    out.add("modules in circles", sum(map(len, circles)))
    out.add("mutual pairs of packages", _mutual_pairs(modules, edges))
    compared = {m.name: sum(1 for _ in _mode_comparisons(m.tree)) for m in modules}
    out.add("comparisons of modes", sum(compared.values()))
    out.add("files that compare modes", sum(count > 0 for count in compared.values()))
    tests = _modules(folder / "tests", folder)
    private = {m.name: sum(1 for _ in _private_accesses(m.tree)) for m in tests}
    out.add("test files", len(tests))
    out.add("private accesses in tests", sum(private.values()))
    out.add("test files with private accesses", sum(count > 0 for count in private.values()))
    _documentation(modules, out)
    return out


def _modules(folder: Path, home: Path) -> list[Module]:
    paths = sorted(path for path in folder.rglob("*.py") if not path.stem.endswith("_pb2"))
    return [Module.read(path, home) for path in paths]


# Sizes -----------------------------------------------------------------------------------------------------


def _sizes(modules: list[Module], out: Figures) -> None:
    files = [m.lines for m in modules]
    functions = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for m in modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    out.add("files", len(files))
    out.add("lines", sum(files))
    out.add("lines of a file, median", statistics.median(files))
    out.add("lines of a file, p90", _p90(files))
    out.add("lines of a file, most", max(files))
    out.add("functions", len(functions))
    out.add("lines of a function, median", statistics.median(functions))
    out.add("lines of a function, p90", _p90(functions))
    out.add(f"functions over {LONG_FUNCTION} lines", sum(length > LONG_FUNCTION for length in functions))
    out.add("private modules", sum(any(map(_is_private, m.name.split("."))) for m in modules))


def _p90(values: list[int]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[-1]


# Imports ---------------------------------------------------------------------------------------------------


def _edges(modules: list[Module]) -> dict[str, set[str]]:
    """Module to the modules of ours that it imports anywhere in it."""
    known = {m.name for m in modules}
    return {m.name: set(_imported(m.tree, known)) - {m.name} for m in modules}


def _imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in known else node.module
                if found in known:
                    yield found


def _circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of more than one module in which each reaches each."""
    reached = {name: _reached(name, edges) for name in edges}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in edges
        if name in reached[name]
    }
    return [set(group) for group in groups]


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """All modules at the end of a chain of imports; the start itself where a chain leads back."""
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += edges[name]
    return found


def _mutual_pairs(modules: list[Module], edges: dict[str, set[str]]) -> int:
    package = {m.name: m.package for m in modules}
    pairs = {(package[name], package[other]) for name, found in edges.items() for other in found}
    return sum(1 for a, b in pairs if a < b and (b, a) in pairs)


# Modes and private names -----------------------------------------------------------------------------------


def _mode_comparisons(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and _names_mode(node) and _has_subject(node):
            yield node
        elif isinstance(node, ast.Match) and _has_subject(node.subject):
            yield from (case for case in node.cases if _names_mode(case.pattern))


def _names_mode(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value in MODES for n in ast.walk(node))


def _has_subject(node: ast.AST) -> bool:
    """Whether something called by a word of `SUBJECTS` is looked at."""
    names = (
        n.attr if isinstance(n, ast.Attribute) else n.id if isinstance(n, ast.Name) else None
        for n in ast.walk(node)
    )
    indices = (n.slice for n in ast.walk(node) if isinstance(n, ast.Subscript))
    keys = (index.value for index in indices if isinstance(index, ast.Constant))
    return any(name in SUBJECTS for name in (*names, *keys))


def _private_accesses(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            second = node.args[1]
            if name in ACCESSORS and isinstance(second, ast.Constant) and _is_private(str(second.value)):
                yield node


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


# Documentation ---------------------------------------------------------------------------------------------


def _documentation(modules: list[Module], out: Figures) -> None:
    texts = [
        ast.get_docstring(node)
        for m in modules
        if not any(map(_is_private, m.name.split(".")))
        for node in _public(m.tree)
    ]
    several = sum(text is not None and "\n" in text for text in texts)
    out.add("public functions, methods and classes", len(texts))
    out.add("with a docstring", _share(sum(text is not None for text in texts), len(texts)))
    out.add("with a docstring of several lines", _share(several, len(texts)))
    out.add("with an example", sum(text is not None and ">>> " in text for text in texts))
    examples = sum((text or "").count(">>> ") for text in texts)
    out.add("lines of examples", examples)


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", default=[Path(__file__).parents[1]])
    folders = [folder.resolve() for folder in parser.parse_args().folders]
    columns = [figures(folder).rows for folder in folders]
    print(f"{'':40}" + "".join(f"{folder.name[-16:]:>18}" for folder in folders))
    for name in columns[0]:
        print(f"{name:40}" + "".join(f"{column[name]:>18}" for column in columns))


if __name__ == "__main__":
    main()
