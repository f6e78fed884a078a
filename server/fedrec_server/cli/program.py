"""Runs a command line of one of the programs: prints its answer, turns errors into one line and an exit code.

    exit 0 success · 2 wrong command line · 3..20 see `fedrec.core.errors` · 130 interrupted, a checkpoint is left

A traceback means a bug in fedrec, never a user's mistake. Out of scope: the commands (each in its module).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click
from rich.console import Console

from fedrec.core.errors import FedrecError, RunError
from fedrec.core.extras import needs
from fedrec_server.cli.answer import INTERRUPTED, Answer, notice, to_json
from fedrec_server.cli.lazy import Group, command_of

USAGE = 2
#: What a disk says that takes no more: full, over the quota, read-only, broken.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def run(name: str, program: Group, arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code.

    Args:
        name: of the program.
        program: its commands.
        arguments: what follows the program's name.
    """
    as_json = "--json" in arguments
    # Understood in any position, also where the command is missing or wrong.
    rest = [argument for argument in arguments if argument != "--json"] or ["--help"]
    try:
        with needs(f"`{' '.join((name, *rest[:2]))}`"):
            answer = command_of(name, program).main(rest, prog_name=name, standalone_mode=False)
    except FedrecError as error:
        return _fail(str(error), error.exit_code, as_json)
    except OSError as error:
        if error.errno not in DISK:
            raise
        return _fail(_of_disk(error), RunError.exit_code, as_json)
    except click.ClickException as error:
        return _usage(name, error, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED, as_json)
    if isinstance(answer, Answer):
        return _print(answer, as_json)
    # `--help` has printed its text.
    return INTERRUPTED if answer == INTERRUPTED else 0


def _of_disk(error: OSError) -> str:
    what = error.filename or "the file that was being written"
    return (
        f"{what}: {error.strerror}; what was written before is whole: make room, or give another folder, and run the "
        "same command again"
    )


def _print(answer: Answer, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(to_json(answer.document) + "\n")
        return answer.exit_code
    console = Console(highlight=False)
    if not console.is_terminal:
        # No one's window: lines are as long as they are, so that they can be searched and cut.
        console = Console(highlight=False, width=160)
    for part in answer.view:
        console.print(part, soft_wrap=isinstance(part, str))
    return answer.exit_code


def _usage(name: str, error: click.ClickException, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else name
    return _fail(f"{error.format_message().rstrip('.')}: see `{path} --help`", USAGE, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    if as_json:
        sys.stdout.write(to_json({"error": line, "exit_code": code}) + "\n")
    else:
        notice(f"error: {line}", "bold red")
    return code
