"""Entry point `fedrec`."""

from __future__ import annotations

from fedrec_server.cli.launch import launch


def main() -> None:
    """The console script."""
    launch("fedrec", "fedrec_simulations.cli.commands", "sim")


if __name__ == "__main__":
    main()
