"""Whatever bundle a SuperLink sends, a node runs what is installed; here with the SuperNode's own state and API.

What arrives at the SuperNode goes through its own code, and what serves it is the product's own; only SuperLink is
played, by an operator who sends what it likes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import flower_helpers  # noqa: F401 - imports Flower without its libraries' warnings
import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import FederationError, ProtocolError, RunError
from fedrec.core.processes import free_ports
from fedrec.core.refusals import FOREIGN, REFUSED
from fedrec.wire.bundle import BUNDLE, FILE, check_bundle, check_named, read_expected, write_expected
from fedrec_client.node.flower_tasks import Server, Tasks
from fedrec_server.federation.run_files import app_folder

NODE = 7
#: Leaves a trace wherever it is imported or run.
EVIL = "import pathlib, os\npathlib.Path(os.environ['CANARY']).write_text('ran')\n"
COMPONENT = (
    "from flwr.clientapp import ClientApp\napp = ClientApp()\n@app.query()\ndef query(m, c):\n    return m\n"
)
with warnings.catch_warnings():
    # pathspec, which Flower uses, has renamed one of its words.
    warnings.simplefilter("ignore", DeprecationWarning)
    OURS = build_fab_from_disk(app_folder())


def project(client: str = "evil.client:app", name: str = "fedrec-app", dependencies: str = "[]") -> bytes:
    """A pyproject.toml that names a component of the node."""
    return f"""
[project]
name = "{name}"
version = "0.1.0"
dependencies = {dependencies}
[tool.flwr.app]
publisher = "fedrec"
[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "{client}"
[tool.flwr.app.config]
run-dir = "/etc"
nodes = 1
wait-seconds = 1.0
""".encode()


def archive(files: dict[str, bytes]) -> bytes:
    """A bundle packed by hand, with names that Flower's own builder would not take."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
        lines = [f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}" for n, c in files.items()]
        made.writestr(".info/CONTENT", "\n".join(lines))
    return buffer.getvalue()


def ours_with(changed: dict[str, bytes]) -> bytes:
    """Our own bundle with files added or replaced; name, version and components are those of ours."""
    with zipfile.ZipFile(io.BytesIO(OURS)) as made:
        files = {name: made.read(name) for name in made.namelist() if name != ".info/CONTENT"}
    return archive(files | changed)


EVIL_CODE = (EVIL + COMPONENT).encode()
FOREIGN_BUNDLES = {
    "another app": archive({"pyproject.toml": project(name="loot"), "evil/client.py": EVIL_CODE}),
    "our name, another component": archive({"pyproject.toml": project(), "evil/client.py": EVIL_CODE}),
    "our component changed": ours_with({"fedrec_flower_app/client.py": EVIL_CODE}),
    "a package that shadows ours": archive(
        {
            "pyproject.toml": project("fedrec_client.node.flower_app:app"),
            "fedrec_client/__init__.py": EVIL.encode(),
            "fedrec_client/node/flower_app.py": EVIL_CODE,
        }
    ),
    "a package that shadows numpy": ours_with({"numpy/__init__.py": EVIL.encode()}),
    "code that Python runs at its start": ours_with(
        {"sitecustomize.py": EVIL.encode(), "usercustomize.py": EVIL.encode(), "evil.pth": b"import evil\n"}
    ),
    "paths out of its folder": ours_with(
        {"../../../../tmp/evil.py": EVIL.encode(), "/tmp/evil.py": EVIL.encode()}
    ),
    "dependencies to install": archive(
        {"pyproject.toml": project("fedrec_flower_app.client:app", dependencies='["evil>=1"]')}
    ),
    "one comment more": ours_with({"fedrec_flower_app/__init__.py": b"# harmless\n"}),
    "bytes behind the archive": OURS + b"\0",
    "bytes before the archive": b"#!/bin/sh\n" + OURS,
}


class Node:
    """A SuperNode as far as one that serves messages sees it, and an operator who sends to it."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.secret, self.folder = secrets.token_bytes(32), folder
        self.objects = ObjectStoreFactory()
        self.factory = NodeStateFactory(self.objects)
        self.state = self.factory.state()
        self.state.set_node_id(NODE)
        api = create_app(self.factory, self.secret)
        self._api = uvicorn.Server(uvicorn.Config(api, "127.0.0.1", port, log_level="critical", ws="none"))
        self._thread = threading.Thread(target=self._api.run)
        self._thread.start()
        while not self._api.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        self.answered: list[str] = []
        self.server = Server(f"127.0.0.1:{port}", folder, component=self._component)
        self.tasks = Tasks(self.server.address, self.secret)
        self._runs = 0

    def _component(self, message: Message, context: Context) -> Message:
        self.answered.append(str(message.content["q"]["word"]))
        if message.content["q"]["word"] == "fail":
            raise KeyError("user 4711 saw film 12")
        return Message(RecordDict({"a": ConfigRecord({"said": "installed"})}), reply_to=message)

    def end(self) -> None:
        self.tasks.close()
        self._api.should_exit = True
        self._thread.join(20)

    def send(
        self, bundle: bytes, word: str = "hello", *, run: int | None = None, digest: str = "", kind: str = ""
    ) -> int:
        """What a SuperLink hands out goes through the SuperNode's own code; the run's number.

        Args:
            bundle: bytes of the run's bundle.
            word: of the message.
            run: of an earlier message; default: a new one.
            digest: under which SuperLink names the bundle; default: the true one.
            kind: of the run's main task, as SuperLink says.
        """
        self._runs += run is None
        run_id = self._runs if run is None else run
        digest = digest or hashlib.sha256(bundle).hexdigest()
        content = RecordDict({"q": ConfigRecord({"word": word})})
        about = Metadata(run_id, "", 1, NODE, "", "1", time.time(), 60.0, "query")
        message = make_message(metadata=about, content=content)
        message.metadata.__dict__["_message_id"] = message.object_id
        told = Run.create_empty(run_id)
        told.fab_id, told.fab_version, told.fab_hash = "fedrec/fedrec-app", "0.1.0", digest
        told.series_id, told.primary_task_type = run_id, kind or TaskType.SERVER_APP
        parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        bare = make_message(metadata=message.metadata, content=RecordDict())
        assert (
            _pull_and_store_message(
                state=self.state,
                object_store=self.objects.store(),
                node_config={"node-dir": str(self.folder)},
                receive=lambda: (bare, get_object_tree(message)),
                get_run=lambda _: told,
                get_fab=lambda name, _: Fab(name, bundle, {}),
                pull_object=lambda _, name: parts[name],
                confirm_message_received=lambda *_: None,
                trusted_entities=None,
            )
            == run_id
        )
        return run_id

    def serve(self) -> Message:
        """What the SuperNode would send to SuperLink for the message that waits."""
        task = self.tasks.take()
        assert task is not None
        self.server.serve(task)
        (reply,) = self.state.get_messages_legacy(is_reply=True)
        return reply


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def supernode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("node"))
    yield made
    made.end()


@pytest.fixture
def node(supernode: Node) -> Node:
    """The same one for all tests: what was refused before leaves no trace."""
    write_expected(supernode.folder)
    supernode.answered.clear()
    return supernode


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Warnings and errors in the node's log."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Keep(logging.WARNING)
    logging.getLogger("flwr").addHandler(handler)
    yield found
    logging.getLogger("flwr").removeHandler(handler)


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a bundle is run, imported or written, and nothing looks for it."""
    canary, home, here = tmp_path / "canary", tmp_path / "home", tmp_path / "here"
    monkeypatch.setenv("CANARY", str(canary))
    monkeypatch.setenv("FLWR_HOME", str(home))
    here.mkdir()
    monkeypatch.chdir(here)
    paths, modules = list(sys.path), set(sys.modules)
    files = set(tmp_path.rglob("*"))
    yield
    assert sys.path == paths
    assert not {name.split(".")[0] for name in set(sys.modules) - modules} & {
        "evil",
        "fedrec_flower_app",
        "sitecustomize",
        "usercustomize",
    }
    assert set(tmp_path.rglob("*")) == files and not Path("/tmp/evil.py").exists()


def test_the_bundle_that_flower_builds_is_the_one_that_nodes_expect() -> None:
    assert hashlib.sha256(OURS).hexdigest() == BUNDLE
    check_bundle(OURS, BUNDLE)


def test_our_own_bundle_is_served_by_what_is_installed(node: Node, untouched: None) -> None:
    node.send(OURS)
    reply = node.serve()
    assert not reply.has_error() and node.answered == ["hello"]


@pytest.mark.parametrize("name", FOREIGN_BUNDLES)
def test_another_bundle_is_refused_in_one_line(
    node: Node, lines: list[str], untouched: None, name: str
) -> None:
    bundle = FOREIGN_BUNDLES[name]
    node.send(bundle)
    reply = node.serve()
    assert (reply.error.code, reply.error.reason) == (REFUSED, FOREIGN)
    assert node.answered == []
    (line,) = lines
    assert hashlib.sha256(bundle).hexdigest() in line and BUNDLE in line and "nothing of it was run" in line
    assert "\n" not in line and node.tasks.take() is None


def test_a_refused_bundle_does_not_end_the_node(node: Node, lines: list[str]) -> None:
    for name in ("another app", "our component changed"):
        node.send(FOREIGN_BUNDLES[name])
        assert node.serve().has_error()
        node.send(OURS)
        assert not node.serve().has_error()
    assert node.answered == ["hello"] * 2 and len(lines) == 2


def test_another_bundle_under_the_digest_of_ours_does_not_come_in(node: Node, untouched: None) -> None:
    """Flower's SuperNode compares the two and ends; the digest that decides here is computed anew all the same."""
    with pytest.raises(ValueError, match="hash mismatch"):
        node.send(FOREIGN_BUNDLES["our component changed"], digest=BUNDLE)
    assert node.tasks.take() is None


def test_a_bundle_that_changes_between_two_messages_is_refused(node: Node, untouched: None) -> None:
    """Every message is evaluated by the bundle that lies there, not by one that was good before."""
    run = node.send(OURS)
    assert not node.serve().has_error()
    other = FOREIGN_BUNDLES["our component changed"]
    held = node.state.fab_store  # type: ignore[attr-defined]
    held[BUNDLE] = Fab(BUNDLE, other, {})
    node.send(other, "again", run=run)
    assert node.serve().error.reason == FOREIGN and node.answered == ["hello"]
    held[BUNDLE] = Fab(BUNDLE, OURS, {})
    node.send(OURS, "once more", run=run)
    assert not node.serve().has_error() and node.answered == ["hello", "once more"]


@pytest.mark.parametrize("bundle", [OURS, FOREIGN_BUNDLES["another app"]])
def test_a_task_for_another_program_of_flowers_is_refused(
    node: Node, lines: list[str], untouched: None, bundle: bytes
) -> None:
    """SuperLink decides of which kind a run is; for one kind Flower starts a program that runs agents."""
    node.send(bundle, kind=TaskType.AGENT_APP)
    assert node.serve().error.reason == FOREIGN and node.answered == []
    (line,) = lines
    assert "flwr-agentapp" in line and "expected flwr-clientapp" in line


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[]", '{"sha256": null}', '{"sha256": "%s"}' % ("0" * 64)]
)
def test_a_node_whose_folder_names_no_bundle_of_its_own_serves_nothing(
    node: Node, lines: list[str], content: str | None
) -> None:
    path = node.folder / FILE
    path.unlink() if content is None else path.write_text(content)
    node.send(OURS)
    reply = node.serve()
    assert (reply.error.code, reply.error.reason) == (REFUSED, FOREIGN) and node.answered == []
    assert len(lines) == 1 and "nothing of it was run" in lines[0]


def test_a_node_file_cannot_name_another_bundle(tmp_path: Path) -> None:
    """Whoever writes the folder or signs the task does not choose either: it is fixed by what is installed."""
    other = hashlib.sha256(FOREIGN_BUNDLES["another app"]).hexdigest()
    write_expected(tmp_path, other)
    with pytest.raises(ProtocolError, match="same version"):
        read_expected(tmp_path)
    with pytest.raises(RunError, match="prepare the run"):
        read_expected(tmp_path / "nowhere")


@given(
    st.one_of(st.none(), st.text(max_size=70), st.integers(), st.just(BUNDLE.upper()), st.just(BUNDLE[:-1]))
)
def test_only_the_whole_digest_is_the_digest(named: object) -> None:
    with pytest.raises(ProtocolError):
        check_named(named)


@given(st.integers(0, len(OURS) - 1), st.integers(1, 255))
def test_one_changed_byte_is_another_bundle(place: int, by: int) -> None:
    changed = bytearray(OURS)
    changed[place] ^= by
    with pytest.raises(ProtocolError):
        check_bundle(bytes(changed), BUNDLE)


def test_a_failure_of_the_component_tells_nothing(node: Node) -> None:
    node.send(OURS, "fail")
    reply = node.serve()
    assert reply.has_error() and "4711" not in str(reply.error.reason)


def test_who_does_not_know_the_secret_gets_no_message(node: Node) -> None:
    """Another user of the machine can reach the port."""
    node.send(OURS)
    other = Tasks(node.server.address, secrets.token_bytes(32))
    with closing(other), pytest.raises(FederationError, match="hands out no tasks"):
        other.take()
    assert not node.serve().has_error()


def test_without_a_supernode_there_is_nothing_to_do() -> None:
    with closing(Tasks(f"127.0.0.1:{free_ports(1)[0]}", bytes(32))) as tasks:
        assert tasks.take() is None
