"""What type checkers and editors know of the lazy names; `__init__.py` loads them."""

from fedrec_server.federation.federation import Federation as Federation
from fedrec_server.registry.registry import Registry as Registry
from fedrec_server.rounds.coordinator import Coordinator as Coordinator
from fedrec_server.rounds.coordinator import Outcome as Outcome
from fedrec_server.rounds.coordinator import open_coordinator as open_coordinator
from fedrec_server.rounds.task import Task as Task
