"""What is seen while rounds run: round, users per second, validation metric, time left; on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fedrec_server.cli.answer import notice
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.report.units import duration

#: Seconds between two lines where stderr is no terminal.
LINE_SECONDS = 5.0
PHASES = {"tuning": "choosing rounds", "refit": "final training"}


class RoundProgress:
    """Follows the coordinator's events; a context manager."""

    def __init__(
        self, config: Config, records: Sequence[Mapping[str, Any]] = (), *, fixed_rounds: int | None
    ) -> None:
        self._metric = config.federation.select_metric
        self._rounds = fixed_rounds or config.federation.rounds
        self._best: tuple[float, int] = (-1.0, 0)
        self._seconds: list[float] = []
        self._last = time.perf_counter()
        self._last_line = self._last
        self._phase = ""
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=24),
            TextColumn("round {task.completed}/{task.total}  {task.fields[facts]}"),
            console=console,
            disable=not self._live,
        )
        for record in records:
            self._learn(record)

    def __enter__(self) -> RoundProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event of the coordinator."""
        if "refused" in event:
            notice(f"node {event['refused']} is refused: {event['reason']}", "yellow")
            return
        for node, reason in event.get("failures", {}).items():
            notice(f"round {event['round']}: node {node} gave no update: {reason}", "yellow")
        if event.get("abandoned"):
            notice(f"round {event['round']} is abandoned: {event['nodes']} valid replies", "yellow")
            return
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        self._learn(event)
        self._show(event)

    def _learn(self, event: Mapping[str, Any]) -> None:
        value = event.get("validation", {}).get(self._metric)
        if value is not None and value > self._best[0]:
            self._best = (value, int(event["round"]))

    def _total(self, phase: str) -> int:
        return (self._best[1] or self._rounds) if phase == "refit" else self._rounds

    def _left(self, event: Mapping[str, Any]) -> float:
        """Seconds left at most: patience may end the choice of rounds earlier."""
        rounds = self._total(event["phase"]) - int(event["round"])
        if event["phase"] == "tuning":
            rounds += self._total("refit")
        recent = self._seconds[-20:]
        return rounds * sum(recent) / len(recent)

    def _show(self, event: Mapping[str, Any]) -> None:
        speed = event["users"] / max(event["seconds"], 1e-9)
        facts = (
            f"{speed:,.0f} users/s  {self._metric} best {max(self._best[0], 0):.4f} (round {self._best[1]})"
        )
        if not self._best[1]:
            facts = f"{speed:,.0f} users/s"
        facts += f"  at most {duration(self._left(event))} left"
        total, phase = self._total(event["phase"]), event["phase"]
        if self._live:
            if phase != self._phase:
                self._task = self._bar.add_task(PHASES[phase], total=total, facts="")
                self._phase = phase
            self._bar.update(self._task, completed=event["round"], total=total, facts=facts)
        elif event["round"] == total or time.perf_counter() - self._last_line > LINE_SECONDS:
            self._last_line = time.perf_counter()
            notice(f"{PHASES[phase]}: round {event['round']}/{total}  {facts}")
