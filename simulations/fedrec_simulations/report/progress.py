"""What is seen while rounds run: round, users per second, validation metric, time left.

The same facts go to one of three displays: a bar in a terminal, lines where stderr is not a terminal, a bar in a
notebook. Out of scope: training.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from fedrec_simulations.experiments.config import Config
from fedrec_simulations.report.units import duration

#: Seconds between two lines where stderr is not a terminal.
LINE_SECONDS = 5.0
PHASES = {"tuning": "choosing rounds", "refit": "final training"}


class Display(Protocol):
    """Where progress is shown."""

    def start(self) -> None:
        """Before the first round."""

    def stop(self) -> None:
        """After the last one, or after an error."""

    def show(self, phase: str, done: int, total: int, facts: str) -> None:
        """A round has ended.

        Args:
            phase: in words.
            done, total: rounds of the phase.
            facts: one line.
        """

    def notice(self, text: str) -> None:
        """One line about something unusual."""


class RoundProgress:
    """Follows the coordinator's events; a context manager.

    Args:
        config: of the run.
        records: of the rounds before, where a run is resumed.
        fixed_rounds: of the model, or None.
        display: where to show them; None: a bar in a terminal, lines elsewhere.
    """

    def __init__(
        self,
        config: Config,
        records: Sequence[Mapping[str, Any]] = (),
        *,
        fixed_rounds: int | None,
        display: Display | None = None,
    ) -> None:
        self._metric = config.federation.select_metric
        self._rounds = fixed_rounds or config.federation.rounds
        self._best: tuple[float, int] = (-1.0, 0)
        self._seconds: list[float] = []
        self._last = time.perf_counter()
        self._display = display or (Bar() if sys.stderr.isatty() else Lines())
        for record in records:
            self._learn(record)

    def __enter__(self) -> RoundProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event of the coordinator."""
        notice = self._display.notice
        if "refused" in event:
            notice(f"node {event['refused']} is refused: {event['reason']}")
            return
        for node, reason in event.get("failures", {}).items():
            notice(f"round {event['round']}: node {node} gave no update: {reason}")
        if event.get("abandoned"):
            notice(f"round {event['round']} is abandoned: {event['nodes']} valid replies")
            return
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        self._learn(event)
        phase, done = event["phase"], int(event["round"])
        self._display.show(PHASES[phase], done, self._total(phase), self._facts(event))

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

    def _facts(self, event: Mapping[str, Any]) -> str:
        speed = event.get("users", 0) / max(event.get("seconds", 0.0), 1e-9)
        best = f"  {self._metric} best {max(self._best[0], 0):.4f} (round {self._best[1]})"
        chosen = best if self._best[1] else ""
        return f"{speed:,.0f} users/s{chosen}  at most {duration(self._left(event))} left"


class Lines:
    """A line on stderr every few seconds, and one at the end of a phase."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def show(self, phase: str, done: int, total: int, facts: str) -> None:
        """See `Display`."""
        now = time.perf_counter()
        if done == total or now - self._last > LINE_SECONDS:
            self._last = now
            self.notice(f"{phase}: round {done}/{total}  {facts}")

    def notice(self, text: str) -> None:
        """See `Display`."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Bar:
    """A bar in a terminal, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=24),
            TextColumn("round {task.completed}/{task.total}  {task.fields[facts]}"),
            console=self._console,
        )
        self._phase = ""

    def start(self) -> None:
        """See `Display`."""
        self._bar.start()

    def stop(self) -> None:
        """See `Display`."""
        self._bar.stop()

    def show(self, phase: str, done: int, total: int, facts: str) -> None:
        """See `Display`."""
        if phase != self._phase:
            self._task = self._bar.add_task(phase, total=total, facts="")
            self._phase = phase
        self._bar.update(self._task, completed=done, total=total, facts=facts)

    def notice(self, text: str) -> None:
        """See `Display`."""
        self._console.print(text, style="yellow", markup=False)


class Notebook:
    """A bar in the output of a notebook's cell, updated in place; by IPython, with which notebooks run."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._display = display
        self._handle: Any = None

    def start(self) -> None:
        """See `Display`."""
        self._handle = self._display(self._html(""), display_id=True)

    def stop(self) -> None:
        """The last state stays in the cell's output."""

    def show(self, phase: str, done: int, total: int, facts: str) -> None:
        """See `Display`."""
        text = html.escape(f"{phase}: round {done}/{total}  {facts}")
        bar = f'<progress value="{done}" max="{total}" style="width: 16em"></progress>'
        self._handle.update(self._html(f"{bar} <code>{text}</code>"))

    def notice(self, text: str) -> None:
        """See `Display`."""
        self._display(self._html(f"<code>{html.escape(text)}</code>"))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def default_display() -> Display | None:
    """The display for calls from Python: a notebook's or a terminal's bar; None: nothing is shown."""
    if in_notebook():
        return Notebook()
    return Bar() if sys.stderr.isatty() else None
