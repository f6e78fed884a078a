"""Devices of the SDK take part in rounds of a job through a real device service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from training_helpers import ANYTIME, HISTORIES, ITEMS, JOB, World, wait_until, world

from fedrec.core.errors import DataError
from fedrec_client.app.client import Client
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.results import TrainingReport
from fedrec_client.testing import make_client


@pytest.fixture
def job(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, most=4) as made:
        yield made


def train(device: Client) -> TrainingReport:
    return device.train_if_eligible(ANYTIME, deadline_seconds=60)


def test_devices_train_a_job_together(job: World) -> None:
    """Two cohorts of four, each device in one round, as the plan says."""
    histories = dict(enumerate([*HISTORIES, *HISTORIES]))
    devices = {k: job.device(str(k), history) for k, history in histories.items()}
    running = job.coordinate()
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(train, devices.values()))
    outcome = running.wait()
    assert outcome.finished and outcome.rounds == 2
    assert sum(report.rounds for report in reports) == 8, [report.reason for report in reports]
    assert all(report.joined and report.epsilon_spent > 0 and report.bytes_up > 0 for report in reports)
    counts = np.zeros(ITEMS)
    for k, device in devices.items():
        report = device.privacy_report()
        (charged,) = report.charged
        assert (charged["job"], charged["aggregator"]) == (JOB, "secagg") and len(report.left) == 1
        assert report.bytes_up > 0 and not report.ended
        if charged["round"] == 1:
            counts[histories[k]] += 1 / np.sqrt(len(histories[k]))
        device.close()
    found = outcome.shared["count"]
    assert np.linalg.norm(found / np.linalg.norm(found) - counts / np.linalg.norm(counts)) < 0.1


def test_a_device_that_has_done_its_part_is_not_asked_again(job: World) -> None:
    devices = [job.device(str(k), history) for k, history in enumerate(HISTORIES)]
    running = job.coordinate()
    with ThreadPoolExecutor(4) as pool:
        assert sum(report.rounds for report in pool.map(train, devices)) == 4
    again = train(devices[0])
    assert not again.joined and again.epsilon_spent == 0
    assert again.reason == "this device has done its part in the job"
    running.end()


def test_devices_take_part_in_every_round_where_the_plan_allows_it(tmp_path: Path) -> None:
    with world(tmp_path, most=4, separation=None) as job:
        devices = [job.device(str(k), history) for k, history in enumerate(HISTORIES)]
        running = job.coordinate()
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(train, devices))
        assert running.wait().finished
        assert [report.rounds for report in reports] == [2] * 4
        plan = job.job.privacy.plan
        for device, report in zip(devices, reports, strict=True):
            first, second = device.privacy_report().charged
            assert (first["round"], second["round"]) == (1, 2)
            assert first["delta"] == plan.delta and second["delta"] == 0
            assert report.epsilon_spent == pytest.approx(plan.epsilon(), rel=1e-9)


def test_a_stop_ends_a_device_that_waits_and_nothing_is_charged(job: World) -> None:
    device = job.device("0", HISTORIES[0])
    running = job.coordinate()
    with ThreadPoolExecutor(1) as pool:
        steps: list[str] = []
        report = pool.submit(device.train_if_eligible, ANYTIME, 60, "", steps.append)
        wait_until(lambda: "joined" in steps)
        device.stop_training()
        found = report.result(20)
    assert (found.reason, found.epsilon_spent, found.bytes_up) == ("stopped", 0.0, 0)
    (ended,) = device.privacy_report().ended
    assert ended["reason"] == "stopped"
    running.end()


def test_withdrawing_consent_ends_a_session(job: World) -> None:
    device = job.device("0", HISTORIES[0])
    running = job.coordinate()
    with ThreadPoolExecutor(1) as pool:
        steps: list[str] = []
        report = pool.submit(device.train_if_eligible, ANYTIME, 60, "", steps.append)
        wait_until(lambda: "joined" in steps)
        device.set_consent(Consent(personalize=True, train=False))
        assert report.result(20).epsilon_spent == 0
    running.end()


def test_a_device_is_told_soon_when_its_cohort_is_too_small(tmp_path: Path) -> None:
    with world(tmp_path, wait_seconds=2.0) as job:
        device = job.device("0", HISTORIES[0])
        running = job.coordinate()
        report = train(device)
        assert report.reason == "too few devices took part; nothing was summed"
        assert report.epsilon_spent == 0 and report.next_check_in > device._state.setup.now()
        running.end()


def test_without_a_job_nothing_is_sent(tmp_path: Path) -> None:
    with world(tmp_path) as job:
        device = job.device("0", HISTORIES[0], service=_NoJob(job.connection()))
        report = train(device)
        assert (report.joined, report.reason) == (False, "there is no job now")


class _NoJob:
    """A service whose check-in offers nothing."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def check_in(self, *_: object) -> object:
        from fedrec_client.training.device_service import Offer

        return Offer((60.0, 120.0))


def test_a_client_without_a_training_server_says_so(tmp_path: Path) -> None:
    client = make_client(tmp_path)
    client.set_consent(Consent(personalize=True, train=True))
    with pytest.raises(DataError, match="training_server"):
        client.train_if_eligible()
