"""The coordinator: runs rounds over an exchange, keeps the model, survives being killed.

It knows no Flower and no data. Each round is: broadcast the shared state, collect what nodes answer (each reply, or
under secure aggregation their sum alone), apply, checkpoint. While "tuning" runs, the validation part chooses the
number of rounds; "refit" starts anew, learns from training and validation part together for that many rounds, and the
test part is looked at once.

A killed coordinator, opened again on its folder, goes on after its last checkpoint and ends with the bits of an
undisturbed run. What it keeps for that in between, and the key to sealed replies, go as soon as they are not needed.
Out of scope: what carries the messages, and presentation.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import (
    AggregationAborted,
    ConfigError,
    PrivacyRefused,
    RoundAbandoned,
)
from fedrec.core.messages import Exchange, Request
from fedrec.core.recommender import Recommender
from fedrec.core.updates import Layout, State, UpdateSum
from fedrec.evaluation.report import build_report
from fedrec.evaluation.sums import MetricSums
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.private_files import make_private
from fedrec.recommenders.registry import build
from fedrec.rounds.aggregation import rule_problems
from fedrec.rounds.build import chain_of
from fedrec.rounds.chain import ServerRound
from fedrec.rounds.shards import keep_outside
from fedrec.secagg.sums import label_of
from fedrec_server.rounds._checkpoints import Checkpoints
from fedrec_server.rounds._collectors import Answers, Collector, OpenCollector, Question
from fedrec_server.rounds._make_collector import make_collector
from fedrec_server.rounds._membership import Attendance
from fedrec_server.rounds._private_metrics import MetricsRound
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.cohorts import Devices
from fedrec_server.rounds.storage import MemoryStorage, Storage
from fedrec_server.rounds.task import Progress, Standing, Task

Event = dict[str, Any]


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
        task: Task,
        exchange: Exchange,
        collector: Collector,
        storage: Storage,
        *,
        private: Charges | None = None,
        metrics: MetricsRound | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task = task
        self._exchange = exchange
        self._stop = stop
        self._collector = collector
        self._recommender: Recommender = build(task.model)
        plan = task.privacy.plan if task.privacy else None
        rule = task.rounds.aggregation_rule
        if problems := rule_problems(rule, hidden=self._is_hidden, private=plan is not None):
            raise ConfigError("; ".join(problems))
        gradient = self._recommender.gradient_rounds
        self._chain = chain_of(task.settings, plan, gradient=gradient, rule=rule.rule())
        self._noise = None if plan is None else NoiseSource(plan.noise_seed).derive("server")
        self._private = private
        self._metrics = metrics
        self._checkpoints = storage
        standing = self._checkpoints.load() or self._beginning()
        self._shared, self._server, self._stages = standing.shared, standing.server, standing.stages
        self._progress = standing.progress
        self._collector.forget(but=self._next_sums())

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
            # Killed while the last round was being evaluated, it has no rounds left.
            if not self._phase_is_over():
                self._round()
            if self._phase_is_over():
                self._end_phase()
            elif self._stop():
                self._checkpoint(persist=True)
                return Outcome(False, self._progress.round, self._shared, {})
        self._collector.forget()
        return Outcome(True, self._progress.round, self._shared, self._checkpoints.end())

    # One round -----------------------------------------------------------------------------------------

    def _round(self) -> None:
        progress, started = self._progress, time.perf_counter()
        number = progress.round + 1
        keep = number % self.task.rounds.checkpoint_every == 0 or number == self._last_round()
        turn = self._turn(number)
        request = Request("train", number, progress.phase, self._shared, {"persist": keep} | turn.announced)
        record: Event = {"phase": progress.phase, "round": number, "nodes": 0, "failures": {}}
        try:
            answers = self._collector.ask(question_of(request, turn))
            record |= {"nodes": answers.nodes, "failures": answers.failures} | answers.facts
            if not self._enough(answers) and not self._is_hidden:
                self._abandon(record)
                return
            kept = answers.released
            summed = turn.combine(answers.values) if kept is None else turn.released(kept)
            total, stages, facts = turn.finish(summed)
        except AggregationAborted as error:
            if self._stop() and not error.revealed:  # it ended because of that, and costs no attempt
                return
            record |= {"nodes": 0, "failures": {"sum": str(error)}}
            (self._lose if error.revealed else self._abandon)(record)
            return
        except PrivacyRefused as error:
            record["failures"] = record["failures"] | {"sum": str(error)}
            (self._lose if self._collector.asks_once else self._abandon)(record)
            return
        self._stages = stages
        if total.users:
            self._apply(total, turn.context.layout)
        progress.round, progress.abandoned = number, 0
        record |= facts | self._sizes(turn, answers) | {"seconds": time.perf_counter() - started}
        progress.totals["seconds"] += record["seconds"]
        progress.totals["bytes_up"] += record["bytes_up_per_user"]
        progress.totals["bytes_down"] += record["bytes_down_per_user"]
        if self._is_evaluated(number):
            record["validation"] = self._evaluate_and_record()
        self._checkpoints.save_round(self._standing, record, checkpoint=keep)

    def _turn(self, number: int) -> ServerRound:
        """The chain in a round."""
        noise = None if self._noise is None else self._noise.derive("round", number)
        whole = self._recommender.layout(self.task.n_items, number)
        return ServerRound(self._chain, whole, self.task.n_items, number, self._stages, noise)

    def _apply(self, total: UpdateSum, layout: Layout) -> None:
        """The next model; rows of item tables that were not sent stay as they are."""
        shared, server = self._recommender.apply(self._shared, self._server, total)
        self._server = keep_outside(layout, self.task.n_items, self._server, server)
        self._shared = keep_outside(layout, self.task.n_items, self._shared, shared)

    def _enough(self, answers: Answers) -> bool:
        rounds, asked = self.task.rounds, answers.nodes + len(answers.failures)
        return answers.nodes >= max(rounds.min_nodes, int(np.ceil(rounds.min_reply_fraction * asked)))

    @property
    def is_gradient(self) -> bool:
        """Whether rounds are steps along gradients, of which each may miss."""
        return self._recommender.gradient_rounds and self._recommender.fixed_rounds is None

    @property
    def remembers(self) -> bool:
        """Whether a stage of the chain carries something from round to round."""
        return bool(self._chain.init())

    @property
    def _is_hidden(self) -> bool:
        """Whether sums alone are seen here."""
        return self._collector.hides_replies

    def _lose(self, record: Event) -> None:
        """A round that nodes will not answer again: it counts, and the model stays as it is."""
        progress, record = self._progress, record | {"lost": True}
        reasons = "; ".join(sorted(set(record["failures"].values())))
        if self._recommender.fixed_rounds is not None:
            raise RoundAbandoned(
                f"round {record['round']} is lost ({reasons}): this model needs each of its rounds; start a new run"
            )
        progress.round, progress.abandoned = record["round"], progress.abandoned + 1
        self._checkpoints.save_round(self._standing, record, checkpoint=True)
        if progress.abandoned >= self.task.rounds.max_abandoned:
            raise RoundAbandoned(
                f"round {record['round']} is the {progress.abandoned}th in a row that is lost ({reasons}): start "
                "more nodes, then resume the run"
            )

    def _abandon(self, record: Event) -> None:
        self._progress.abandoned += 1
        self._checkpoints.write_record(self._progress, record | {"abandoned": True})
        if self._progress.abandoned >= self.task.rounds.max_abandoned:
            self._checkpoint(persist=True)
            reasons = "; ".join(sorted(set(record["failures"].values()))) or "no answers"
            raise RoundAbandoned(
                f"round {record['round']} was abandoned {self._progress.abandoned} times: {record['nodes']} valid "
                f"replies, expected at least {self.task.rounds.min_nodes} ({reasons}); start more nodes, then "
                "resume the run"
            )

    def _sizes(self, turn: ServerRound, answers: Answers) -> Event:
        """What one round costs a user who is alone on a node."""
        plain = float(turn.payload)
        return {
            "bytes_up_per_user": answers.facts.get("secagg", {}).get("bytes_up_per_node", plain),
            "bytes_down_per_user": float(sum(values.nbytes for values in self._shared.values())),
        }

    # Phases --------------------------------------------------------------------------------------------

    def _last_round(self) -> int:
        if self._recommender.fixed_rounds is not None:
            return self._recommender.fixed_rounds
        chosen = self._progress.best_round if self._progress.phase == "refit" else 0
        return chosen or self.task.rounds.rounds

    def _phase_is_over(self) -> bool:
        progress, patience = self._progress, self.task.rounds.patience
        tired = progress.phase == "tuning" and patience is not None and progress.stale >= patience
        return progress.round >= self._last_round() or tired

    def _end_phase(self) -> None:
        if self._progress.phase == "tuning":
            self._progress = replace(self._progress, phase="refit", round=0)
            self._shared, self._server, self._stages = self._fresh()
        else:
            self._finish()
        self._checkpoint(persist=self._progress.done)

    def _finish(self) -> None:
        """Look at the test part, once, and write model and result."""
        progress = self._progress
        self._checkpoints.keep_model(self._standing)
        result: dict[str, Any] = {
            "rounds": progress.round,
            "validation": {self.task.rounds.select_metric: progress.best_value}
            if progress.best_round
            else None,
            "test": None,
            "totals": progress.totals,
            "model_bytes": sum(values.nbytes for values in self._shared.values()),
        }
        if self.task.has_test and self._private is None:
            result |= self._test()
        elif self.task.has_test and self._metrics is not None:
            result |= self._release_metrics(self._metrics)
        self._checkpoints.keep_result(result)
        progress.done = True

    def _is_evaluated(self, number: int) -> bool:
        select = self._progress.phase == "tuning"
        return select and (number % self.task.rounds.evaluate_every == 0 or number == self._last_round())

    def _evaluate_and_record(self) -> dict[str, Any]:
        """Validation metrics of this round; remembers the best round. Metrics that are lost choose nothing."""
        progress = self._progress
        try:
            values = build_report(self._evaluate()).values()
        except AggregationAborted as error:
            return {"lost": str(error)}
        value = values[self.task.rounds.select_metric]
        if value > progress.best_value:
            progress.best_round, progress.best_value, progress.stale = progress.round, value, 0
        else:
            progress.stale += 1
        return values

    def _evaluate(self) -> MetricSums:
        request = Request("evaluate", self._progress.round, self._progress.phase, self._shared)
        final = self._progress.phase == "refit"
        like = MetricSums.empty(
            self.task.evaluation if final else self.task.evaluation.quick(), self.task.n_items
        )
        question = Question(
            request,
            lambda reply, users, summed: MetricSums.from_arrays(reply.arrays, like, users),
            like.to_arrays(),
            (),
        )
        return functools.reduce(MetricSums.merge, self._ask_evaluation(question).values, like)

    def _ask_evaluation(self, question: Question) -> Answers:
        """Enough answers to an evaluation; one that is lost is not abandoned."""
        try:
            answers = self._collector.ask(question)
        except AggregationAborted as error:
            if error.revealed:
                raise
            raise RoundAbandoned(f"evaluation: {error}; start more nodes, then resume the run") from error
        if not self._enough(answers) and not self._is_hidden:
            raise RoundAbandoned(
                f"evaluation: {answers.nodes} valid replies, too few ({answers.failures}); start more nodes, "
                "then resume the run"
            )
        return answers

    def _test(self) -> Event:
        """The look at the test part, or why it is lost: nodes let the same sum out once."""
        try:
            return {"test": build_report(self._evaluate()).as_dict()}
        except AggregationAborted as error:
            return {"test_lost": str(error)}

    def _release_metrics(self, metrics: MetricsRound) -> Event:
        """The one look of a private run: noised, charged, and said again as it was after a kill."""
        try:
            found = metrics.earlier()
            if found is None:
                answers = self._ask_evaluation(metrics.question(self._shared))
                noised = answers.released
                found = metrics.release(metrics.noised(answers.values) if noised is None else noised)
            return {"test": found}
        except AggregationAborted as error:
            return {"test_lost": str(error)}
        except PrivacyRefused as error:
            if self._collector.asks_once:
                return {"test_lost": str(error)}
            raise RoundAbandoned(f"evaluation: {error}; start more nodes, then resume the run") from error

    # Where it stands -----------------------------------------------------------------------------------

    @property
    def _standing(self) -> Standing:
        return Standing(self._shared, self._server, self._stages, self._progress)

    def _next_sums(self) -> tuple[str, ...]:
        """Labels of the sums that may be asked for next, and so may have come before a kill."""
        progress = self._progress
        if progress.done:
            return ()
        now, later = progress.round, progress.round + 1
        asked = (("train", later), ("evaluate", now), ("evaluate", later))
        return tuple(label_of(kind, progress.phase, number) for kind, number in asked)

    def _fresh(self) -> tuple[State, State, State]:
        features = self._checkpoints.features()
        shared = self._recommender.init_shared(self.task.n_items, self.task.settings.seed, features)
        return shared, self._recommender.init_server(shared), self._chain.init()

    def _beginning(self) -> Standing:
        free = self._recommender.fixed_rounds is None and self._private is None
        progress = Progress("tuning" if self.task.has_validation and free else "refit")
        return Standing(*self._fresh(), progress)

    def _checkpoint(self, *, persist: bool = False) -> None:
        if persist and not self._progress.done:
            request = Request("persist", self._progress.round, self._progress.phase)
            here = dict.fromkeys(self._collector.present(), request)
            self._exchange.exchange(here, self.task.rounds.deadline_seconds)
        self._checkpoints.save(self._standing)


def question_of(request: Request, turn: ServerRound) -> Question:
    """What every node is asked, and how its answer, or the sum of all answers, is read."""

    def noised(summed: UpdateSum) -> NDArray[Any]:
        return turn.keep(turn.combine([summed]))

    return Question(
        request,
        lambda reply, users, summed: turn.read(reply, users, summed=summed),
        turn.example,
        turn.names,
        noised if turn.is_noised else None,
    )


def open_coordinator(
    folder: Path,
    exchange: Exchange,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    integers: bool = False,
    devices: Devices | None = None,
) -> Coordinator:
    """The coordinator of a run folder's `coordinator/`, which continues after its last checkpoint.

    Args:
        folder: the coordinator's.
        exchange: to nodes that stay.
        on_event: gets what happens.
        stop: asked between rounds and while a cohort forms; when true, the run ends there, to be resumed.
        integers: nodes hand in the integers of secure aggregation without masks (in one process only).
        devices: of a job, whose cohorts are formed for each round.

    Raises:
        RunError: no task can be read there, or it is a job's and there are no devices.
    """
    task = Task.read(folder)
    make_private(folder)
    private = Charges(task.privacy, folder) if task.privacy else None
    releases = private is not None and private.plan.metrics is not None
    metrics = MetricsRound(private, folder) if private is not None and releases else None
    alone = devices is not None and devices.settings.target == 0
    members = Attendance(task, exchange, on_event, sites_alone=alone)
    collector = make_collector(task, exchange, members, folder, integers=integers, devices=devices, stop=stop)
    storage = Checkpoints(folder, private, on_event, collector.forget)
    return Coordinator(task, exchange, collector, storage, private=private, metrics=metrics, stop=stop)


def coordinator_in_memory(
    task: Task,
    exchange: Exchange,
    storage: MemoryStorage,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Coordinator:
    """The coordinator of a run whose replies need no key, no ledger and no other file.

    Raises:
        ConfigError: a run that needs one of them.
    """
    if task.privacy is not None or task.aggregation.kind != "plain":
        raise ConfigError(
            f"a run with a privacy plan or aggregation {task.aggregation.kind!r} keeps a ledger or keys: give it a "
            "folder"
        )
    collector = OpenCollector(exchange, Attendance(task, exchange, on_event), task.rounds.deadline_seconds)
    return Coordinator(task, exchange, collector, storage, stop=stop)
