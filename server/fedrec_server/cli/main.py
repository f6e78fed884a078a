"""Entry point `fedrec-server`."""

from __future__ import annotations

from fedrec_server.cli.launch import launch


def main() -> None:
    """The console script."""
    launch("fedrec-server", "fedrec_server.cli.commands", "server")


if __name__ == "__main__":
    main()
