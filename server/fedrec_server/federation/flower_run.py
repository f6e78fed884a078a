"""A coordinator that Flower runs in a process of its own, followed from here until it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import RunError
from fedrec_server.federation.flower_cli import FlowerCli, last_words
from fedrec_server.federation.launch import Launch, follow

STOP_SECONDS = 5.0


@dataclass(frozen=True)
class FlowerRun:
    """One start of a coordinator.

    Attributes:
        launch: the files through which it speaks.
        starter: the `flwr run` process, which copies Flower's log of the run to `log`.
    """

    launch: Launch
    starter: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls,
        cli: FlowerCli,
        app: Path,
        run_dir: Path,
        nodes: int,
        *,
        mark: str,
        wait_seconds: float,
        federation: str | None = None,
    ) -> FlowerRun:
        """Start the coordinator of a run folder, or start it again where it was killed.

        Args:
            cli: of the SuperLink that is to run it.
            app: folder of the thin Flower app.
            run_dir: the run folder.
            nodes: for how many nodes it waits before its first round, for at most `wait_seconds`.
            mark: of the processes started.
            wait_seconds: see `nodes`; then it goes on with those that came, if they are enough.
            federation: size of a simulation, in Flower's words.
        """
        launch, log = Launch(run_dir / "coordinator"), run_dir / "logs" / "flower-run.log"
        launch.prepare()
        config: dict[str, str | int | float] = {
            "run-dir": str(run_dir.resolve()),
            "nodes": nodes,
            "wait-seconds": wait_seconds,
        }
        return cls(launch, cli.run(app, config, mark=mark, log=log, federation=federation), log)

    def wait(
        self,
        *,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Report events until the run ends; whether it finished all rounds.

        Raises:
            FedrecError: whatever ended the coordinator.
        """
        try:
            return follow(self.launch, self._gone, on_event=on_event, stop=stop)
        except KeyboardInterrupt:
            self.launch.request_stop()
            raise
        finally:
            self._unfollow()

    def _gone(self) -> str | None:
        if self.starter.poll() is None:
            return None
        return f"Flower ended the run ({last_words(self.log)}; all of it in {self.log})"

    def _unfollow(self) -> None:
        """Stop copying the log; whether the coordinator goes on is not decided here."""
        self.starter.terminate()
        try:
            self.starter.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.starter.kill()
            self.starter.wait()


def check_nodes(run_dir: Path, nodes: int) -> None:
    """A run folder must be laid out for this many nodes.

    Raises:
        RunError: it is not.
    """
    found = {path.name for path in (run_dir / "nodes").glob("*") if path.is_dir()}
    if found != {str(k) for k in range(nodes)} or not (run_dir / "coordinator" / "task.json").exists():
        raise RunError(
            f"run {run_dir} is laid out for {len(found)} nodes: expected {nodes}; prepare it again"
        )
