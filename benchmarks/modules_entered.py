"""How many modules of ours are entered between a configuration and a list.

    python -m benchmarks.modules_entered [--kind mf] [--rounds 2]

A small experiment is read from a file, trained in this process and asked for one user's list, once to import
everything and once under `sys.setprofile`. A module counts when one of its functions runs, in any thread; its own
statements, those of its classes, and kernels that numba has compiled do not count. The walk is repeated with nothing
held out, so that the modules that only evaluate are known.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import fedrec
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import Prepared, prepare

PACKAGES = ("fedrec", "fedrec_server", "fedrec_client", "fedrec_simulations")
USERS, ITEMS, HISTORY = 60, 50, 12
LOAD, TRAIN, LIST = "load and split", "set up and train", "make the list"
EVALUATE = "evaluate"


@dataclass(frozen=True)
class Walk:
    """Modules in the order in which they were entered first.

    Attributes:
        step: of each module, the first step that entered it.
        spine: modules that training and the list enter, whether loading entered them before or not.
        changes: how often control passed from a module of ours to another one.
    """

    step: dict[str, str]
    spine: frozenset[str]
    changes: int


class Recorder:
    """Notes the modules of ours whose functions run."""

    def __init__(self) -> None:
        homes = {name: Path(next(iter(import_module(name).__path__))) for name in PACKAGES}
        self._prefixes = {f"{home}/": name for name, home in homes.items()}
        self._known: dict[str, str | None] = {}
        self._last = ""
        self.step, self.spine = dict[str, str](), set[str]()
        self.current, self.changes = "", 0

    @contextmanager
    def recording(self, step: str) -> Iterator[None]:
        """What is entered inside counts for this step, unless an earlier one has entered it."""
        self.current = step
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        # Only functions have fast local variables: not the bodies of modules and classes.
        if event != "call" or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return
        file = frame.f_code.co_filename
        if file not in self._known:
            self._known[file] = self._module_of(file)
        module = self._known[file]
        if module is None:
            return
        self.step.setdefault(module, self.current)
        if self.current != LOAD:
            self.spine.add(module)
        self.changes += module != self._last
        self._last = module

    def _module_of(self, file: str) -> str | None:
        for prefix, package in self._prefixes.items():
            if file.startswith(prefix) and file.endswith(".py"):
                parts = Path(file.removeprefix(prefix)).with_suffix("").parts
                return ".".join((package, *parts)).removesuffix(".__init__")
        return None


def walk(values: dict[str, Any], *, held_out: bool) -> Walk:
    """From a configuration to a list, recorded the second time.

    Args:
        values: of the configuration.
        held_out: evaluate on the interactions held out; False: there are none.
    """
    _drive(values, held_out, lambda step, work: work())
    recorder = Recorder()

    def recorded(step: str, work: Callable[[], Any]) -> Any:
        with recorder.recording(step):
            return work()

    _drive(values, held_out, recorded)
    return Walk(recorder.step, frozenset(recorder.spine), recorder.changes)


def _drive(
    values: dict[str, Any], held_out: bool, carry_out: Callable[[str, Callable[[], Any]], Any]
) -> None:
    """The three steps, each handed to `carry_out`."""
    experiment = carry_out(LOAD, lambda: parse_config(values))
    parts: Prepared = carry_out(LOAD, lambda: prepare(experiment))
    if not held_out:
        parts = replace(parts, split=replace(parts.split, validation=None, test=None))
    run = carry_out(TRAIN, lambda: fedrec.train_experiment(experiment, parts, progress=False))
    carry_out(LIST, lambda: run.recommend("u3", n=10))


def configuration(folder: Path, kind: str, rounds: int) -> dict[str, Any]:
    """A small experiment on a file that is written into `folder`."""
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(USERS):
        items = rng.choice(ITEMS, HISTORY, replace=False)
        lines += [f"u{user},i{item},{1_400_000_000 + k}" for k, item in enumerate(items)]
    path = folder / "interactions.csv"
    path.write_text("\n".join(lines) + "\n")
    return {
        "data": {"name": "file", "path": str(path), "timestamp_column": "timestamp"},
        "model": {"kind": kind},
        "federation": {"rounds": rounds},
        "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
    }


def steps_of(whole: Walk, without: Walk) -> dict[str, str]:
    """The step of each module; modules that run only where something is held out evaluate."""
    return {
        module: step if module in without.step else EVALUATE if step == TRAIN else step
        for module, step in whole.step.items()
    }


def main() -> None:
    """The modules in their order, and how many there are in each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", default="mf", help="recommender")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        values = configuration(Path(folder), chosen.kind, chosen.rounds)
        whole, without = walk(values, held_out=True), walk(values, held_out=False)
    steps = steps_of(whole, without)
    for number, (module, step) in enumerate(steps.items(), start=1):
        print(f"{number:3} {step:17} {module}")
    counts = {name: list(steps.values()).count(name) for name in (LOAD, TRAIN, EVALUATE, LIST)}
    print(f"\n{len(steps)} modules are entered between a configuration and a list")
    print("; ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"with split data and nothing held out, to train and make the list: {len(without.spine)}")
    print(f"control passes between modules {whole.changes:,} times")


if __name__ == "__main__":
    main()
