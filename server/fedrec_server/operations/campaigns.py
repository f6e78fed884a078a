"""A training campaign from the operator's side: enrol devices, train with them, publish what came of it.

    open -> devices enrol with fresh keys -> close: roster, privacy plan and terms are fixed, signed as a task
    -> SuperLink and gateway start for these devices alone -> rounds under secure aggregation -> a signed version

The operator's process sees public keys, encrypted updates and sums. Devices that leave say so, and when too few are
left for any sum the campaign ends at once. However it ends, devices that ask are told within seconds. Out of scope:
the devices (`fedrec_client`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedrec.core.errors import ConfigError, RegistryError
from fedrec.core.files import write_json
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.statement import StatementFacts, statement, write_statement
from fedrec.ranking.model import ServingModel
from fedrec.recommenders.registry import build
from fedrec.recommenders.serving import check_serves
from fedrec.rounds.agreement import config_hash
from fedrec.secagg.roster import Member
from fedrec.secagg.terms import SecaggTerms
from fedrec.wire.bundle import BUNDLE
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Package, Terms, pack_model
from fedrec.wire.signing import OnlineKeys
from fedrec_server.federation.federation import Federation
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.run_files import app_folder, read_outcome
from fedrec_server.operations.campaign_book import DONE, CampaignBook, Enrolled
from fedrec_server.operations.enrolment import schedule_of, secagg_terms
from fedrec_server.operations.ledger_facts import ledger_facts
from fedrec_server.operations.privacy_terms import terms_of
from fedrec_server.operations.publishing import served, statement_of, summary
from fedrec_server.operations.run_artifacts import environment
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import HELD_DATA, TaskSpecification
from fedrec_server.registry import Registry
from fedrec_server.rounds.task import Task

Event = dict[str, Any]
Finish = Callable[[ServingModel, Package], ServingModel]
POLL_SECONDS = 0.5
#: A sum whose vectors were in before too many devices left can be opened within this time.
LAST_SUM_SECONDS = 5.0
TASK_LIFETIME_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Campaign:
    """One campaign.

    Attributes:
        id: random.
        book: where its enrolments lie.
        registry: whose champion the devices use, and where the result goes.
        config: model, privacy, rounds; its data section is not used: the data are the devices'.
        keys: sign the task and the result.
        finish: from what was trained and the champion to what is published, e.g. a layer on a model of public data.
        stop: asked all the while; when true, the campaign ends within seconds.
    """

    id: str
    book: CampaignBook
    registry: Registry
    config: TaskSpecification
    keys: OnlineKeys
    finish: Finish = lambda trained, champion: trained
    stop: Callable[[], bool] = lambda: False
    _held: IO[bytes] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        book: CampaignBook,
        registry: Registry,
        config: TaskSpecification,
        keys: OnlineKeys,
        max_devices: int = 64,
        *,
        finish: Finish = lambda trained, champion: trained,
        stop: Callable[[], bool] = lambda: False,
    ) -> Campaign:
        """Let devices enrol.

        Raises:
            ConfigError: the configuration has no secure aggregation, or a model that devices could not be given.
            RegistryError: there is no champion whose items the devices have.
        """
        if config.privacy.aggregator != "secagg":
            raise ConfigError(
                f"privacy.aggregator is {config.privacy.aggregator!r}: a campaign needs 'secagg', because no one "
                "should see a device's own update"
            )
        if getattr(config.evaluation, HELD_DATA, False):
            raise ConfigError("evaluation.held_data is true: a campaign's data is on users' devices; drop it")
        if not isinstance(config.privacy, NoPrivacy) and config.privacy.metrics != "none":
            raise ConfigError(
                f"privacy.metrics is {config.privacy.metrics!r}: devices hold nothing out to be evaluated; leave "
                "it out"
            )
        check_serves(build(config.model))
        read = [name for name in ("features", "reviews") if getattr(config.model, name, 0)]
        if read:
            raise ConfigError(
                f"model.{read[0]} is {getattr(config.model, read[0])}: devices have no such vectors; set it to 0, or "
                "take a model without them"
            )
        if not registry.aliases.champion:
            raise RegistryError(
                f"{registry.population} has no champion: promote a model whose items devices know"
            )
        made = book.open(registry.population, max_devices)
        return cls(made, book, registry, config, keys, finish, stop, book.hold(made))

    @property
    def folder(self) -> Path:
        """Everything of it."""
        return self.book.folder(self.id)

    def await_devices(
        self, count: int, seconds: float, on_step: Callable[[str], None] = lambda step: None
    ) -> int:
        """Wait until so many devices are enrolled; how many are.

        Raises:
            RegistryError: too few came, or the campaign was stopped; it is over.
        """
        deadline, seen = time.monotonic() + seconds, -1
        with self._ended_by_errors():
            while True:
                self._expect_no_stop()
                here = len(self.book.roster(self.id))
                if here != seen:
                    on_step(f"{here} of {count} devices enrolled")
                    seen = here
                if here >= count:
                    return here
                if time.monotonic() > deadline:
                    raise RegistryError(
                        f"{here} devices enrolled within {seconds:g} s: {count} are wanted; wait longer"
                    )
                time.sleep(POLL_SECONDS)

    def end(self, how: str) -> None:
        """The campaign is over: devices that ask are told so. Ended again, nothing changes."""
        self.book.end(self.id, how)
        if self._held is not None:
            self._held.close()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # Told to stop, it may end by whatever the stop broke.
            stopped = self.stop() or isinstance(error, KeyboardInterrupt)
            self.end("stopped" if stopped else str(error) or type(error).__name__)
            raise

    def _expect_no_stop(self) -> None:
        if self.stop():
            raise RegistryError(f"campaign {self.id[:8]} was stopped: open a new one")

    def run(
        self,
        on_step: Callable[[str], None] = lambda step: None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> Manifest:
        """Close the roster, train, publish and promote; the new version.

        Raises:
            FedrecError: whatever ended it; the registry is as it was.
        """
        with self._ended_by_errors():
            devices = self.book.close(self.id)
            task, run = self._task(devices)
            watch = self._watch(task, devices, Launch(run / "coordinator"), on_step)
            federation = Federation.admit(
                self.folder / "federation",
                [d.node_key for d in devices],
                on_step=on_step,
                stop=watch,
            )
            try:
                signed = self.registry.sign_task(self.id, self._payload(task, federation), self.keys)
                self.book.give(self.id, signed)
                on_step("task signed: roster, privacy plan and terms are fixed")
                seconds = task.rounds.wait_seconds
                started = federation.start_run(run, app_folder(), wait_seconds=seconds)
                finished = started.wait(on_event=on_event, stop=watch)
            finally:
                federation.down()
                federation.forget()
            outcome = read_outcome(run, finished)
            on_step(f"{outcome.rounds} rounds summed")
            made = self._publish(outcome.shared, self._statement(run, task, devices, outcome.rounds))
            self.end(DONE)
            on_step(f"version {made.version} signed and promoted")
            return made

    def _watch(
        self, task: Task, devices: list[Enrolled], launch: Launch, on_step: Callable[[str], None]
    ) -> Callable[[], bool]:
        """Asked while devices train; raises RegistryError when no sum can be opened any more, and tells who left."""
        terms, told, few_since = task.aggregation, 0, float("inf")
        assert isinstance(terms, SecaggTerms)

        def watch() -> bool:
            nonlocal told, few_since
            self._expect_no_stop()
            gone = self.book.left(self.id)
            stay = [device for device in devices if device.identity not in gone]
            if len(gone) != told:
                told = len(gone)
                launch.note_left([str(k) for k, device in enumerate(devices) if device not in stay])
                on_step(f"{told} of {len(devices)} devices have left")
            enough = len(stay) >= terms.min_nodes and sum(device.users for device in stay) >= terms.min_users
            few_since = float("inf") if enough else min(few_since, time.monotonic())
            if time.monotonic() - few_since > LAST_SUM_SECONDS:
                raise RegistryError(
                    f"{told} of {len(devices)} devices have left: a sum needs {terms.min_nodes} devices and "
                    f"{terms.min_users:g} users; open a new campaign"
                )
            return False

        return watch

    def _task(self, devices: list[Enrolled]) -> tuple[Task, Path]:
        """What coordinator and devices agree on, written into a run folder."""
        items = self._item_ids()
        users = sum(device.users for device in devices)
        privacy = terms_of(self.config, users, len(items), f"campaign {self.id}")
        members = [
            Member(name=str(k), key=device.identity, users=device.users) for k, device in enumerate(devices)
        ]
        name = privacy.run if privacy else self.id
        schedule = schedule_of(self.config, privacy, has_validation=False, has_test=False)
        terms = secagg_terms(self.config, members, name, privacy, schedule)
        settings, evaluation = self.config.node_settings(), EvaluationSettings()
        fingerprint = config_hash(self.config.model, settings, evaluation, items, privacy, terms)
        task = Task(
            self.config.model,
            settings,
            self.config.round_settings(),
            evaluation,
            len(items),
            fingerprint,
            False,
            False,
            privacy,
            aggregation=terms,
        )
        run = self.folder / "run"
        task.write(run / "coordinator")
        for k, device in enumerate(devices):
            (run / "nodes" / str(k)).mkdir(parents=True, exist_ok=True)
            write_json(run / "nodes" / str(k) / "enrolment.json", vars(device))
        return task, run

    def _payload(self, task: Task, federation: Federation) -> dict[str, Any]:
        """See `fedrec_client.training`."""
        parts = {
            "model": task.model,
            "settings": task.settings,
            "evaluation": task.evaluation,
            "privacy": task.privacy,
            "aggregation": task.aggregation,
        }
        items = "\0".join(self._item_ids().tolist()).encode()
        return {
            "created": int(time.time()),
            "expires": int(time.time()) + TASK_LIFETIME_SECONDS,
            "model_version": self.registry.aliases.champion,
            "items": hashlib.sha256(items).hexdigest(),
            "node": {name: part and part.model_dump(mode="json") for name, part in parts.items()},
            "superlink": f"127.0.0.1:{federation.record.gateway_port}",
            "superlink_ca": federation.parts.ca.read_text(),
            "bundle": BUNDLE,
            "rounds": build(task.model).fixed_rounds or task.rounds.rounds,
        }

    def _item_ids(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        package = self.registry.open(self.registry.aliases.champion)
        return np.array(package.items.ids)

    def _statement(self, run: Path, task: Task, devices: list[Enrolled], rounds: int) -> dict[str, Any]:
        """What may be claimed of the result, as for any other run."""
        packages = environment()
        facts = StatementFacts(
            rounds=rounds,
            engine="deployment",
            nodes=len(devices),
            users_per_node=min(device.users for device in devices),
            aggregator="secagg",
            least_nodes=self.config.secagg.min_nodes,
            simulated=False,
            metrics="none",
            selected=False,
            audit=None,
            exact_numbers=()
            if task.privacy
            else ("loss", "examples", "norms before clipping", "number clipped"),
            code=f"fedrec {packages['fedrec']}",
            config_hash=task.config_hash,
            packages=packages,
            **ledger_facts(run, task.privacy),
        )
        made = statement(task.privacy.plan if task.privacy else None, facts)
        write_statement(run, made)
        return statement_of(run)

    def _publish(self, shared: dict[str, Any], told: dict[str, Any]) -> Manifest:
        before = self.registry.open(self.registry.aliases.champion)
        model = self.finish(served(self.config, shared), before)
        files = pack_model(model, before.items, told)
        facts = summary(self.config, told) | {"campaign": self.id}
        made = self.registry.publish(files, Terms(0, int(time.time()), summary=facts), self.keys)
        self.registry.promote(made.version, self.keys)
        return made
