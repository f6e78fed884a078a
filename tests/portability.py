"""Which test modules train, and so may end elsewhere on another processor.

Linear algebra libraries choose their kernels by processor and threads; sums in another order differ in the last bit,
and training makes of it another model. What such a module asserts must hold for each of these models. So it runs a
second time under other kernels (`make test-portable`), chosen by the marker `numeric`, which `conftest` adds by the
rule below. A module that trains by a way the rule does not see, such as the command line, adds the marker itself.

Out of scope: modules that hold two runs on one machine against each other (engines, resume). Their bytes are equal
under any kernel, or neither of the two is right.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

#: Importing one of these means gradients, closed forms or their contract.
TRAINING = (
    "fedrec.testing",
    "numba",
    "torch",
    "fedrec.rounds.local_training",
    "fedrec.recommenders",
    "fedrec.neural",
    "fedrec_simulations.audit.attacks",
    "fedrec_simulations.audit.run_audit",
    "fedrec_simulations.experiments.baseline",
)
#: Building a model from its configuration trains nothing, nor do the types that models share.
HARMLESS = (
    "fedrec.core.recommender",
    "fedrec.recommenders.registry",
    "fedrec.neural.device_optimizer",
    "fedrec.neural.dropout",
    "fedrec.neural.example_gradients",
    "fedrec.neural.gather",
    "fedrec.neural.learning_rates",
    "fedrec.neural.server_optimizer",
    "fedrec.neural.user_clusters",
    "fedrec.neural.views",
)


def _within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def imported(source: str) -> set[str]:
    """The modules that a source imports anywhere in it, `from a import b` as both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from fedrec.recommenders import x` says which module it is about; the package alone says nothing.
            found |= within if node.module == "fedrec.recommenders" else within | {node.module}
    return found


def trains(source: str) -> bool:
    """Whether a test module with this source trains, as far as its imports tell."""
    return any(_within(name, TRAINING) and not _within(name, HARMLESS) for name in imported(source))


@functools.cache
def module_trains(path: Path) -> bool:
    """The same of a file."""
    return trains(path.read_text("utf-8"))
