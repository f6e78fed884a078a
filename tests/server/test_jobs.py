"""Jobs: from a specification to a signed version, whatever is paused, is late or does not come on the way."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from job_helpers import EASE, MF, LocalOffers, Operator, device, in_thread, model_digest, specification

from fedrec.core.errors import ConfigError, FedrecError, PrivacyRefused, RegistryError, RunError
from fedrec.core.files import read_arrays
from fedrec.core.messages import Failure, Reply
from fedrec.secagg.roster import Identity
from fedrec_server.jobs import events
from fedrec_server.jobs.events import EARLIER, EVENTS, Events, read_events, reasons
from fedrec_server.jobs.job import SIGNER, Job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.record import BEFORE, RECORD, Record, advance, read_record, write_record
from fedrec_server.jobs.work import Worker, publish
from fedrec_server.rounds.coordinator import open_coordinator


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator.make(tmp_path)


def test_a_job_trains_publishes_and_promotes(operator: Operator) -> None:
    job, world = operator.job(), LocalOffers()
    assert Worker(job, world).work() == "published"
    record = job.record()
    assert (record.version, record.run, record.error) == (2, 1, "")
    made = operator.registry.manifest(2)
    assert operator.registry.aliases.champion == 2 and made.privacy["run"] == job.offer(1)
    assert world.offers == {job.offer(1): "published"} and world.endings == ["done", "done"]
    signed = json.loads(world.documents[job.offer(1)])
    assert signed["job"] == job.offer(1) and signed["cohort"] == {"target": 4, "least": 3}
    assert signed["node"]["privacy"]["ledger"] is None and signed["cycle"] is None
    assert [event["what"] for event in read_events(job.folder)][-2:] == ["gates", "published"]
    assert all("time" in event for event in read_events(job.folder))
    # Worked on again, nothing changes.
    assert Worker(job, world).work() == "published" and operator.registry.versions() == [1, 2]
    assert publish(job)["version"] == 2 and operator.registry.versions() == [1, 2]


def test_its_keys_are_its_owners_and_its_own(operator: Operator) -> None:
    one, other = operator.job(), operator.job()
    assert one.signer.public != other.signer.public
    assert stat.S_IMODE((one.folder / SIGNER).stat().st_mode) == 0o600
    assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700


class _InProcess:
    """The same users as nodes of one process, without masks."""

    def __init__(self, document: dict[str, Any], users: int) -> None:
        self._nodes = {
            str(k): device(document, k, Identity.create(), simulated="integers") for k in range(users)
        }

    def nodes(self) -> list[str]:
        return sorted(self._nodes)

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        return {node: self._nodes[node].handle(request) for node, request in requests.items()}


@pytest.mark.parametrize("plain", [EASE, MF], ids=["one-round model", "gradients"])
def test_the_model_is_that_of_the_same_users_in_one_process(
    operator: Operator, tmp_path: Path, plain: dict[str, Any]
) -> None:
    job, world = operator.job(specification(plain)), LocalOffers()
    Worker(job, world).work()
    document = json.loads(world.documents[job.offer(1)])
    alone = tmp_path / "alone" / "coordinator"
    alone.mkdir(parents=True)
    (alone / "task.json").write_bytes((job.run(1) / "coordinator" / "task.json").read_bytes())
    outcome = open_coordinator(alone, _InProcess(document, 4), integers=True).run()
    trained = read_arrays(job.run(1) / "coordinator" / "model.safetensors")[0]
    assert trained.keys() == outcome.shared.keys()
    assert all(trained[name].tobytes() == values.tobytes() for name, values in outcome.shared.items())


# Specifications -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("privacy", {"aggregator": "sealed"}, "needs 'secagg'"),
        ("privacy", {"metrics": "noised"}, "hold nothing out"),
        ("federation", {"sampling_rate": 0.5}, "those that are here"),
        ("evaluation", {"held_data": True}, "held_data"),
        ("job", {"participations": 3}, "at most the 2 rounds"),
        ("job", {"schedule": "every day"}, "every N h"),
        ("job", {"cohort": {"target": 4, "least": 5}}, "in this order"),
        ("job", {"cohort": {"target": 8, "least": 4}}, "a sum needs 6"),
        ("job", {"rounds": 3}, "unknown key job.rounds"),
    ],
)
def test_a_wrong_job_is_refused_in_one_line(section: str, values: dict[str, Any], words: str) -> None:
    base = MF if section == "federation" else EASE
    plain = base | {section: base.get(section, {}) | values}
    with pytest.raises(ConfigError, match=words) as caught:
        specification(plain)
    assert "\n" not in str(caught.value)


def test_a_plan_that_keeps_no_target_is_refused_before_there_is_a_job(operator: Operator) -> None:
    hard = EASE | {"privacy": EASE["privacy"] | {"delta": 0.5}}
    with pytest.raises(PrivacyRefused):
        operator.job(specification(hard))
    crowded = EASE | {"privacy": EASE["privacy"] | {"bits": 12}, "secagg": {"bits": 32}}
    with pytest.raises((ConfigError, PrivacyRefused)):
        operator.job(specification(crowded))
    assert not Job.all(operator.jobs)


def test_without_a_champion_devices_know_no_items(tmp_path: Path) -> None:
    operator = Operator.make(tmp_path)
    with pytest.raises(RegistryError, match="no registry"):
        Job.create(operator.jobs, specification(), "books", registry=operator.models, keys=operator.keys)


def test_devices_that_keep_a_distance_are_charged_less(operator: Operator) -> None:
    every, seldom = MF["job"]["participations"], 2
    epsilons = {}
    for participations in (every, seldom):
        what = specification(MF, participations=participations)
        job, world = operator.job(what), LocalOffers()
        Worker(job, world).work()
        document = json.loads(world.documents[job.offer(1)])
        plan = document["node"]["privacy"]["plan"]
        epsilons[participations] = plan["noise_multipliers"][0]
        assert document["cycle"] == (None if participations == every else 3)
    assert epsilons[seldom] < epsilons[every]


# Operators' wishes ----------------------------------------------------------------------------------------


def test_no_state_is_reached_but_from_those_before_it(tmp_path: Path) -> None:
    write_record(tmp_path, Record("films", "models", "keys", 1.0))
    for state in BEFORE:
        for to, before in BEFORE.items():
            write_record(tmp_path, Record("films", "models", "keys", 1.0, state=state, run=1))
            if to == state or state in before:
                assert advance(tmp_path, to, 2.0).state == to
                assert advance(tmp_path, to, 3.0) == read_record(tmp_path)  # again, nothing changes
            else:
                with pytest.raises(RunError, match=f"is {state}"):
                    advance(tmp_path, to, 2.0)
                assert read_record(tmp_path).state == state


def test_a_pause_in_mid_round_is_told_to_its_devices_and_the_round_is_made_again(operator: Operator) -> None:
    job, paused = operator.job(), []

    def fate(kind: str, round_: int, user: int) -> bool:
        if (kind, round_) == ("train", 2) and not paused:
            paused.append(job.pause().state)
            time.sleep(1.5)  # longer than the worker takes to see it
        return True

    world = LocalOffers(fate=fate)
    assert Worker(job, world).work() == "paused"
    assert world.offers == {job.offer(1): "paused"}
    assert job.resume().state == "running" and job.resume().state == "running"
    assert Worker(job, world).work() == "published"
    assert [each["round"] for each in rounds_of(job.run(1))] == [1, 2]
    undisturbed = operator.job()
    Worker(undisturbed, LocalOffers()).work()
    assert model_digest(job) == model_digest(undisturbed)


def test_a_cohort_that_waits_for_an_answer_is_let_go_of_at_once(operator: Operator) -> None:
    from threading import Event

    job, asked, held = operator.job(), Event(), Event()

    def fate(kind: str, round_: int, user: int) -> bool:
        if kind == "train":
            asked.set()
            held.wait(60)
        return True

    world, found = LocalOffers(fate=fate), []
    thread = in_thread(lambda: found.append(Worker(job, world).work()))
    assert asked.wait(60)
    job.abort()
    thread.join(15)
    assert found == ["aborted"] and world.endings == ["aborted"] and world.offers[job.offer(1)] == "aborted"
    held.set()
    with pytest.raises(RunError, match="is aborted"):
        job.resume()


def test_two_processes_do_not_work_on_one_job(operator: Operator) -> None:
    job = operator.job()
    with job.worked():
        assert job.is_worked
        with pytest.raises(RunError, match="another process"):
            Worker(job, LocalOffers()).work()
    assert not job.is_worked


# Devices ----------------------------------------------------------------------------------------------------


def test_too_few_devices_for_a_while_cost_time_and_nothing_else(operator: Operator) -> None:
    tries: list[int] = []

    def users() -> int:
        tries.append(1)
        return 2 if len(tries) < 8 else 4

    job, waited = (
        operator.job(specification(EASE | {"federation": EASE["federation"] | {"max_abandoned": 3}})),
        [],
    )
    assert Worker(job, LocalOffers(users), sleep=waited.append).work() == "published"
    failed = [each for each in read_events(job.folder) if each["what"] == "round failed"]
    assert len(failed) == 7 and failed[0]["reasons"] == {"# devices joined: expected at least #": 1}
    pauses = [each["seconds"] for each in read_events(job.folder) if each["what"] == "waiting"]
    assert pauses == [0.01] + [0.02] * 6 and waited
    assert job.record().error == ""


def test_devices_that_drop_out_before_their_vector_leave_a_sum_of_the_rest(operator: Operator) -> None:
    def fate(kind: str, round_: int, user: int) -> bool:
        return not (user == 3 and kind in ("train", "confirm", "unmask"))

    job = operator.job()
    assert Worker(job, LocalOffers(fate=fate)).work() == "published"
    assert [each["nodes"] for each in rounds_of(job.run(1))] == [3, 3]


def test_the_next_cohort_forms_while_one_computes(operator: Operator) -> None:
    world = LocalOffers()
    job = operator.job(specification(MF))
    Worker(job, world).work()
    assert world.prepared == [2, 3, 4, 5, 6]


# Gates and publication --------------------------------------------------------------------------------------


def test_gates_keep_a_version_from_becoming_champion(operator: Operator, tmp_path: Path) -> None:
    looks = tmp_path / "gate.py"
    looks.write_text(
        "import sys, pathlib\n"
        "assert (pathlib.Path(sys.argv[1]) / 'manifest.json').exists()\n"
        "sys.exit('too few films')\n"
    )
    gates = {"min_participants": 5, "max_epsilon": 1.0, "command": [sys.executable, str(looks)]}
    job = operator.job(specification(gates=gates))
    assert Worker(job, LocalOffers()).work() == "published"
    found = publish(job)
    assert operator.registry.aliases.champion == 1 and operator.registry.versions() == [1, 2]
    assert not found["promoted"] and len(found["gates"]) == 3 and "too few films" in found["gates"][2]
    looks.write_text("")
    passing = operator.job(
        specification(gates={"min_participants": 4, "command": [sys.executable, str(looks)]})
    )
    Worker(passing, LocalOffers()).work()
    assert operator.registry.aliases.champion == passing.record().version == 3


def test_a_version_may_wait_for_its_operator(operator: Operator) -> None:
    job = operator.job(specification(promote=False))
    assert Worker(job, LocalOffers()).work() == "published"
    assert operator.registry.aliases.champion == 1 and job.record().version == 2


def test_what_was_trained_is_published_later_by_hand(operator: Operator) -> None:
    job, keys = operator.job(), operator.keys
    with pytest.raises(RunError, match="is running"):
        publish(job)
    aside = keys.with_name("aside")

    class KeysAreLost(LocalOffers):
        def end(self, offer: str, state: str) -> None:
            super().end(offer, state)
            if keys.exists():
                keys.rename(aside)

    with pytest.raises(RunError, match="online"):
        Worker(job, KeysAreLost()).work()
    assert job.record().state == "trained" and "online" in job.record().error
    with pytest.raises(RunError, match="online"):
        publish(job)
    aside.rename(keys)
    assert publish(job)["version"] == 2 and job.record().state == "published" and job.record().error == ""


def test_what_another_try_cannot_change_fails_and_can_be_resumed(operator: Operator) -> None:
    job = operator.job()
    (job.folder / SIGNER).rename(job.folder / "aside.key")
    assert Worker(job, LocalOffers()).work() == "failed"
    assert "signer.key" in job.record().error
    (job.folder / "aside.key").rename(job.folder / SIGNER)
    job.resume()
    assert Worker(job, LocalOffers()).work() == "published"


@pytest.mark.parametrize("writes", [0, 5, 12, 25, 40, 60, 75])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    job, sync, left = operator.job(), os.fsync, [writes]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FedrecError, match="No space left"):
            Worker(job, LocalOffers()).work()
    assert job.record().state in ("running", "trained")
    assert Worker(job, LocalOffers()).work() == "published"
    assert operator.registry.aliases.champion == operator.registry.versions()[-1]
    assert len(operator.registry.versions()) == 2


# Files ------------------------------------------------------------------------------------------------------


def test_events_are_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_BYTES", 400)
    noted = Events(tmp_path, lambda: 1.0)
    for k in range(40):
        noted.note("round", round=k)
    sizes = [(tmp_path / name).stat().st_size for name in (EVENTS, EARLIER)]
    assert max(sizes) <= 400 and noted.last(1)[0]["round"] == 39
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"time": 1.0, "wha')
    assert noted.last(1)[0]["round"] == 39


def test_reasons_are_counted_and_name_no_device() -> None:
    found = reasons({f"{k}": f"no answer within {k} s" for k in range(30)} | {"x": "left"})
    assert found == {"no answer within # s": 30, "left": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "running"}', '{"wrong": 1}'])
def test_a_broken_record_is_one_line(operator: Operator, content: str) -> None:
    job = operator.job()
    (job.folder / RECORD).write_text(content)
    with pytest.raises(RunError, match="restore it from a backup"):
        job.record()
    with pytest.raises(RunError):
        Job.find(operator.jobs, "00")
