"""Devices of an app on another host, a program of its own.

    python remote_devices.py FOLDER ADDRESS ROOT_JSON CERTS COUNT

Each device is a client of the SDK with a folder and a history of its own, in a thread. It fetches the model, agrees
to training, and takes part again and again; what became of each session is printed as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from wire_helpers import POPULATION

from fedrec.core.errors import FedrecError
from fedrec_client.app.client import Client
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.eligibility import Conditions
from fedrec_client.terms.policy import Policy
from fedrec_client.testing import FakePlatform

MODELS, DEVICES = 8443, 8444
POLICY = Policy(
    min_cohort=3,
    dishonest=0.0,
    max_epsilon_period=1e9,
    max_epsilon_lifetime=1e9,
    max_delta=1.0,
    trusts=("distributed",),
)
ANYTIME = Conditions(min_events=1, min_period_seconds=0)


def live(number: int, folder: Path, address: str, trust: Path, certs: Path) -> None:
    """One device, until the process ends."""
    platform = FakePlatform(time.time())
    client = Client.open(
        folder / f"device-{number}",
        population=POPULATION,
        trust=trust,
        server=f"{address}:{MODELS}",
        training_server=f"{address}:{DEVICES}",
        ca=certs / "ca.crt",
        certificate=certs / "app.pem",
        key=certs / "app.key",
        platform=platform,
        policy=POLICY,
    )
    while True:
        try:
            client.check_for_update()
            break
        except FedrecError as error:
            print(json.dumps({"device": number, "model": str(error)}), flush=True)
            time.sleep(1.0)
    for k in range(3):
        client.log_event("view", f"film-{(number + k) % 12:02d}")
    client.set_consent(Consent(personalize=True, train=True))
    while True:
        platform.clock = time.time()
        try:
            report = client.train_if_eligible(ANYTIME, deadline_seconds=600)
        except FedrecError as error:
            print(json.dumps({"device": number, "error": str(error)}), flush=True)
        else:
            said = {"reason": report.reason} | ({"rounds": report.rounds} if report.joined else {})
            print(json.dumps({"device": number} | said), flush=True)
        time.sleep(1.0)


def main() -> None:
    """Run all devices."""
    folder, address, trust, certs, count = sys.argv[1:]
    threads = [
        threading.Thread(target=live, args=(number, Path(folder), address, Path(trust), Path(certs)))
        for number in range(int(count))
    ]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
