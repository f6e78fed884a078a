"""Rounds over cohorts of the devices that are here: rosters per attempt, drop-outs, lost sums, sites too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort_helpers import CONFIG, ITEMS, Job, LocalCohorts, SummingCohorts, split_of
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import (
    AggregationAborted,
    AggregationRefused,
    FedrecError,
    PrivacyRefused,
    RoundAbandoned,
    RunError,
)
from fedrec.core.files import write_secret
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.recommenders.registry import parse
from fedrec.secagg.roster import Identity
from fedrec.secagg.signed_roster import roster_of, sign_roster
from fedrec_client.node._memory import HeldMemory
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node
from fedrec_client.node.private_releases import PaidReleases, PrivateReleases
from fedrec_server.federation.site_cohorts import SIGNER, sites_only, write_sites
from fedrec_server.rounds._joint_exchange import JointExchange, summed
from fedrec_server.rounds.cohorts import Joined
from fedrec_server.rounds.coordinator import Outcome, open_coordinator

HISTORIES = ([0, 1, 2], [0, 1, 3], [0, 2, 4], [5, 0, 11])
STAGES = ("advertise", "share", "train", "confirm", "unmask")


class NoSites:
    def nodes(self) -> list[str]:
        return []

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        return {}


def run(folder: Path, cohorts: LocalCohorts, **options: Any) -> Outcome:
    cohorts.job.write(folder)
    return open_coordinator(folder, NoSites(), devices=cohorts.devices(), **options).run()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_every_round_has_a_cohort_of_its_own(tmp_path: Path) -> None:
    cohorts = LocalCohorts(Job.of(4, 6), [HISTORIES])
    outcome = run(tmp_path, cohorts)
    assert outcome.finished and outcome.rounds == 2
    assert [(each.round, each.target, each.most) for each in cohorts.wanted] == [(1, 4, 6), (2, 4, 6)]
    assert cohorts.endings == ["done", "done"]
    counts = np.zeros(ITEMS)
    for history in HISTORIES:
        counts[history] += 1 / np.sqrt(len(history))
    found = outcome.shared["count"]
    np.testing.assert_allclose(found / np.linalg.norm(found), counts / np.linalg.norm(counts), atol=0.05)


def test_the_next_cohort_may_form_while_this_one_computes(tmp_path: Path) -> None:
    cohorts = LocalCohorts(Job.of(4, 6), [HISTORIES])
    run(tmp_path, cohorts)
    assert [each.round for each in cohorts.prepared] == [2]  # no cohort forms after the last round


def test_one_cohort_gives_the_same_integers_however_its_vectors_are_carried(tmp_path: Path) -> None:
    """Masked one by one, masked and added up on the way, and in process without masks."""
    job = Job.of(4, 6)
    masked = run(tmp_path / "a", LocalCohorts(job, [HISTORIES])).shared
    added = run(tmp_path / "b", SummingCohorts(job, [HISTORIES])).shared
    for name, values in masked.items():
        np.testing.assert_array_equal(added[name], values)
    cohorts = LocalCohorts(job, [HISTORIES])
    job.write(tmp_path / "c")
    clear = open_coordinator(tmp_path / "c", _InProcess(job), integers=True).run().shared
    assert cohorts.seen == []
    for name, values in masked.items():
        np.testing.assert_array_equal(clear[name], values)


class _InProcess:
    """Nodes of the same users as the cohorts', which hand in integers without masks."""

    def __init__(self, job: Job) -> None:
        self.job, self.fingerprint = job, ""

    def nodes(self) -> list[str]:
        return [str(place) for place in range(len(HISTORIES))]

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        answers: dict[str, Reply | Failure] = {}
        for name, request in requests.items():
            user = 100 * max(request.round, 1) + int(name)
            node = Node(
                split_of([HISTORIES[int(name)]], user),
                CONFIG.model,
                CONFIG.node_settings(),
                EvaluationSettings(),
                LocalStore(None),
                privacy=self.job.privacy,
                aggregation=self.job.terms,
                simulated="integers",
                releases=PaidReleases(self.job.privacy.plan.charges),
            )
            answers[name] = node.handle(request)
        return answers


@pytest.mark.parametrize("stage", STAGES)
def test_a_device_that_drops_leaves_an_exact_sum(tmp_path: Path, stage: str) -> None:
    """The last device drops in round 1; item 11, its alone, tells whether it is in the sum."""

    def silent(place: int, request: Request) -> bool:
        return place == 3 and request.kind == stage and request.round == 1

    cohorts = LocalCohorts(Job.of(4, 6, least=3), [HISTORIES], silent)
    outcome = run(tmp_path, cohorts)
    assert outcome.finished
    inside = stage in ("confirm", "unmask")
    first = records(tmp_path)[0]
    assert first["nodes"] == (4 if inside else 3)


def test_too_few_devices_cost_an_attempt_and_not_the_job(tmp_path: Path) -> None:
    cohorts = LocalCohorts(Job.of(4, 6), [HISTORIES[:2], HISTORIES])
    outcome = run(tmp_path, cohorts)
    assert outcome.finished
    first = records(tmp_path)[0]
    assert first["abandoned"] and "2 devices joined" in first["failures"]["sum"]


def test_a_cohort_that_fails_after_shares_were_given_away_is_followed_by_another(tmp_path: Path) -> None:
    """All devices vanish in the last stage of the first attempt: its sum is lost, and the job is not."""
    attempts: list[int] = []

    def silent(place: int, request: Request) -> bool:
        attempts.append(int(request.meta.get("secagg/attempt", 0)))
        return request.kind == "unmask" and attempts[-1] == 1

    cohorts = LocalCohorts(Job.of(4, 6), [HISTORIES], silent)
    assert run(tmp_path, cohorts).finished
    assert cohorts.endings == ["too_few", "done", "done"]
    assert [each.round for each in cohorts.wanted] == [1, 1, 2]


def test_a_job_ends_in_one_line_when_no_cohort_comes(tmp_path: Path) -> None:
    cohorts = LocalCohorts(Job.of(4, 6), [HISTORIES[:2]])
    with pytest.raises(RoundAbandoned, match="2 devices joined"):
        run(tmp_path, cohorts)
    cohorts.rounds = [HISTORIES]
    assert run(tmp_path, cohorts).finished  # resumed, when devices are here


def test_a_stop_while_a_cohort_forms_costs_nothing(tmp_path: Path) -> None:
    class Stopped(LocalCohorts):
        def form(self, wanted: Any, stop: Any) -> Any:
            assert stop()
            raise AggregationAborted("stopped")

    cohorts = Stopped(Job.of(4, 6), [HISTORIES])
    outcome = run(tmp_path, cohorts, stop=lambda: True)
    assert not outcome.finished and outcome.rounds == 0
    assert not (tmp_path / "rounds.jsonl").exists() or records(tmp_path) == []


def test_a_job_without_devices_is_refused(tmp_path: Path) -> None:
    Job.of(4, 6).write(tmp_path)
    with pytest.raises(RunError, match="fedrec-server job"):
        open_coordinator(tmp_path, NoSites())


# Sites beside devices -------------------------------------------------------------------------------------------


class Sites:
    """Nodes with folders; every message is served by a process of its own, as under Flower."""

    def __init__(self, *folders: Path) -> None:
        self.folders = {f"flower-{k}": folder for k, folder in enumerate(folders)}
        self.asked: list[tuple[str, str, int]] = []
        self.memory = {node: HeldMemory() for node in self.folders}

    def nodes(self) -> list[str]:
        return sorted(self.folders)

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        out: dict[str, Reply | Failure] = {}
        for node, request in requests.items():
            self.asked.append((node, request.kind, request.round))
            try:
                out[node] = open_node(self.folders[node]).handle(request, self.memory[node])
            except FedrecError as error:
                out[node] = Failure(str(error))
        return out


@pytest.mark.parametrize("kind", [LocalCohorts, SummingCohorts])
def test_sites_and_devices_are_in_one_sum_and_sites_keep_their_distance(
    tmp_path: Path, kind: type[LocalCohorts]
) -> None:
    """Item 10 is of a site's users alone; the site has its turn in round 1, and the other in round 2."""
    job, users = Job.of(6, 9, least=4, max_users=3), ([10, 0], [10, 1], [10, 2])
    keys = [Identity.create() for _ in range(2)]
    folders = [job.site(tmp_path / f"shop-{k}", users, key, 1000 * (k + 1)) for k, key in enumerate(keys)]
    sites = Sites(*folders)
    cohorts = kind(job, [HISTORIES])
    vouched = [Joined(f"shop-{k}", key.public, 3) for k, key in enumerate(keys)]
    job.write(tmp_path / "coordinator")
    outcome = open_coordinator(tmp_path / "coordinator", sites, devices=cohorts.devices(*vouched)).run()
    assert outcome.finished
    assert [record["nodes"] for record in records(tmp_path / "coordinator")] == [5, 5]
    assert [record["failures"] for record in records(tmp_path / "coordinator")] == [{}, {}]
    assert {(node, round_) for node, what, round_ in sites.asked if what == "train"} == {
        ("flower-0", 1),
        ("flower-1", 2),
    }
    counts = np.zeros(ITEMS)
    for history in (*HISTORIES, *users):
        counts[history] += 1 / np.sqrt(len(history))
    found = outcome.shared["count"]
    np.testing.assert_allclose(found / np.linalg.norm(found), counts / np.linalg.norm(counts), atol=0.05)


class _Killed(BaseException):
    """The coordinator ends here."""


class _KilledAtUnmask(Sites):
    """Sites that have given their shares away when the coordinator is killed."""

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        answers = super().exchange(requests, deadline_seconds)
        if any(request.kind == "unmask" for request in requests.values()):
            raise _Killed
        return answers


def test_a_sum_that_sites_alone_gave_their_shares_for_is_lost_and_the_next_round_is_not(
    tmp_path: Path,
) -> None:
    """Sites keep their promise never to be summed again for that round: to ask them for ever would end no run."""
    config = CONFIG.model_copy(
        update={
            "model": parse({"kind": "mf", "embedding_size": 2}),
            "federation": CONFIG.federation.model_copy(update={"rounds": 3}),
        }
    )
    job = Job.of(6, 6, least=3, max_users=2, config=config, separation=1)
    keys = [Identity.create() for _ in range(3)]
    folders = [job.site(tmp_path / f"shop-{k}", ([k, 4], [k, 5]), key, 10 * k) for k, key in enumerate(keys)]
    place = job.write(tmp_path / "coordinator")
    write_secret(place / SIGNER, job.signer.secret)
    write_sites(place, [Joined(f"shop-{k}", key.public, 2) for k, key in enumerate(keys)])
    with pytest.raises(_Killed):
        open_coordinator(place, _KilledAtUnmask(*folders), devices=sites_only(place)).run()
    sites = Sites(*folders)
    assert open_coordinator(place, sites, devices=sites_only(place)).run().finished
    assert [(each["round"], bool(each.get("lost")), each["nodes"]) for each in records(place)] == [
        (1, True, 0),
        (2, False, 3),
        (3, False, 3),
    ]
    assert not any(round_ == 1 for _, what, round_ in sites.asked if what == "unmask")


class _Resting(Sites):
    """Sites of which all but one are left alone for a while, as after a deadline that passed."""

    looks = 0

    def nodes(self) -> list[str]:
        self.looks += 1
        return super().nodes()[: 1 if 3 < self.looks < 9 else None]


def test_a_round_of_sites_alone_waits_for_as_many_as_a_sum_needs(tmp_path: Path) -> None:
    job = Job.of(6, 6, least=3, max_users=2, separation=1)
    keys = [Identity.create() for _ in range(3)]
    folders = [job.site(tmp_path / f"shop-{k}", ([k, 4], [k, 5]), key, 10 * k) for k, key in enumerate(keys)]
    place = job.write(tmp_path / "coordinator")
    write_secret(place / SIGNER, job.signer.secret)
    write_sites(place, [Joined(f"shop-{k}", key.public, 2) for k, key in enumerate(keys)])
    assert open_coordinator(place, _Resting(*folders), devices=sites_only(place)).run().finished
    assert [each["nodes"] for each in records(place) if not each.get("abandoned")] == [3, 3]
    assert not any(each.get("abandoned") for each in records(place))


def test_a_site_refuses_a_round_that_is_too_near_to_its_last_one(tmp_path: Path) -> None:
    privacy = Job.of(4, 6).privacy
    assert privacy.plan.separation == 2
    reply = Reply("train", 1, "refit", {"masked": np.ones(3, np.float32)})
    one = PrivateReleases(privacy, tmp_path, "site")
    one.release(Request("train", 1, "refit"), reply)
    with pytest.raises(PrivacyRefused, match="2 apart"):
        one.release(Request("train", 2, "refit"), reply)
    again = PrivateReleases(privacy, tmp_path, "site")  # after a restart
    assert again.earlier(Request("train", 1, "refit")) is not None
    with pytest.raises(PrivacyRefused, match="took part in round 1"):
        again.release(Request("train", 2, "refit"), reply)


def test_a_site_with_other_users_than_the_operator_vouches_for_stays_out(tmp_path: Path) -> None:
    job, key = Job.of(4, 9, max_users=3), Identity.create()
    sites = Sites(job.site(tmp_path / "shop-0", ([10, 0], [10, 1]), key, 1000))
    cohorts = LocalCohorts(job, [HISTORIES])
    job.write(tmp_path / "coordinator")
    vouched = Joined("shop-0", key.public, 3)
    outcome = open_coordinator(tmp_path / "coordinator", sites, devices=cohorts.devices(vouched)).run()
    assert outcome.finished
    first = records(tmp_path / "coordinator")[0]
    assert first["nodes"] == 4 and "3 users: it has 2" in first["failures"]["flower-0"]


# A device's rules ---------------------------------------------------------------------------------------------


def advertise(job: Job, signer: Identity, identities: list[Identity], **changes: Any) -> Request:
    roster = roster_of((each.public, changes.get("users", 1)) for each in identities)
    terms = job.terms.of(roster) if 3 <= len(roster) <= job.terms.max_nodes else None
    arrays = sign_roster(
        signer,
        roster,
        run=changes.get("run", job.terms.run),
        label=changes.get("label", "train/refit/1"),
        attempt=changes.get("attempt", 1),
    )
    arrays |= changes.get("arrays", {})
    meta = {
        "secagg/attempt": 1,
        "secagg/terms": terms.digest.hex() if terms else "00" * 32,
        "secagg/kind": "train",
        "secagg/model": "ab" * 32,
        "secagg/length": 20,
    } | changes.get("meta", {})
    return Request("advertise", 1, "refit", {f"secagg/{name}": each for name, each in arrays.items()}, meta)


def test_a_device_takes_the_roster_that_the_job_signed() -> None:
    job, identities = Job.of(4, 6), [Identity.create() for _ in range(4)]
    node = job.node(HISTORIES[0], identities[0], 1)
    reply = node.handle(advertise(job, job.signer, identities))
    assert set(reply.arrays) == {"advert"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": "another"}, Reason.SIGNATURE),
        ({"label": "train/refit/2"}, Reason.SIGNATURE),
        ({"label": "evaluate/refit/1"}, Reason.SIGNATURE),
        ({"attempt": 2}, Reason.SIGNATURE),
        ({"arrays": {"keys": np.zeros((4, 32), np.uint8)}}, Reason.SIGNATURE),
        ({"arrays": {"users": np.ones(4, np.int64)}}, Reason.FORMAT),
        ({"arrays": {"signature": np.zeros(64, np.uint8)}}, Reason.SIGNATURE),
        ({"arrays": {"signature": np.zeros(63, np.uint8)}}, Reason.FORMAT),
        ({"arrays": {"users": np.ones(3, np.uint32)}}, Reason.COHORT),
    ],
)
def test_a_device_refuses_any_other_roster(changes: dict[str, Any], reason: Reason) -> None:
    job, identities = Job.of(4, 6), [Identity.create() for _ in range(4)]
    node = job.node(HISTORIES[0], identities[0], 1)
    with pytest.raises(AggregationRefused) as refused:
        node.handle(advertise(job, job.signer, identities, **changes))
    assert refused.value.reason is reason


def test_a_device_refuses_rosters_of_other_sizes_signers_and_without_itself() -> None:
    job, others = Job.of(4, 6), [Identity.create() for _ in range(7)]
    node = job.node(HISTORIES[0], others[0], 1)
    for signer, identities, reason in (
        (job.signer, others[:2], Reason.COHORT),
        (job.signer, others, Reason.COHORT),
        (Identity.create(), others[:4], Reason.SIGNATURE),
        (job.signer, others[1:5], Reason.IDENTITY),
    ):
        with pytest.raises(AggregationRefused) as refused:
            node.handle(advertise(job, signer, identities))
        assert refused.value.reason is reason


def test_a_device_takes_part_in_one_cohort_under_each_identity() -> None:
    job, identities = Job.of(4, 6), [Identity.create() for _ in range(5)]
    node = job.node(HISTORIES[0], identities[0], 1)
    node.handle(advertise(job, job.signer, identities[:4]))
    with pytest.raises(AggregationRefused, match="second attempt") as refused:
        node.handle(advertise(job, job.signer, identities))
    assert refused.value.reason is Reason.REPLAY
    with pytest.raises(AggregationRefused, match="second attempt"):
        node.handle(advertise(job, job.signer, identities[:4], attempt=2, meta={"secagg/attempt": 2}))


def test_a_device_that_hosts_one_user_refuses_to_speak_for_more() -> None:
    job, identities = Job.of(4, 12), [Identity.create() for _ in range(4)]
    node = job.node(HISTORIES[0], identities[0], 1)
    with pytest.raises(AggregationRefused, match="users") as refused:
        node.handle(advertise(job, job.signer, identities, users=2))
    assert refused.value.reason is Reason.USERS


def test_a_stage_without_a_roster_is_refused() -> None:
    job = Job.of(4, 6)
    node = job.node(HISTORIES[0], Identity.create(), 1)
    with pytest.raises(AggregationRefused, match="holds no roster") as refused:
        node.handle(Request("share", 1, "refit", {}, {"secagg/attempt": 1}), HeldMemory())
    assert refused.value.reason is Reason.FORGOTTEN


# Two exchanges ------------------------------------------------------------------------------------------------


class Vectors:
    """Answers with a vector of ones times a number; `None`: no answer; a type: of that type."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def nodes(self) -> list[str]:
        return sorted(self.answers)

    def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
        out: dict[str, Reply | Failure] = {}
        for node, request in requests.items():
            value = self.answers[node]
            if isinstance(value, Failure):
                out[node] = value
            else:
                out[node] = Reply(request.kind, request.round, request.phase, {"masked": value})
        return out


def test_vectors_of_sites_and_devices_become_one_sum() -> None:
    ones = np.ones(5, np.uint32)
    sites = Vectors({"site-a": 3 * ones, "site-b": Failure("no answer")})
    devices = Vectors(
        {"c/0": ones, "c/1": np.uint32(2**32 - 1) * ones, "c/2": np.ones(4, np.uint32), "c/3": np.ones(5)}
    )
    joint = JointExchange(sites, devices, ["site-a", "site-b"])
    assert joint.nodes() == ["site-a", "site-b"]
    requests = {name: Request("train", 1, "refit") for name in (*sites.answers, *devices.answers)}
    found = joint.exchange_summed(requests, 5.0, "uint32", 5)
    np.testing.assert_array_equal(found.total, 3 * ones)
    assert set(found.nodes) == {"site-a", "c/0", "c/1"}
    assert set(found.failures) == {"site-b", "c/2", "c/3"}
    answers = joint.exchange(requests, 5.0)
    assert list(answers) == list(requests)


def test_an_answer_to_another_question_is_in_no_sum() -> None:
    class Late(Vectors):
        def exchange(self, requests: Any, deadline_seconds: float) -> dict[str, Reply | Failure]:
            return {node: Reply("train", 9, "refit", {"masked": np.ones(2, np.uint32)}) for node in requests}

    found = summed(Late({"a": None}), {"a": Request("train", 1, "refit")}, 5.0, "uint32", 2)
    assert not found.nodes and not found.total.any() and "another question" in found.failures["a"].reason


@given(rounds=st.integers(1, 12), separation=st.integers(1, 12))
def test_a_job_charges_the_rounds_that_one_device_can_be_in(rounds: int, separation: int) -> None:
    """Of any rounds with this distance at most ceil(T / separation) hold one device, whichever they are."""
    most = max(
        len(list(itertools.takewhile(lambda r: r <= rounds, itertools.count(first, separation))))
        for first in range(1, rounds + 1)
    )
    plan = Job.of(4, 6).privacy.plan
    z = tuple(1.0 + 0.1 * ((7 * r) % 5) for r in range(rounds))
    changes = {"rounds": rounds, "noise_multipliers": z, "cycle": max(separation, 2), "sampling_rate": 1e-3}
    made = plan.model_copy(update=changes)
    charged = made.charged_multipliers(rounds)
    assert len(charged) == (most if separation > 1 else -(-rounds // 2))
    assert len(made.releases(rounds)) == len(charged) and made.amplification == 1.0
    assert sorted(z)[: len(charged)] == list(charged)
