"""The device service: cohorts, questions, answers and sums, over both databases and both forms of the calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device_helpers import JOB, Crowd, Device, add_job, ask, channel, front_end, vectors, wanted
from postgres import new_database

from fedrec.core.messages import Reply
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.state.database import State, open_state


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    if request.param == "sqlite":
        with open_state(f"sqlite:///{tmp_path}/devices.db") as made:
            yield made
    else:
        with new_database() as url, open_state(url) as made:
            yield made


def never() -> bool:
    return False


def test_a_cohort_joins_answers_and_is_summed(state: State, tmp_path: Path) -> None:
    add_job(state)
    exchange = DeviceExchange(state, JOB)
    with front_end(state, tmp_path / "tls") as running:
        devices = [Device(channel(running.port, tmp_path / "tls")) for _ in range(3)]
        with Crowd(devices, vectors(50_000)) as crowd:
            cohort = exchange.form(wanted(3), never)
            nodes = [each.node for each in cohort.members]
            assert {each.identity for each in cohort.members} == {each.identity for each in devices}
            model = np.arange(100_000, dtype=np.float32)
            answers = exchange.exchange(ask(nodes, model=model), 30)
            mine = [a.arrays["mine"].tolist() for a in answers.values() if isinstance(a, Reply)]
            assert mine == [[1], [2], [3]]
            summed = exchange.exchange_summed(ask(nodes, "train", model=model), 30, "uint32", 50_000)
            assert summed.total.tolist() == [6] * 50_000
            assert sorted(summed.nodes) == nodes and not summed.failures
            exchange.close(cohort, "done")
        assert [end.reason for end in crowd.ends.values()] == ["done"] * 3
