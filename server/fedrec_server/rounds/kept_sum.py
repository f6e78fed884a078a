"""The one file by which a killed coordinator does not lose the sum that nodes will not give again.

    RUN/coordinator/secagg-sum.safetensors     from the moment a sum is known until the checkpoint that holds it is
                                               in place; readable by its owner only, from its first byte on

Under a privacy plan the file holds what the mechanism made of the sum, with its noise: a sum without noise never
reaches the disk, so that no kill, copy or undelete finds one. Without a plan it holds the sum as it came; so does the
model that follows from it. Out of scope: which sums are asked for (`secure_collector`), when one is not needed any
more (`coordinator`).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import RunError
from fedrec.core.files import read_arrays, write_arrays
from fedrec.privacy.private_files import remove_durably

SUM_FILE = "secagg-sum.safetensors"

Facts = dict[str, Any]


class KeptSum:
    """At most one sum of a run.

    Args:
        folder: of the coordinator.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SUM_FILE

    def keep(self, label: str, values: NDArray[np.generic], facts: Facts, *, noised: bool) -> None:
        """Put a sum in the place of the one before it; it is on the disk when this returns.

        Args:
            label: of the sum within its run.
            values: residues, or what the plan's mechanism released.
            facts: of the round, for its record.
            noised: whether the values were released by the plan's mechanism.
        """
        header = facts | {"label": label, "noised": noised}
        write_arrays(self._path, {"total": values}, header)

    def get(self, label: str, *, noised: bool) -> tuple[NDArray[Any], Facts] | None:
        """The sum that is kept, if it is this one and of this kind."""
        return self._read() if self._head() == (label, noised) else None

    def forget(self, but: Collection[str] = (), *, noised_only: bool = False) -> None:
        """Remove the file; synced when this returns.

        Args:
            but: labels of sums that may still be needed.
            noised_only: remove those too where they are without noise.
        """
        label, noised = self._head() if but else (None, False)
        needed = label in but and (noised or not noised_only)
        if not needed:
            remove_durably([self._path])

    def _head(self) -> tuple[str | None, bool]:
        found = self._read()
        return (None, False) if found is None else (found[1].get("label"), found[1].get("noised") is True)

    def _read(self) -> tuple[NDArray[Any], Facts] | None:
        with suppress(RunError, KeyError):
            arrays, facts = read_arrays(self._path)
            return arrays["total"], facts
        return None
