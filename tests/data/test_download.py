"""Downloads against a real server on this machine: resume, checksum, refusal."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedrec.core.errors import DataError, DownloadError
from fedrec.data.download import Remote, cache_folder, download
from fedrec.data.loaders import registry
from fedrec.data.loaders.common import LOADERS

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `ranges` can be switched off, `break_after` cuts a reply short, `version` is its ETag."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.break_after, self.version, self.content = True, -1, '"1"', CONTENT
        self.sent: list[int] = []

    def url(self, name: str = "file.zip") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        start, whole = 0, self.server.content
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range", self.server.version) == self.server.version
        if match and self.server.ranges and fresh:
            start = int(match[1])
            if start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        body = whole[start:]
        self.send_header("ETag", self.server.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.break_after >= 0:
            body = body[: self.server.break_after]
        self.server.sent.append(len(body))
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_whole_file_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    done = download(
        Remote(server.url(), "f.zip", MD5), tmp_path / "new", lambda have, of: seen.append((have, of))
    )
    assert done.path.read_bytes() == CONTENT and done.verified and done.md5 == MD5
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [h for h, _ in seen] == sorted(h for h, _ in seen)
    assert [p.name for p in done.path.parent.iterdir()] == ["f.zip"]
    download(Remote(server.url(), "f.zip", MD5), tmp_path / "new")
    assert server.sent == [len(CONTENT)], "what is there is not fetched again"


def test_without_published_checksum_the_sum_is_reported(server: Server, tmp_path: Path) -> None:
    done = download(Remote(server.url(), "f.zip"), tmp_path)
    assert done.md5 == MD5 and not done.verified


def break_off(server: Server, folder: Path) -> None:
    server.break_after = 300_000
    with pytest.raises(DownloadError, match=r"ended after 300000 of 1024000 bytes; run again"):
        download(Remote(server.url(), "f.zip", MD5), folder)
    server.break_after = -1
    assert (folder / "f.zip.part").stat().st_size == 300_000 and not (folder / "f.zip").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_resume(server: Server, tmp_path: Path, ranges: bool) -> None:
    break_off(server, tmp_path)
    server.ranges = ranges
    assert download(Remote(server.url(), "f.zip", MD5), tmp_path).path.read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT) - (300_000 if ranges else 0)


def test_a_changed_file_is_fetched_from_its_start(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.version, server.content = '"2"', CONTENT[::-1]
    assert download(Remote(server.url(), "f.zip"), tmp_path).path.read_bytes() == CONTENT[::-1]


def test_a_part_that_is_already_whole_or_too_long(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.zip.part").write_bytes(CONTENT)
    assert download(Remote(server.url(), "f.zip", MD5), tmp_path).path.read_bytes() == CONTENT
    assert server.sent == []
    (tmp_path / "g.zip.part").write_bytes(CONTENT + b"more")
    assert download(Remote(server.url(), "g.zip", MD5), tmp_path).path.read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"has MD5 {MD5}, published is {'0' * 32}"):
        download(Remote(server.url(), "f.zip", "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refusals_say_the_address_and_where_to_place_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"404|Not Found") as caught:
        download(Remote(server.url("missing"), "f.zip"), tmp_path)
    assert server.url("missing") in str(caught.value) and str(tmp_path / "f.zip") in str(caught.value)


def test_connection_refused(tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url()
    with pytest.raises(DownloadError, match="refused") as caught:
        download(Remote(url, "f.zip"), tmp_path)
    assert url in str(caught.value) and str(tmp_path / "f.zip") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_is_fetched_into_the_cache_and_loaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ml-1m/movies.dat", "1::Toy Story (1995)::Animation\n")
        archive.writestr("ml-1m/ratings.dat", "7::1::5::978300760\n")
    server.content = packed.getvalue()
    info = registry.dataset_info("ml-1m")
    remote = Remote(server.url(), "ml-1m.zip", hashlib.md5(server.content).hexdigest())
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    monkeypatch.setattr(LOADERS, "_found", {})
    LOADERS.register("ml-1m")(replace(info, remotes=(remote,)))
    with pytest.raises(DataError, match="allow the download"):
        registry.load_dataset("ml-1m")
    assert registry.load_dataset("ml-1m", download=True).catalog.label(0) == "Toy Story (1995)"
    assert registry.load_dataset("ml-1m").interactions.user_ids.tolist() == ["7"] and len(server.sent) == 1


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FEDREC_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fedrec"
