"""The process of one training session: lays out a node in a private folder and runs a SuperNode on it.

Started by `run_task`; what it needs comes over its standard input, so that nothing personal stands in a command line
or an environment. It ends when it is killed: a session has no orderly end of its own. When the app dies, its end of
the input closes: then the session removes its files and kills itself.

    FOLDER/node/     node.json, the person's interactions, keys; in memory where the system allows it
    FOLDER/sent      one line per answer that left: kind, round, bytes
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# Flower reports home by default; it reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from fedrec.data.interactions import Interactions
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.learning.settings import NodeSettings
from fedrec.models.registry import parse
from fedrec.privacy.terms import PrivacyTerms
from fedrec.processes import program
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import parse_terms
from fedrec_client import warm_start
from fedrec_client.flower_app import SENT
from fedrec_client.node import write_node


def main() -> None:
    """Read the session from standard input and serve it until killed."""
    folder, wanted = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_app, args=(folder,), daemon=True).start()
    lay_out(folder / "node", wanted)
    (folder / "superlink.crt").write_text(wanted["superlink_ca"])
    (folder / "key").touch(0o600)
    (folder / "key").write_text(wanted["node_key"])
    command = supernode(folder, wanted["superlink"], wanted["port"])
    warm = folder / "warm"
    warm_start.write_program(warm)
    sys.exit(warm_start.serve(command, warm, warm_start.load()))


def end_with_app(folder: Path) -> None:
    """Wait for the end of the input, then leave nothing behind."""
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def lay_out(folder: Path, wanted: dict[str, Any]) -> None:
    """The folder of a node with one person.

    Args:
        folder: to be made.
        wanted: node (parts of node.json), item_ids, history (places of items, oldest first), user_key, identity.
    """
    history = np.array(wanted["history"], dtype=np.int64)
    train = Interactions(
        np.zeros(len(history), np.int64),
        history,
        np.ones(len(history), np.float32),
        np.arange(len(history), dtype=np.int64),
        np.array(["this device"]),
        np.array(wanted["item_ids"]),
    )
    node = wanted["node"]
    write_node(
        folder,
        Split(train, None, None, user_key=np.array([wanted["user_key"]], dtype=np.int64)),
        parse(node["model"]),
        NodeSettings.model_validate(node["settings"]),
        EvaluationSettings.model_validate(node["evaluation"]),
        privacy=PrivacyTerms.model_validate(node["privacy"]) if node["privacy"] else None,
        aggregation=parse_terms(node["aggregation"]),
        identity=Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(wanted["identity"]))),
    )
    (folder / SENT).touch(0o600)


def supernode(folder: Path, superlink: str, port: int) -> list[str]:
    """Command of the SuperNode; paths only."""
    command = [program("flower-supernode"), "--superlink", superlink]
    command += ["--root-certificates", str(folder / "superlink.crt")]
    command += ["--auth-supernode-private-key", str(folder / "key")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--node-config", f"node-dir={json.dumps(str(folder / 'node'))}"]


if __name__ == "__main__":
    main()
