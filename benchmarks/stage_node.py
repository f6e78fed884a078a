"""The node program with the component of `flower_stages` in the place of the installed one, for `flower_rounds`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from fedrec_client.node import node_program
from fedrec_client.node.flower_tasks import Server

#: In the environment: SHA-256 of the bundle that belongs to this component.
WORD = "FEDREC_STAGES_BUNDLE"


def prepare(server: Server) -> Server:
    """The same server with the component of the benchmark."""
    sys.path.append(str(Path(__file__).parent / "flower_stages"))
    from fedrec_stages.client import app

    return replace(server, component=app, bundle=os.environ[WORD])


if __name__ == "__main__":
    node_program.main(prepare)
