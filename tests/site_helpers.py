"""A server for sites without Flower's programs: real keys, terms, packages and nodes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fedrec_server.federation.flower_cli import FlowerCli, NodeStatus
from fedrec_server.operations.specification import TaskSpecification
from fedrec_server.sites.addresses import Addresses
from fedrec_server.sites.run import lay_out
from fedrec_server.sites.server import SiteServer

ITEMS = [f"item-{k:02d}" for k in range(12)]
TASK = TaskSpecification.model_validate(
    {
        "model": {"kind": "mf", "embedding_size": 4, "learning_rate": 0.1},
        "federation": {"rounds": 2, "deadline_seconds": 5, "wait_seconds": 5},
        "privacy": {"unit": "user", "trust": "distributed", "epsilon": 1e3, "delta": 1e-6, "force": True},
    }
)


def table(path: Path, site: str, users: int = 4) -> Path:
    """A site's table; each user has three items, and one that is not in the catalogue."""
    rows = [f"{site}{u},{ITEMS[(3 * u + k) % len(ITEMS)]}" for u in range(users) for k in range(3)]
    path.write_text("user,item\n" + "\n".join([*rows, f"{site}0,elsewhere"]) + "\n")
    return path


def server_of(root: Path, users: int = 12) -> SiteServer:
    """With addresses, certificates and a run."""
    Addresses("fed.example.org", names=("10.77.0.1",)).create(root, 90.0)
    lay_out(root, TASK, ITEMS, users)
    return SiteServer(root)


class FlowerStandIn:
    """Flower's registry of nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[str, str] = {}
        self._ids = itertools.count(7)
        monkeypatch.setattr(FlowerCli, "register", lambda _, path, name: self.register(path, name))
        monkeypatch.setattr(FlowerCli, "unregister", lambda _, node: self.nodes.pop(node))
        online = {"status": "online", "seconds": 1.0}
        monkeypatch.setattr(FlowerCli, "node_status", lambda _: {n: NodeStatus(**online) for n in self.nodes})

    def register(self, path: Path, name: str) -> str:
        assert path.read_text().startswith("ecdsa-sha2-nistp384 ")
        node = str(next(self._ids))
        self.nodes[node] = name
        return node
