"""Commands that are imported when they run, so that help and wrong command lines cost next to nothing.

A program is a `Group`: names of commands ("package.module:function") and of further groups. What help shows of a
command is the first line of its docstring, which is read from the source without running the module.
Out of scope: what a command answers (`answer`), and errors (`program`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Group:
    """Commands under one name.

    Attributes:
        help: one line on what they are for.
        commands: by name, in the order of the help: "package.module:function", or another group.
    """

    help: str
    commands: Mapping[str, str | Group]

    def walk(self, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every command: its words and its "package.module:function"."""
        for name, entry in self.commands.items():
            if isinstance(entry, Group):
                yield from entry.walk((*before, name))
            else:
                yield (*before, name), entry


def command_of(name: str, group: Group) -> click.Group:
    """The click group of a table; `command_of("fedrec", PROGRAM).main(arguments)` runs a command line."""
    return _LazyGroup(name, group)


def load(name: str, target: str) -> click.Command:
    """The click command of "package.module:function", imported now."""
    module, _, function = target.partition(":")
    called: Callable[..., Any] = getattr(importlib.import_module(module), function)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, context_settings=_HELP_OPTIONS)(called)
    return typer.main.get_command(app)


def summary(target: str) -> str:
    """The first line of the docstring of "package.module:function"."""
    module, _, function = target.partition(":")
    return _docstrings(module)[function].partition("\n")[0]


class _Deferred(TyperCommand):
    """A command whose module is imported when it runs."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name)
        self.target = target


class _LazyGroup(TyperGroup):
    def __init__(self, name: str, group: Group) -> None:
        commands: dict[str, click.Command] = {
            word: _LazyGroup(word, entry) if isinstance(entry, Group) else _Deferred(word, entry)
            for word, entry in group.commands.items()
        }
        super().__init__(
            name=name,
            commands=commands,
            help=group.help,
            no_args_is_help=False,
            context_settings=_HELP_OPTIONS,
        )

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for command in self.commands.values():
            if isinstance(command, _Deferred):
                command.help = summary(command.target)
        super().format_help(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(str(name), command.target) if isinstance(command, _Deferred) else command, rest


@functools.cache
def _docstrings(module: str) -> Mapping[str, str]:
    """Docstrings of a module's functions by name; the module is not run."""
    spec = importlib.util.find_spec(module)
    read = getattr(spec.loader, "get_source", None) if spec else None
    source = read(module) if read else None
    if source is None:  # installed without its source
        return {name: part.__doc__ or "" for name, part in vars(importlib.import_module(module)).items()}
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {node.name: ast.get_docstring(node) or "" for node in functions}
