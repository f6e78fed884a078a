"""A model that comes with the app, and models from a plain web server: verified as from a service."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire_helpers import DAY, NOW, POPULATION, PRIVACY, factors, items, keys, make_registry

from fedrec.core.errors import NotPublished, ServerBusy, ServiceError, UpdateRejected
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.package import Terms, pack_model
from fedrec_client import Client, Consent, MemoryStore
from fedrec_client.testing import FakePlatform
from fedrec_client.updates.folder_files import FolderFiles
from fedrec_client.updates.https_files import HttpsFiles
from fedrec_client.updates.transport import CheckIn
from fedrec_server.registry import Registry, write_bundle

OFFLINE, KEYS = keys()


def publish(registry: Registry, seed: int = 0, now: float = NOW) -> int:
    files = pack_model(factors(n=400, d=64, seed=seed), items(400), PRIVACY)
    version = registry.publish(files, Terms(0, int(now)), KEYS, now).version
    registry.promote(version, KEYS, now=now)
    return version


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = make_registry(tmp_path / "models", KEYS, offline=OFFLINE)
    publish(made)
    return made


def opened(folder: Path, registry: Registry, **settings: Any) -> Client:
    wanted = {"platform": FakePlatform(NOW), "store": MemoryStore()} | settings
    return Client.open(folder, population=POPULATION, trust=registry.pinned, **wanted)


# A start model


@pytest.fixture
def start(registry: Registry, tmp_path: Path) -> Path:
    write_bundle(registry, tmp_path / "start")
    return tmp_path / "start"


def test_the_first_list_is_not_empty_also_offline(registry: Registry, start: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "without", registry) as client:
        assert len(client.recommend(5)) == 0
    with opened(tmp_path / "with", registry, start_model=start) as client:
        assert len(client.recommend(5)) == 5 and client.status().model_version == 1
        assert client.status().model_state == "good" and client.status().metadata["root"] == 1


def test_an_app_that_was_long_in_a_shop_starts_with_it_and_says_that_it_is_old(
    registry: Registry, start: Path, tmp_path: Path
) -> None:
    platform = FakePlatform(NOW + 150 * DAY)
    with opened(tmp_path / "device", registry, start_model=start, platform=platform) as client:
        assert len(client.recommend(5)) == 5 and client.status().model_state == "expired"
        client.set_consent(Consent(train=True))
        assert "model" in client.eligible().codes


def test_a_newer_model_takes_its_place_and_it_never_comes_back(
    registry: Registry, start: Path, tmp_path: Path
) -> None:
    store = MemoryStore()
    settings = {"start_model": start, "store": store}
    opened(tmp_path / "device", registry, **settings)
    publish(registry, 1)
    with opened(tmp_path / "device", registry, server=FolderFiles(registry.public), **settings) as client:
        assert client.check_for_update() is not None and client.status().model_version == 2
    assert opened(tmp_path / "device", registry, **settings).status().model_version == 2
    shutil.rmtree(tmp_path / "device" / "models")
    again = opened(tmp_path / "device", registry, **settings)  # older metadata than was accepted
    assert again.status().model_version == 0 and "start model is refused" in again.status().model_state


@pytest.mark.parametrize(
    "where", ["metadata/timestamp.json", f"targets/{POPULATION}/models/1/*.{MODEL_FILE}"]
)
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_start_model_that_was_changed_is_refused_and_the_app_opens(
    registry: Registry, start: Path, tmp_path: Path, where: str, how: str
) -> None:
    (path,) = start.glob(where)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    if how == "missing":
        path.unlink()
    with opened(tmp_path / "device", registry, start_model=start) as client:
        assert len(client.recommend(5)) == 0 and "start model is refused" in client.status().model_state
        client.log_event("play", item="tt00001")


def test_a_start_model_of_other_keys_is_refused(registry: Registry, tmp_path: Path) -> None:
    other = make_registry(tmp_path / "others")
    write_bundle(registry, tmp_path / "start")
    client = Client.open(
        tmp_path / "device",
        population=POPULATION,
        trust=other.pinned,
        start_model=tmp_path / "start",
        platform=FakePlatform(NOW),
        store=MemoryStore(),
    )
    assert client.status().model_version == 0 and "not signed by the keys" in client.status().model_state


# Plain files of a web server


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts requests; answers as told; knows ranges only when told to."""

    status: int | None = None
    ranges = False
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012 - reset by the fixture
    cut: int | None = None

    def do_GET(self) -> None:
        cls = type(self)
        cls.asked.append((self.path, self.headers.get("Range")))
        if cls.status is not None:
            self.send_response(cls.status)
            self.send_header("Location", "/metadata/timestamp.json")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = 0
        if cls.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if cls.cut is not None and path.name.endswith(MODEL_FILE):
            body = body[: cls.cut]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(registry: Registry) -> Iterator[str]:
    Handler.status, Handler.ranges, Handler.asked, Handler.cut = None, False, [], None
    handler = functools.partial(Handler, directory=str(registry.public))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_public_folder_on_a_web_server_is_enough(registry: Registry, web: str, tmp_path: Path) -> None:
    with opened(tmp_path / "device", registry, server=web) as client:
        client.set_consent(Consent(metrics=True, train=True))
        info = client.check_for_update()
        assert info is not None and info.version == 1 and len(client.recommend(5)) == 5
        assert client.check_for_update() is None
        publish(registry, 1)
        info = client.check_for_update()
        assert info is not None and info.version == 2
        assert client.privacy_report().metrics_epsilon == 0  # a web server takes no counters: none left
        registry.rollback(1, KEYS, NOW)
        info = client.check_for_update()
        assert info is not None and info.version == 1


@pytest.mark.parametrize("ranges", [False, True])
def test_a_download_goes_on_where_it_was_cut(
    registry: Registry, web: str, tmp_path: Path, ranges: bool
) -> None:
    Handler.ranges, Handler.cut = ranges, 40_000
    with opened(tmp_path / "device", registry, server=web) as client:
        with pytest.raises(ServiceError):
            client.check_for_update()
        Handler.cut = None
        Handler.asked.clear()
        info = client.check_for_update()
        assert info is not None and len(client.recommend(3)) == 3
    asked = [wanted for path, wanted in Handler.asked if path.endswith(MODEL_FILE)]
    assert len(asked) == 1 and asked[0] is not None and asked[0].startswith("bytes=")
    assert int(asked[0].removeprefix("bytes=").removesuffix("-")) > 0


@pytest.mark.parametrize(
    ("status", "error"), [(302, ServiceError), (403, ServiceError), (503, ServerBusy), (500, ServiceError)]
)
def test_other_answers_are_one_clear_line(
    registry: Registry, web: str, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    Handler.status = status
    with opened(tmp_path / "device", registry, server=web) as client:
        with pytest.raises(error) as caught:
            client.check_for_update()
        assert "\n" not in str(caught.value) and client.status().last_error == str(caught.value)


def test_the_command_line_for_the_conformance_suite_is_our_client(
    registry: Registry, web: str, tmp_path: Path
) -> None:
    folder, artifacts = tmp_path / "metadata", tmp_path / "artifacts"
    folder.mkdir(), artifacts.mkdir()
    script = str(Path(__file__).parents[1] / "tools" / "tuf_client.py")
    registry.renew(KEYS, time.time())  # the command goes by the clock of this machine

    def run(*arguments: str) -> int:
        command = [sys.executable, script, "--metadata-dir", str(folder), *arguments]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert run("init", str(registry.folder / "root.json")) == 0
    metadata = ("--metadata-url", f"{web}/metadata/")
    assert run(*metadata, "refresh") == 0
    assert {path.name for path in folder.glob("*.json")} == {
        *("root.json", "timestamp.json", "snapshot.json", "targets.json"),
    }
    targets = ("--target-base-url", f"{web}/targets/", "--target-dir", str(artifacts))
    name = f"{POPULATION}/models/1/{MODEL_FILE}"
    assert run(*metadata, *targets, "--target-name", name, "download") == 0
    (got,) = artifacts.iterdir()
    assert got.read_bytes() == (registry.path(1) / MODEL_FILE).read_bytes()
    assert run(*metadata, *targets, "--target-name", "none", "download") == 1
    (registry.repository.folder / "timestamp.json").write_bytes(b"garbage")
    assert run(*metadata, "refresh") == 1


def test_what_a_web_server_changes_is_refused(registry: Registry, web: str, tmp_path: Path) -> None:
    for path in registry.public.rglob(f"*.{MODEL_FILE}"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with (
        opened(tmp_path / "device", registry, server=web) as client,
        pytest.raises(UpdateRejected, match="not what was signed"),
    ):
        client.check_for_update()


def test_addresses_without_encryption_are_refused_but_on_loopback(tmp_path: Path) -> None:
    for url in ("http://cdn.example.org/x", "ftp://127.0.0.1/x", "file:///etc", "://x"):
        with pytest.raises(ServiceError, match="expected https"):
            HttpsFiles(url)
    with pytest.raises(ServiceError, match="give a PEM file"):
        HttpsFiles("https://cdn.example.org", ca=tmp_path / "none.pem")
    with pytest.raises(ServiceError, match="check the address"):
        list(HttpsFiles("http://127.0.0.1:1").fetch("x", "metadata/timestamp.json"))


@pytest.mark.parametrize("make", [FolderFiles, lambda _: HttpsFiles("http://127.0.0.1:1")])
def test_files_say_when_to_come_back_and_take_no_counters(tmp_path: Path, make: Any) -> None:
    files = make(tmp_path)
    assert files.check_in(CheckIn("x", "0.1.0", 0)).retry_after_seconds and not files.takes_counters
    files.close()


def test_a_path_never_leads_out_of_a_start_model(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "start").mkdir()
    for path in ("../secret", "metadata/../../secret", "metadata/none.json"):
        with pytest.raises(NotPublished):
            list(FolderFiles(tmp_path / "start").fetch("x", path))
