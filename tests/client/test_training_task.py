"""A task that is wrong in any field is refused before this device joins: no key is sent and nothing is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cohort_helpers import Job
from training_helpers import ANYTIME, JOB, UNSEEDED, Scripted, memory_device, sent, task_of

from fedrec.core.errors import BadContent, BadSignature, Expired, UpdateRejected
from fedrec_client.testing import NOW, FakeService, small_items, small_model

ITEMS = 12


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    return task_of(Job.of(4, 6, least=3, config=UNSEEDED, separation=2))


def device(folder: Path, task: dict[str, Any], job: str = JOB) -> tuple[Any, Scripted]:
    models = FakeService()
    models.publish(small_model(ITEMS), small_items(ITEMS))
    service = Scripted(models.give_task(job, task))
    return memory_device(folder, service, models), service


def test_a_good_task_leads_to_a_join(tmp_path: Path, task: dict[str, Any]) -> None:
    client, service = device(tmp_path, task)
    client.train_if_eligible(ANYTIME)
    assert len(sent(service, "join")) == 1


WRONG: dict[str, tuple[Any, type[UpdateRejected]]] = {
    "population": ("another", UpdateRejected),
    "job": ("ef" * 16, BadContent),
    "expires": (NOW - 1, Expired),
    "created": (NOW + 7 * 86_400, BadContent),
    "model_version": (2, BadContent),
    "items": ("00" * 32, BadContent),
    "rounds": ("two", BadContent),
    "node": ([], BadContent),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_field_is_an_error_before_the_join(tmp_path: Path, task: dict[str, Any], name: str) -> None:
    value, kind = WRONG[name]
    client, service = device(tmp_path, task | {name: value})
    with pytest.raises(kind):
        client.train_if_eligible(ANYTIME)
    _nothing_happened(client, service)


@pytest.mark.parametrize("name", ["expires", "items", "model_version", "node", "rounds"])
def test_a_missing_field_is_an_error_before_the_join(tmp_path: Path, task: dict[str, Any], name: str) -> None:
    client, service = device(tmp_path, {key: value for key, value in task.items() if key != name})
    with pytest.raises(BadContent):
        client.train_if_eligible(ANYTIME)
    _nothing_happened(client, service)


def test_a_task_that_is_not_the_signed_one_is_refused(tmp_path: Path, task: dict[str, Any]) -> None:
    client, service = device(tmp_path, task)
    service.document = service.document.replace(b'"rounds": 2', b'"rounds": 1').replace(
        b'"rounds":2', b'"rounds":1'
    )
    with pytest.raises(BadContent, match="not the signed one"):
        client.train_if_eligible(ANYTIME)
    _nothing_happened(client, service)


def test_a_job_that_is_not_signed_is_refused(tmp_path: Path, task: dict[str, Any]) -> None:
    client, service = device(tmp_path, task, "99" * 16)
    with pytest.raises(BadSignature):
        client.train_if_eligible(ANYTIME)
    _nothing_happened(client, service)


def test_a_task_below_the_policy_is_noted_with_its_reasons(tmp_path: Path, task: dict[str, Any]) -> None:
    client, service = device(tmp_path, task | {"rounds": 5})
    report = client.train_if_eligible(ANYTIME)
    assert report.reason.startswith("refused: ") and not sent(service, "join")
    (refused,) = client.privacy_report().refused
    assert refused["job"] == JOB and any("rounds" in reason for reason in refused["reasons"])


def _nothing_happened(client: Any, service: Scripted) -> None:
    assert not sent(service, "join") and not sent(service, "stage")
    report = client.privacy_report()
    assert not report.charged and not report.left
