"""Entry point `fedrec`: what must happen before anything else is imported. The rest is in `app`."""

from __future__ import annotations

import os
import sys

from fedrec.core.errors import EnvironmentProblem


def main() -> None:
    """The console script."""
    # Flower reports home unless this is set before its import.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        from fedrec_simulations.cli.app import run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: package {error.name!r} is missing: pip install 'fedrec[sim]'\n")
        sys.exit(EnvironmentProblem.exit_code)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
