"""Devices for `benchmarks.kill_matrix`, a program of its own: clients of the SDK, one in each thread.

    python -m benchmarks.kill_devices FOLDER POPULATION ROOT_JSON CERTS MODELS_PORT DEVICES_PORT FIRST COUNT

After each session a device writes `device-N.json`: the rounds that it was charged for, and how its sessions ended.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from fedrec.core.errors import FedrecError
from fedrec.core.files import write_json
from fedrec_client.app.client import Client
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.eligibility import Conditions
from fedrec_client.terms.policy import Policy
from fedrec_client.testing import FakePlatform

POLICY = Policy(
    min_cohort=3,
    dishonest=0.0,
    max_epsilon_period=1e9,
    max_epsilon_lifetime=1e9,
    max_delta=1.0,
    trusts=("distributed",),
)
#: Between two sessions of a device: all of them have one address, whose calls are limited.
PAUSE_SECONDS = 3.0
ANYTIME = Conditions(min_events=1, min_period_seconds=0)


def live(
    number: int, folder: Path, population: str, trust: Path, certs: Path, ports: tuple[int, int]
) -> None:
    """One device, until the process ends."""
    platform = FakePlatform(time.time())
    client = Client.open(
        folder / f"device-{number}",
        population=population,
        trust=trust,
        server=f"127.0.0.1:{ports[0]}",
        training_server=f"127.0.0.1:{ports[1]}",
        ca=certs / "ca.crt",
        certificate=certs / "app.pem",
        key=certs / "app.key",
        platform=platform,
        policy=POLICY,
    )
    while client.status().model_version == 0:
        try:
            client.check_for_update()
        except FedrecError:
            time.sleep(PAUSE_SECONDS)
    if not client.privacy_report().events:
        for k in range(3):
            client.log_event("view", f"film-{(number + k) % 12:02d}")
        client.set_consent(Consent(personalize=True, train=True))
    while True:
        platform.clock = time.time()
        said: dict[str, Any] = {}
        try:
            report = client.train_if_eligible(ANYTIME, deadline_seconds=300)
            said = {"reason": report.reason}
        except FedrecError as error:
            said = {"error": str(error)}
        charged = [[entry["job"], entry["round"]] for entry in client.privacy_report().charged]
        write_json(folder / f"device-{number}.json", said | {"charged": charged})
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    """Run the devices."""
    folder, population, trust, certs, models, devices, first, count = sys.argv[1:]
    for number in range(int(first), int(first) + int(count)):
        where = (number, Path(folder), population, Path(trust), Path(certs), (int(models), int(devices)))
        threading.Thread(target=live, args=where).start()


if __name__ == "__main__":
    main()
