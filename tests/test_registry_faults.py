"""The registry under faults: whatever fails at whatever step, and however often the process is killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wire_helpers import NOW, POPULATION, PRIVACY, factors, items, keys

from fedrec.errors import FedrecError
from fedrec.wire.package import Terms, pack_model
from fedrec_server.registry import Aliases, Registry

ROOT, KEY = keys()
STEPS = (
    *((Path, name) for name in ("open", "mkdir", "rename", "replace", "touch", "read_bytes")),
    (os, "fsync"),
)


class Killed(BaseException):
    """Nothing catches it, so nothing is tidied up, as after kill -9."""


def killed() -> BaseException:
    return Killed()


def disk_full() -> BaseException:
    return OSError(28, "No space left on device")


class Torn:
    """An open file; a write that fails has brought half of its bytes to the disk."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> int:
        try:
            self._step()
        except BaseException:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise
        return int(self._file.write(data))

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing_at(step: int, error: Callable[[], BaseException]) -> Iterator[Callable[[], bool]]:
    """Let one step of all that touch the disk fail; says whether it came to that."""
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise error()

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count()
            made = real(*args, **kwargs)
            return Torn(made, count) if real is opening else made

        return call

    opening = Path.open
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        yield lambda: left < 0


def publish(registry: Registry, seed: int = 0) -> int:
    files = pack_model(factors(seed=seed), items(), PRIVACY)
    return registry.publish(files, Terms(0, NOW), KEY).version


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions, the second one champion."""
    folder = tmp_path_factory.mktemp("three")
    registry = Registry.create(folder, POPULATION, ROOT.public)
    for seed in range(3):
        publish(registry, seed)
    registry.promote(2)
    return folder


ACTIONS: dict[str, tuple[Callable[[Registry], Any], Callable[[int], set[Aliases]]]] = {
    "publish": (publish, lambda newest: {Aliases(2)}),
    "promote": (lambda r: r.promote(max(r.versions())), lambda newest: {Aliases(2), Aliases(newest)}),
    "canary": (
        lambda r: r.promote(max(r.versions()), "canary", 7),
        lambda newest: {Aliases(2), Aliases(2, newest, 7)},
    ),
    "rollback": (lambda r: r.rollback(1, NOW, KEY), lambda newest: {Aliases(2), Aliases(newest)}),
    "renew": (lambda r: r.renew(1, NOW, KEY), lambda newest: {Aliases(2)}),
}


@pytest.mark.parametrize("error", [killed, disk_full])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_failure_at_any_step_leaves_it_whole(
    three: Path, tmp_path: Path, action: str, error: Callable[[], BaseException]
) -> None:
    act, allowed = ACTIONS[action]
    for step in range(200):
        shutil.copytree(three, tmp_path / str(step))
        registry = Registry(tmp_path / str(step), POPULATION)
        try:
            with failing_at(step, error) as reached:
                act(registry)
        except (Killed, FedrecError):
            pass
        assert set(registry.verify().values()) == {"good"}
        assert registry.aliases in allowed(max(registry.versions()))
        assert registry.versions() in ([1, 2, 3], [1, 2, 3, 4])
        before = len(registry.history())
        assert 4 <= before <= 6
        if registry.aliases != Aliases(2):
            assert registry.history()[-1]["what"] in ("promote", "rollback"), "no effect without an entry"
        newest = publish(registry, 9)
        assert newest == max(registry.versions()) > 3 and registry.promote(newest) == Aliases(newest)
        assert len(registry.history()) == before + 2
        assert not list(registry.folder.glob(".*.tmp/*")), "what a crash left is swept away"
        if not reached():
            assert step > 5
            return
    pytest.fail("the action never ended")


WRITER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from fedrec.wire.package import Terms, pack_model
    from fedrec.wire.signing import RoundKey
    from fedrec_server.registry import Registry
    from wire_helpers import NOW, POPULATION, PRIVACY, factors, items

    folder = Path(sys.argv[1])
    registry, key = Registry(folder, POPULATION), RoundKey.load(folder / "round.pem")
    for seed in range(10_000):
        files = pack_model(factors(seed=seed), items(), PRIVACY)
        print("published", registry.publish(files, Terms(0, NOW), key).version, flush=True)
        print("promoted", registry.promote(max(registry.versions())).champion, flush=True)
        print("promoted", registry.rollback(1, NOW, key).version, flush=True)
"""


def test_a_killed_process_takes_nothing_back(tmp_path: Path) -> None:
    """Killed at random moments: what it had said was done is done."""
    registry = Registry.create(tmp_path, POPULATION, ROOT.public)
    KEY.save(tmp_path / "round.pem")
    publish(registry)
    rng = random.Random(5)
    for _ in range(6):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline()]
            time.sleep(rng.uniform(0, 0.15))
            writer.kill()
            said += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        done = [line.split() for line in said]
        assert done and done[0][0] == "published"
        assert set(registry.verify().values()) == {"good"}
        assert max(int(version) for _, version in done) <= max(registry.versions())
        promoted = [int(version) for what, version in done if what == "promoted"]
        assert registry.aliases.champion >= max(promoted, default=0)
        entries = {(entry["what"], entry["version"]) for entry in registry.history()}
        for what, version in done:
            names = ("publish",) if what == "published" else ("promote", "rollback")
            assert any((name, int(version)) in entries for name in names)
