"""Sites enrol with keys that they made; the operator admits them; a package is enough to train."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from site_helpers import ITEMS, TASK, FlowerStandIn, server_of, table

from fedrec.core.errors import ConfigError, FedrecError, RoundAbandoned, RunError, ServiceError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.data.tabular import Columns, read_interactions
from fedrec.wire.site_files import SiteEnrolment, SitePackage
from fedrec_client.node import site as sites
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.site_cohorts import sites_only
from fedrec_server.rounds.coordinator import open_coordinator
from fedrec_server.sites.addresses import Addresses
from fedrec_server.sites.keys import enrol
from fedrec_server.sites.run import lay_out
from fedrec_server.sites.server import SiteServer

COLUMNS = Columns("user", "item")


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> FlowerStandIn:
    return FlowerStandIn(monkeypatch)


def node_of(server: SiteServer, folder: Path, name: str) -> Path:
    """A site from its keys to its node's folder; only two files pass between it and the server."""
    enrol(folder, name, 4)
    server.admit(SiteEnrolment.read(folder / "enrolment.json")).write(folder / "package.json")
    rows = read_interactions(table(folder / "table.csv", name), COLUMNS)[0]
    return sites.lay_out(folder, SitePackage.read(folder / "package.json"), rows)


class InProcess:
    """An exchange to sites' nodes, by the names under which they are registered."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def nodes(self) -> list[str]:
        return list(self._nodes)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        out: dict[str, Reply | Failure] = {}
        for name, request in requests.items():
            try:
                out[name] = self._nodes[name].handle(request)
            except FedrecError as error:
                out[name] = Failure(str(error))
        return out


def test_sites_train_with_what_the_two_files_say(tmp_path: Path, flower: FlowerStandIn) -> None:
    server = server_of(tmp_path / "server")
    names = ["amsterdam", "berlin", "cork"]
    nodes = {name: open_node(node_of(server, tmp_path / name, name), deployed=True) for name in names}
    folder = server.current() / "coordinator"
    events: list[dict[str, object]] = []
    outcome = open_coordinator(
        folder, InProcess(nodes), devices=sites_only(folder), on_event=events.append
    ).run()
    assert outcome.finished and outcome.rounds == 2
    assert [event["nodes"] for event in events] == [3, 3] and not any(e["failures"] for e in events)
    assert {each.enrolment.name for each in server.admitted()} == set(flower.nodes.values()) == set(names)


def test_a_site_that_was_not_admitted_is_in_no_sum(tmp_path: Path, flower: FlowerStandIn) -> None:
    server = server_of(tmp_path / "server", users=16)
    names = ["amsterdam", "berlin", "cork", "dublin"]
    nodes = {name: open_node(node_of(server, tmp_path / name, name), deployed=True) for name in names}
    server.remove("cork")
    folder = server.current() / "coordinator"
    events: list[dict[str, object]] = []
    # Of 16 planned users 12 are left: the floor of the plan (0.8) is not reached, and nothing is let out.
    with pytest.raises(RoundAbandoned, match="start more nodes"):
        open_coordinator(folder, InProcess(nodes), devices=sites_only(folder), on_event=events.append).run()
    assert all(event["nodes"] == 0 for event in events)
    assert set(flower.nodes.values()) == {"amsterdam", "berlin", "dublin"}


def test_keys_never_leave_the_site(tmp_path: Path, flower: FlowerStandIn) -> None:
    server = server_of(tmp_path / "server")
    node_of(server, tmp_path / "site", "berlin")
    secrets = [(tmp_path / "site" / name).read_bytes() for name in ("key", "identity.key")]
    for path in (p for p in (tmp_path / "server").rglob("*") if p.is_file()):
        assert not any(secret in path.read_bytes() for secret in secrets), path
    for name in ("key", "identity.key"):
        assert (tmp_path / "site" / name).stat().st_mode & 0o777 == 0o600
    package = json.loads((tmp_path / "site" / "package.json").read_text())
    assert str(tmp_path / "server") not in json.dumps(package)


def test_an_operator_is_told_why_a_site_is_not_admitted(tmp_path: Path, flower: FlowerStandIn) -> None:
    server = server_of(tmp_path / "server")
    node_of(server, tmp_path / "one", "berlin")
    known = SiteEnrolment.read(tmp_path / "one" / "enrolment.json")
    assert server.admit(known) == SitePackage.read(tmp_path / "one" / "package.json")  # again is free
    assert len(flower.nodes) == 1
    enrol(tmp_path / "two", "berlin", 4)
    enrol(tmp_path / "three", "cork", 9)
    with pytest.raises(RunError, match="same name or key"):
        server.admit(SiteEnrolment.read(tmp_path / "two" / "enrolment.json"))
    with pytest.raises(RunError, match="same name or key"):
        server.admit(SiteEnrolment("dublin", known.node_key, "cd" * 32, 1))
    with pytest.raises(RunError, match="planned for 12"):
        server.admit(SiteEnrolment.read(tmp_path / "three" / "enrolment.json"))
    with pytest.raises(RunError, match="not admitted: those that are: berlin"):
        server.remove("cork")
    with pytest.raises(RunError, match="enrolled already"):
        enrol(tmp_path / "one", "berlin", 4)
    assert len(flower.nodes) == 1


def test_a_package_that_does_not_fit_the_site(tmp_path: Path, flower: FlowerStandIn) -> None:
    server = server_of(tmp_path / "server")
    folder = node_of(server, tmp_path / "site", "berlin")
    package = SitePackage.read(tmp_path / "site" / "package.json")
    rows = read_interactions(tmp_path / "site" / "table.csv", COLUMNS)[0]
    promises = (folder / "secagg.json").read_bytes()
    assert sites.lay_out(tmp_path / "site", package, rows) == folder  # a second start lays out nothing
    assert (folder / "secagg.json").read_bytes() == promises
    other = server.package("cork")
    with pytest.raises(RunError, match="for site cork"):
        sites.lay_out(tmp_path / "site", other, rows)
    fewer = read_interactions(table(tmp_path / "few.csv", "berlin", 3), COLUMNS)[0]
    shutil.rmtree(tmp_path / "site" / "runs")
    with pytest.raises(RunError, match="3 users and 4 were enrolled"):
        sites.lay_out(tmp_path / "site", package, fewer)
    plain = dict(package.node) | {"aggregation": {"kind": "plain", "insecure": True}}
    without = SitePackage(package.name, package.gateway, package.ca, package.run, plain, package.items)
    with pytest.raises(RunError, match="not for sites"):
        sites.lay_out(tmp_path / "site", without, rows)


def test_a_kill_while_a_node_is_laid_out_costs_nothing(
    tmp_path: Path, flower: FlowerStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(tmp_path / "server")
    rename, calls = Path.rename, []

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        node_of(server, tmp_path / "site", "berlin")
    assert calls
    monkeypatch.setattr(Path, "rename", rename)
    package = SitePackage.read(tmp_path / "site" / "package.json")
    rows = read_interactions(tmp_path / "site" / "table.csv", COLUMNS)[0]
    folder = sites.lay_out(tmp_path / "site", package, rows)
    assert [path.name for path in folder.parent.iterdir()] == ["berlin"]
    open_node(folder, deployed=True)


def test_items_keep_the_order_of_the_package_and_users_their_own_randomness(
    tmp_path: Path, flower: FlowerStandIn
) -> None:
    server = server_of(tmp_path / "server")
    rows = read_interactions(table(tmp_path / "t.csv", "x"), COLUMNS)[0]
    one, two = (sites.split_of(rows, server.package(name)) for name in ("berlin", "cork"))
    assert one.train.item_ids.tolist() == ITEMS
    assert "elsewhere" in rows.item_ids and len(one.train) == 12 == len(rows) - 1
    for user in range(4):
        named = {ITEMS[(3 * user + k) % len(ITEMS)] for k in range(3)}
        assert {ITEMS[k] for k in one.train.history(user)} == named
    assert one.user_key is not None and two.user_key is not None
    assert (one.user_key >= 0).all() and not np.isin(one.user_key, two.user_key).any()


def test_commands_say_where_the_parts_listen(tmp_path: Path) -> None:
    where = Addresses("fed.example.org", "10.77.0.1", 4443, 4444, "127.0.0.1", ("fed-2.example.org",))
    where.create(tmp_path, 30.0)
    server = SiteServer(tmp_path)
    assert server.addresses == where and where.gateway == "fed.example.org:4443"
    assert where.hosts == ("fed.example.org", "10.77.0.1", "fed-2.example.org")
    gateway, superlink = " ".join(server.gateway()[0]), " ".join(server.superlink()[0])
    assert "--host 10.77.0.1 --port 4443" in gateway and "--upstream https://127.0.0.1:4444" in gateway
    assert "--host 127.0.0.1 --port 4444" in superlink and "--enable-supernode-auth" in superlink
    assert "--insecure" not in superlink and (tmp_path / "superlink").stat().st_mode & 0o77 == 0
    assert server.superlink()[1]["FLWR_TELEMETRY_ENABLED"] == "0" and "PATH" in os.environ
    with pytest.raises(RunError, match="exists"):
        where.create(tmp_path, 30.0)
    with pytest.raises(ConfigError, match="same port"):
        Addresses(gateway_port=9091)
    assert Addresses("2001:db8::1").gateway == "[2001:db8::1]:9092"


def test_a_task_that_is_not_for_sites(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="sites init"):
        SiteServer(tmp_path / "none")
    Addresses().create(tmp_path, 30.0)
    with pytest.raises(RunError, match="sites task"):
        SiteServer(tmp_path).current()
    exact = type(TASK).model_validate(
        {
            "model": {"kind": "mf"},
            "federation": {"clip_norm": 1.0},
            "privacy": {"unit": "none", "exact_sums": True},
        }
    )
    with pytest.raises(ConfigError, match=r"privacy\.unit is 'none'"):
        lay_out(tmp_path, exact, ITEMS, 12)
    with pytest.raises(ConfigError, match="each id once"):
        lay_out(tmp_path, TASK, [*ITEMS, ITEMS[0]], 12)
    with pytest.raises(ConfigError, match=r"at least secagg\.min_nodes"):
        lay_out(tmp_path, TASK, ITEMS, 2)
    assert not (tmp_path / "runs").exists()


def test_a_removed_site_is_not_waited_for_until_it_is_admitted_again(
    tmp_path: Path, flower: FlowerStandIn
) -> None:
    server = server_of(tmp_path / "server")
    node_of(server, tmp_path / "site", "berlin")
    launch = Launch(server.current() / "coordinator")
    assert not launch.left()
    server.remove("berlin")
    assert launch.left() == {"berlin"} and not server.admitted() and not flower.nodes
    server.admit(SiteEnrolment.read(tmp_path / "site" / "enrolment.json"))
    assert not launch.left() and len(server.admitted()) == len(flower.nodes) == 1


def test_changed_addresses_are_in_the_certificates_and_the_ca_stays(tmp_path: Path) -> None:
    before = Addresses("one.example.org")
    assert before.ensure(tmp_path, 30.0) and not before.ensure(tmp_path, 30.0)
    ca = (tmp_path / "tls" / "ca.crt").read_bytes()
    after = Addresses("two.example.org", gateway_port=4443)
    assert after.ensure(tmp_path, 30.0) and Addresses.read(tmp_path) == after
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls" / "gateway.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"one.example.org", "two.example.org"} <= set(names.get_values_for_type(x509.DNSName))
    assert (tmp_path / "tls" / "ca.crt").read_bytes() == ca
    (tmp_path / "tls" / "ca.key").unlink()
    with pytest.raises(ServiceError, match="bring the CA's key back"):
        before.ensure(tmp_path, 30.0)
    assert Addresses.read(tmp_path) == after
