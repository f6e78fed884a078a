"""A job of ten devices on another host, in another network namespace: 1 Mbit/s, 300 ms each way, one cut.

The server is `fedrec-server up`; the devices are clients of the SDK that know its address and the app's certificates.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import remote_devices
from job_helpers import EASE, Operator, specification
from namespaces import CLI, A, Programs, two_hosts, until

from fedrec_server.jobs.job import Job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.specification import JobSpecification
from fedrec_server.supervision.settings import FILE

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.needs("network namespaces")]
DEVICES, LEAST = 10, 8
SERVER = f"""
public_names = ["{A}"]

[model_service]
expected_devices = 1

[device_service]
expected_devices = 1
"""


def test_ten_devices_on_another_host_train_a_job_over_a_slow_link_that_is_cut(tmp_path: Path) -> None:
    operator = Operator.make(tmp_path / "server")
    (operator.folder / FILE).write_text(SERVER)
    job = operator.job(_job())
    with two_hosts() as hosts, ExitStack() as stack:
        made = Programs(hosts, tmp_path, stack)
        made.keep(hosts.a, "server", *CLI, "up", "--root", operator.folder)
        links = [made.relay(hosts.a, A, port) for port in (remote_devices.MODELS, remote_devices.DEVICES)]
        certs = operator.folder / "certs"
        until((certs / "app.key").exists, "the server made no certificates")
        trust = operator.registry.folder / "root.json"
        words = (remote_devices.__file__, tmp_path / "devices", A, trust, certs, DEVICES)
        made.keep(hosts.b, "devices", sys.executable, *words)

        until(lambda: len(rounds_of(job.run(1))) == 1, "no round came")
        for link in links:
            os.kill(link.pid, signal.SIGUSR1)
        until(lambda: job.record().state == "published", made.log("devices")[-2000:])
        _expect_a_trained_model(operator, job)
        cuts = [line for line in made.log(f"relay-{remote_devices.DEVICES}").splitlines() if "cut " in line]
        assert len(cuts) == 1 and int(cuts[0].split()[1]) >= DEVICES, cuts
        until(lambda: len(_took_part(made)) >= LEAST, made.log("devices")[-2000:])


def _expect_a_trained_model(operator: Operator, job: Job) -> None:
    rounds = [each for each in rounds_of(job.run(1)) if not each.get("abandoned")]
    assert [each["round"] for each in rounds] == [1, 2], rounds
    assert all(LEAST <= each["nodes"] <= DEVICES for each in rounds), rounds
    assert operator.registry.versions() == [1, 2] and operator.registry.aliases.champion == 2


def _took_part(made: Programs) -> set[int]:
    """Devices whose update was sent."""
    lines = (json.loads(line) for line in made.log("devices").splitlines() if line.startswith("{"))
    return {line["device"] for line in lines if "rounds" in line}


def _job() -> JobSpecification:
    plain = json.loads(json.dumps(EASE))
    del plain["privacy"]["noise_seed"]  # devices refuse noise that can be foreseen
    plain["federation"] |= {"stage_seconds": 90.0, "deadline_seconds": 90.0}
    return specification(plain, cohort={"target": DEVICES, "least": LEAST, "wait_seconds": 60.0})
