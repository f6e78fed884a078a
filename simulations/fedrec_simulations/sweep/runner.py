"""Runs the cells that have no result yet, on all cores, and keeps what came out.

FOLDER/cells.jsonl    one line per finished cell, on disk before the next is counted
FOLDER/data/          the split, made once
FOLDER/scratch/       run folders of cells that are running

Killed at any byte and started again, a sweep goes on with what is missing and ends with the same table; after a
change of the experiment file only changed cells run. Out of scope: one cell (`work`), the table (`table`).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import atomic_write
from fedrec_simulations.sweep._work import run_cell
from fedrec_simulations.sweep.cells import Cell, CellResult

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Journal:
    """`cells.jsonl`: results by the key of their cell; a line that a kill tore is as if it never was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            atomic_write(path, whole)
        self.results: dict[str, CellResult] = {}
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                result = CellResult(**json.loads(line))
                self.results[result.key] = result

    def add(self, result: CellResult) -> None:
        """Append one result; it is on disk when this returns."""
        line = json.dumps(result.as_dict(), allow_nan=False) + "\n"
        with self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.results[result.key] = result


def run_sweep(
    folder: Path,
    cells: Sequence[Cell],
    jobs: int,
    on_result: Callable[[Cell, CellResult], None] = lambda cell, result: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, CellResult]:
    """Results of all cells by key; fewer where `stop` said so.

    Args:
        folder: of the sweep; one process at a time works on it.
        cells: as `cells.cells` made them.
        jobs: processes; 1: this one.
        on_result: called as cells finish.
        stop: asked between cells; those that run are finished.

    Raises:
        RunError: another process works on the folder.
    """
    with _alone(folder):
        journal = Journal(folder / "cells.jsonl")
        left = {cell.key: cell for cell in cells if not _has_result(journal, cell)}
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            for result in _results(list(left.values()), scratch, jobs, stop):
                journal.add(result)
                on_result(left[result.key], result)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {cell.key: journal.results[cell.key] for cell in cells if cell.key in journal.results}


def _has_result(journal: Journal, cell: Cell) -> bool:
    known = journal.results.get(cell.key)
    return known is not None and known.error is None


def _results(
    cells: Sequence[Cell], scratch: Path, jobs: int, stop: Callable[[], bool]
) -> Iterator[CellResult]:
    if jobs == 1 or len(cells) <= 1:
        for cell in cells:
            if stop():
                return
            yield run_cell(cell, scratch)
        return
    with _one_thread_each():
        # Forking a process with compiled kernels' threads may hang it.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(jobs, len(cells)), context, _start_worker)
        with pool:
            waiting, running = list(reversed(cells)), set[Future[CellResult]]()
            while running or (waiting and not stop()):
                while waiting and len(running) < jobs and not stop():
                    running.add(pool.submit(run_cell, waiting.pop(), scratch))
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker whose parent was killed must not stay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start inside use one thread each: libraries read these names when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the operating system forgets the lock of a killed one."""
    import fcntl

    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{folder} is being worked on by another process: wait for it, or use --out"
            ) from error
        yield
