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
from wire_helpers import NOW, POPULATION, PRIVACY, factors, items, keys, make_registry

from fedrec.core.errors import FedrecError
from fedrec.wire.package import Terms, pack_model
from fedrec_server.registry import Aliases, Registry

OFFLINE, KEYS = keys()
NEXT = keys()
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
    return registry.publish(files, Terms(0, NOW), KEYS, NOW).version


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions, the second one champion."""
    folder = tmp_path_factory.mktemp("three")
    registry = make_registry(folder, KEYS, offline=OFFLINE)
    for seed in range(3):
        publish(registry, seed)
    registry.promote(2, KEYS, now=NOW)
    return folder


ACTIONS: dict[str, tuple[Callable[[Registry], Any], Callable[[int], set[Aliases]]]] = {
    "publish": (publish, lambda newest: {Aliases(2)}),
    "promote": (
        lambda r: r.promote(max(r.versions()), KEYS, now=NOW),
        lambda newest: {Aliases(2), Aliases(newest)},
    ),
    "canary": (
        lambda r: r.promote(max(r.versions()), KEYS, "canary", 7, NOW),
        lambda newest: {Aliases(2), Aliases(2, newest, 7)},
    ),
    "rollback": (lambda r: r.rollback(1, KEYS, NOW), lambda newest: {Aliases(2), Aliases(1)}),
    "renew": (lambda r: r.renew(KEYS, NOW + 5 * 86_400), lambda newest: {Aliases(2)}),
    "task": (lambda r: r.sign_task("ab" * 8, {"expires": NOW + 9}, KEYS, NOW), lambda newest: {Aliases(2)}),
    "keys": (
        lambda r: r.replace_keys((OFFLINE, KEYS), NEXT, now=NOW),
        lambda newest: {Aliases(2)},
    ),
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
        found = registry.verify()
        assert {found[version] for version in registry.versions()} == {"good"}
        assert registry.aliases in allowed(max(registry.versions()))
        assert registry.versions() in ([1, 2, 3], [1, 2, 3, 4])
        before = len(registry.history())
        assert 4 <= before <= 5
        if registry.aliases != Aliases(2):
            assert registry.history()[-1]["what"] in ("promote", "rollback"), "no effect without an entry"
        keys_ = KEYS
        if action == "keys":  # a ceremony that was cut off is completed by carrying it out again
            first, keys_ = registry.state().root.version == 1, NEXT[1]
            registry.replace_keys((OFFLINE, KEYS) if first else NEXT, NEXT, now=NOW)
            before = len(registry.history())
        files = pack_model(factors(seed=9), items(), PRIVACY)
        newest = registry.publish(files, Terms(0, NOW), keys_, NOW).version
        assert newest == max(registry.versions()) > 3
        assert registry.promote(newest, keys_, now=NOW) == Aliases(newest)
        assert len(registry.history()) == before + 2
        assert not list(registry.packages.glob(".*.tmp/*")), "what a crash left is swept away"
        if not reached():
            assert step > 5
            return
    pytest.fail("the action never ended")


WRITER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from fedrec.wire.package import Terms, pack_model
    from fedrec.wire.signing import OnlineKeys
    from fedrec_server.registry import Registry
    from wire_helpers import NOW, POPULATION, PRIVACY, factors, items

    folder = Path(sys.argv[1])
    registry, key = Registry(folder, POPULATION), OnlineKeys.load(folder / "keys")
    for seed in range(10_000):
        files = pack_model(factors(seed=seed), items(), PRIVACY)
        print("published", registry.publish(files, Terms(0, NOW), key, NOW).version, flush=True)
        print("promoted", registry.promote(max(registry.versions()), key, now=NOW).champion, flush=True)
        print("promoted", registry.rollback(1, key, NOW).champion, flush=True)
"""


def test_a_killed_process_takes_nothing_back(tmp_path: Path) -> None:
    """Killed at random moments: what it had said was done is done."""
    registry = make_registry(tmp_path, KEYS, offline=OFFLINE)
    KEYS.save(tmp_path / "keys")
    publish(registry)
    rng = random.Random(5)
    for _ in range(6):
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(WRITER),
            str(tmp_path),
            str(Path(__file__).parents[1]),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline()]
            time.sleep(rng.uniform(0, 0.15))
            writer.kill()
            said += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        done = [line.split() for line in said]
        assert done and done[0][0] == "published"
        found = registry.verify()
        assert {found[version] for version in registry.versions()} == {"good"}
        assert max(int(version) for _, version in done) <= max(registry.versions())
        assert registry.aliases.champion in registry.versions() or len(done) == 1
        entries = {(entry["what"], entry["version"]) for entry in registry.history()}
        for what, version in done:
            names = ("publish",) if what == "published" else ("promote", "rollback")
            assert any((name, int(version)) in entries for name in names)
