"""Jobs: from a specification to a signed version, whatever dies, is paused or does not come on the way."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from job_helpers import EASE, LocalOffers, Operator, model_digest, specification

from fedrec.core.errors import ConfigError, RegistryError, RunError
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.work import Worker


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
    assert [event["what"] for event in job.events.last(20)][-2:] == ["gates", "published"]
