"""The coordinator: runs rounds over an exchange, keeps the model, survives being killed.

It knows no Flower and no data. Each round is: broadcast the shared state, sift the replies, sum, apply,
checkpoint. While "select" runs, the validation part chooses the number of rounds; "final" starts anew, learns
from training and validation part together for that many rounds, and the test part is looked at once.

A killed coordinator, opened again on its folder, goes on after its last checkpoint and ends with the bits of an
undisturbed run. Out of scope: what carries the messages, and presentation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.errors import FederationError, PrivacyRefused, ProtocolError, RoundAbandoned, RunError
from fedrec.evaluation.sums import MetricSums
from fedrec.learning.protocol import Exchange, Reply, Request
from fedrec.learning.updates import Layout, State, UpdateSum
from fedrec.models.base import Recommender
from fedrec.models.registry import build
from fedrec.wire.files import atomic_write, read_arrays, write_arrays, write_json
from fedrec_server.private_rounds import PrivateRounds
from fedrec_server.replies import read_update, sift
from fedrec_server.task import Progress, Task

Event = dict[str, Any]
POLL_SECONDS = 0.2
STAGED = "staged.safetensors"


@dataclass(frozen=True)
class Outcome:
    """How a call of `Coordinator.run` ended."""

    finished: bool
    rounds: int
    shared: State
    result: dict[str, Any]


class Coordinator:
    """Runs one task; see the module's text."""

    def __init__(
        self,
        folder: Path,
        exchange: Exchange,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder = folder
        self._exchange = exchange
        self._on_event = on_event
        self._stop = stop
        self.task = Task.read(folder)
        self._recommender: Recommender = build(self.task.model)
        self._private = PrivateRounds(self.task.privacy, folder) if self.task.privacy else None
        self._hosted: dict[str, int] = {}
        self._shared, self._server, self._progress = self._restore()

    def run(self) -> Outcome:
        """Run all rounds that are left.

        Raises:
            FederationError: too few nodes came before the deadline.
            RoundAbandoned: too many rounds in a row had too few valid replies.
            BudgetExhausted: the plan does not fit beside what other runs have spent.
        """
        if self._private is not None and not self._progress.done:
            self._private.reserve()
        while not self._progress.done:
            self._round()
            if self._phase_is_over():
                self._end_phase()
            elif self._stop():
                self._checkpoint(persist=True)
                return Outcome(False, self._progress.round, self._shared, {})
        result = json.loads((self._folder / "result.json").read_text())
        return Outcome(True, self._progress.round, self._shared, result)

    # One round -----------------------------------------------------------------------------------------

    def _round(self) -> None:
        progress, started = self._progress, time.perf_counter()
        number = progress.round + 1
        keep = number % self.task.rounds.checkpoint_every == 0 or number == self._last_round()
        request = Request("train", number, progress.phase, self._shared, {"persist": keep})
        if self._private is not None and self._private.plan.adaptive is not None:
            request.meta["clip_norm"] = progress.clip_norm
        layout = self._recommender.layout(self.task.n_items, number)
        replies, failures = self._ask(request, self._reader(layout))
        record: Event = {
            "phase": progress.phase,
            "round": number,
            "nodes": len(replies),
            "failures": failures,
        }
        if not self._enough(len(replies), len(replies) + len(failures)):
            self._abandon(record)
            return
        try:
            total, facts = self._sum(list(replies.values()), layout, number)
        except PrivacyRefused as error:
            self._abandon(record | {"failures": failures | {"sum": str(error)}})
            return
        if total.users:
            self._shared, self._server = self._recommender.apply(self._shared, self._server, total)
        progress.round, progress.abandoned = number, 0
        record |= facts | self._sizes(layout) | {"seconds": time.perf_counter() - started}
        progress.totals["seconds"] += record["seconds"]
        progress.totals["bytes_up"] += record["bytes_up_per_user"]
        progress.totals["bytes_down"] += record["bytes_down_per_user"]
        if self._is_judged(number):
            record["validation"] = self._judge()
        if self._private is not None:
            self._checkpoint_charged(self._private, record)
            return
        self._write_record(record)
        if keep:
            self._checkpoint()

    def _ask(
        self, request: Request, read: Callable[[str, Reply], Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Send one request to every known node; readable answers and the reasons of the others."""
        requests = dict.fromkeys(self._meet(), request)
        answers = self._exchange.exchange(requests, self.task.rounds.deadline_seconds)
        return sift(requests, answers, read)

    def _reader(self, layout: Layout) -> Callable[[str, Reply], Any]:
        """How the replies of this round are read."""
        private, clip_norm = self._private, self._progress.clip_norm
        if private is not None:
            return lambda node, reply: private.read(reply, layout, self._hosted[node], clip_norm)
        plain = self.task.settings.clip_norm
        return lambda node, reply: read_update(reply, layout, self._hosted[node], plain)

    def _sum(self, updates: list[Any], layout: Layout, number: int) -> tuple[UpdateSum, Event]:
        """What may be applied, and what may be said of it."""
        private, progress = self._private, self._progress
        if private is None:
            total = UpdateSum(layout.zeros())
            for update in updates:
                total.merge(update)
            return total, _describe(total)
        released, clip_norm = private.release(updates, layout, number, progress.clip_norm)
        facts: Event = {
            "users": private.plan.denominator,
            "clip_norm": progress.clip_norm,
            "noise_std": released.noise_std,
            "signal_to_noise": private.signal_to_noise(released, layout),
        }
        progress.clip_norm = clip_norm
        return released, facts

    def _meet(self) -> list[str]:
        """Ids of the nodes that are there and run this task; waits `wait_seconds` for the minimum."""
        deadline = time.monotonic() + self.task.rounds.wait_seconds
        while True:
            present = self._exchange.nodes()
            strangers = {node: Request("hello", 0) for node in present if node not in self._hosted}
            if strangers:
                # A node may be listed and yet be gone, or busy with the last message of a killed coordinator.
                left = max(1.0, deadline - time.monotonic())
                answers = self._exchange.exchange(strangers, min(self.task.rounds.deadline_seconds, left))
                known, refused = sift(strangers, answers, self._read_hello)
                self._hosted |= known
                for node, reason in refused.items():
                    self._on_event({"refused": node, "reason": reason})
            here = [node for node in present if node in self._hosted]
            if len(here) >= self.task.rounds.min_nodes:
                return here
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{len(here)} nodes came within {self.task.rounds.wait_seconds:g} s: expected at least "
                    f"{self.task.rounds.min_nodes}; start more nodes or lower federation.min_nodes"
                )
            time.sleep(POLL_SECONDS)

    def _read_hello(self, node: str, reply: Reply) -> int:
        if reply.meta.get("config") != self.task.config_hash:
            raise ProtocolError(f"node {node} runs another configuration: prepare it from this run's config")
        users = reply.meta.get("users")
        if not isinstance(users, int) or not 0 <= users <= self.task.rounds.max_users_per_node:
            raise ProtocolError(
                f"node {node} claims {users!r} users: expected 0 to {self.task.rounds.max_users_per_node}"
            )
        return users

    def _enough(self, valid: int, asked: int) -> bool:
        rounds = self.task.rounds
        return valid >= max(rounds.min_nodes, int(np.ceil(rounds.min_reply_fraction * asked)))

    def _abandon(self, record: Event) -> None:
        self._progress.abandoned += 1
        self._write_record(record | {"abandoned": True})
        if self._progress.abandoned >= self.task.rounds.max_abandoned:
            self._checkpoint(persist=True)
            reasons = "; ".join(sorted(set(record["failures"].values()))) or "no answers"
            raise RoundAbandoned(
                f"round {record['round']} was abandoned {self._progress.abandoned} times: {record['nodes']} valid "
                f"replies, expected at least {self.task.rounds.min_nodes} ({reasons}); mend the nodes, then --resume"
            )

    def _sizes(self, layout: Layout) -> Event:
        number_bytes = 4 if self._private is None else 8
        return {
            "bytes_up_per_user": float(layout.size * number_bytes),
            "bytes_down_per_user": float(sum(values.nbytes for values in self._shared.values())),
        }

    # Phases --------------------------------------------------------------------------------------------

    def _last_round(self) -> int:
        if self._recommender.fixed_rounds is not None:
            return self._recommender.fixed_rounds
        chosen = self._progress.best_round if self._progress.phase == "final" else 0
        return chosen or self.task.rounds.rounds

    def _phase_is_over(self) -> bool:
        progress, patience = self._progress, self.task.rounds.patience
        tired = progress.phase == "select" and patience is not None and progress.stale >= patience
        return progress.round >= self._last_round() or tired

    def _end_phase(self) -> None:
        if self._progress.phase == "select":
            self._progress = replace(self._progress, phase="final", round=0)
            self._shared, self._server = self._fresh()
        else:
            self._finish()
        self._checkpoint(persist=self._progress.done)

    def _finish(self) -> None:
        """Look at the test part, once, and write model and result."""
        progress = self._progress
        write_arrays(self._folder / "model.safetensors", self._shared, {"round": progress.round})
        result: dict[str, Any] = {
            "rounds": progress.round,
            "validation": {self.task.rounds.select_metric: progress.best_value}
            if progress.best_round
            else None,
            "test": None,
            "totals": progress.totals,
            "model_bytes": sum(values.nbytes for values in self._shared.values()),
        }
        if self.task.has_test and (self.task.privacy is None or self.task.privacy.metrics == "exact"):
            result["test"] = self._evaluate().report().as_dict()
        write_json(self._folder / "result.json", result)
        progress.done = True

    def _is_judged(self, number: int) -> bool:
        select = self._progress.phase == "select"
        return select and (number % self.task.rounds.evaluate_every == 0 or number == self._last_round())

    def _judge(self) -> dict[str, float]:
        """Validation metrics of this round; remembers the best round."""
        progress = self._progress
        values = self._evaluate().report().values()
        value = values[self.task.rounds.select_metric]
        if value > progress.best_value:
            progress.best_round, progress.best_value, progress.stale = progress.round, value, 0
        else:
            progress.stale += 1
        return values

    def _evaluate(self) -> MetricSums:
        request = Request("evaluate", self._progress.round, self._progress.phase, self._shared)
        final = self._progress.phase == "final"
        like = MetricSums.empty(
            self.task.evaluation if final else self.task.evaluation.quick(), self.task.n_items
        )
        replies, failures = self._ask(
            request, lambda node, reply: MetricSums.from_arrays(reply.arrays, like, self._hosted[node])
        )
        if not self._enough(len(replies), len(replies) + len(failures)):
            raise RoundAbandoned(
                f"evaluation: {len(replies)} valid replies, too few ({failures}); mend the nodes, then --resume"
            )
        return functools.reduce(MetricSums.merge, replies.values(), like)

    # Disk ----------------------------------------------------------------------------------------------

    def _fresh(self) -> tuple[State, State]:
        shared = self._recommender.init_shared(self.task.n_items, self.task.settings.seed)
        return shared, self._recommender.init_server(shared)

    def _restore(self) -> tuple[State, State, Progress]:
        path = self._folder / "checkpoint.safetensors"
        if self._private is not None:
            self._promote_charged(self._private)
        if not path.exists():
            free = self._recommender.fixed_rounds is None and self._private is None
            (self._folder / "rounds.jsonl").unlink(missing_ok=True)
            progress = Progress("select" if self.task.has_validation and free else "final")
            progress.clip_norm = self._private.plan.clip_norm if self._private else 0.0
            return *self._fresh(), progress
        arrays, header = read_arrays(path)
        record = header.pop("record", None)
        progress = Progress(**header)
        if record is not None:
            self._forget_records(progress.records - 1)
            self._append_record(record)
        self._forget_records(progress.records)
        shared = {name.removeprefix("shared/"): a for name, a in arrays.items() if name.startswith("shared/")}
        server = {name.removeprefix("server/"): a for name, a in arrays.items() if name.startswith("server/")}
        return shared, server, progress

    def _checkpoint(self, *, persist: bool = False) -> None:
        if persist and not self._progress.done:
            self._ask(
                Request("persist", self._progress.round, self._progress.phase), lambda node, reply: None
            )
        write_arrays(self._folder / "checkpoint.safetensors", self._arrays(), asdict(self._progress))

    def _checkpoint_charged(self, private: PrivateRounds, record: Event) -> None:
        """Stage the new model, charge for it, and only then let anybody see it; the record lies with it."""
        self._progress.records += 1
        staged = self._folder / STAGED
        write_arrays(staged, self._arrays(), asdict(self._progress) | {"record": record})
        private.charge(self._progress.round, _file_digest(staged))
        staged.replace(self._folder / "checkpoint.safetensors")
        self._append_record(record)
        self._on_event(record)

    def _promote_charged(self, private: PrivateRounds) -> None:
        """A model staged before a kill counts if it was charged; otherwise nobody has seen it."""
        staged = self._folder / STAGED
        if not staged.exists():
            return
        try:
            number = int(read_arrays(staged)[1]["round"])
        except RunError:
            staged.unlink()
            return
        if private.charged(number) == _file_digest(staged):
            staged.replace(self._folder / "checkpoint.safetensors")
        else:
            staged.unlink()

    def _arrays(self) -> State:
        arrays = {f"shared/{name}": a for name, a in self._shared.items()}
        return arrays | {f"server/{name}": a for name, a in self._server.items()}

    def _write_record(self, record: Event) -> None:
        self._append_record(record)
        self._progress.records += 1
        self._on_event(record)

    def _append_record(self, record: Event) -> None:
        with (self._folder / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(record, default=float) + "\n")

    def _forget_records(self, keep: int) -> None:
        """Drop the records of rounds after the checkpoint: they will be run again."""
        path = self._folder / "rounds.jsonl"
        if path.exists():
            atomic_write(path, b"".join(path.read_bytes().splitlines(keepends=True)[:keep]))


def _describe(total: UpdateSum) -> Event:
    users = max(total.users, 1)
    return {
        "users": total.users,
        "loss": total.loss / max(total.examples, 1.0),
        "clipped_fraction": total.clipped / users,
        "mean_norm": total.norm / users,
    }


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_coordinator(
    folder: Path,
    exchange: Exchange,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Coordinator:
    """The coordinator of a run folder's `coordinator/`, going on where its last checkpoint lies."""
    return Coordinator(folder, exchange, on_event=on_event, stop=stop)
