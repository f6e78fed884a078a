"""Starts a program: what must happen before anything else is imported. The rest is in `program`."""

from __future__ import annotations

import importlib
import os
import sys

from fedrec.core.errors import EnvironmentProblem
from fedrec.core.extras import needs


def launch(name: str, table: str, extra: str) -> None:
    """Run the command line of this process and exit.

    Args:
        name: of the program.
        table: module with its commands, as `PROGRAM`.
        extra: of fedrec that the program needs.
    """
    # Flower reports home unless this is set before its import.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    # gRPC writes a line for every refused handshake: any caller who reaches a port could fill the disk.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with needs(name, extra):
            from fedrec_server.cli.program import run

            program = importlib.import_module(table).PROGRAM
    except EnvironmentProblem as problem:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(problem.exit_code)
    code = run(name, program, sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
