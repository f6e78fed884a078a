"""Signs short-lived metadata anew in time, while a service runs with the keys for it.

Devices refuse a timestamp past its expiry, so that a service cannot hide for long that there is something newer; it
must be signed again and again by a key that is online. Out of scope: which keys those are (`fedrec.wire.signing`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from fedrec.core.errors import FedrecError
from fedrec.wire.signing import OnlineKeys
from fedrec_server.registry import Registry

log = logging.getLogger(__name__)

#: How often it is looked whether something is past half of its life.
LOOK_SECONDS = 600.0


class Renewal:
    """Renews the metadata of some registries from a thread of its own, at once and from then on.

    Args:
        registries: each with the keys that are here for it.
        look_seconds: how often it is looked.
    """

    def __init__(
        self, registries: Sequence[tuple[Registry, OnlineKeys]], look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._registries, self._look_seconds = registries, look_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="renewal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def renew(self) -> None:
        """Look at each registry once; what goes wrong is logged and tried again at the next look."""
        for registry, keys in self._registries:
            try:
                for role in registry.renew(keys):
                    log.info("signed %s of %s anew", role, registry.population)
            except FedrecError as error:
                log.error("metadata of %s could not be renewed: %s", registry.population, error)

    def _keep_renewing(self) -> None:
        self.renew()
        while not self._stop.wait(self._look_seconds):
            self.renew()
