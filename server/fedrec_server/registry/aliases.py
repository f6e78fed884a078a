"""Which versions devices are to use: one for everybody, and perhaps another one for a share of them.

Out of scope: which moves are allowed (`registry`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fedrec.errors import RegistryError
from fedrec.wire.files import PUBLIC, write_json

ALL_TRAFFIC = 1000


@dataclass(frozen=True)
class Aliases:
    """Which versions are in use.

    Attributes:
        champion: for everybody; 0: none yet.
        canary: for a share of devices; 0: none.
        canary_traffic: that share, in thousandths.
    """

    champion: int = 0
    canary: int = 0
    canary_traffic: int = 0

    def __post_init__(self) -> None:
        if any(type(n) is not int or n < 0 for n in asdict(self).values()):
            raise ValueError(f"expected whole numbers from 0, not {asdict(self)!r:.80}")
        if self.canary_traffic > ALL_TRAFFIC:
            raise ValueError(f"expected a share up to {ALL_TRAFFIC}, not {self.canary_traffic}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of a file; none yet where there is no file.

        Raises:
            RegistryError: the file is broken.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise RegistryError(f"{path} cannot be read ({error}): restore it from a backup") from error

    def write(self, path: Path) -> None:
        """Take the place of those of a file in one step."""
        write_json(path, asdict(self), PUBLIC)

    @property
    def named(self) -> dict[str, int]:
        """Those that are set."""
        return {name: v for name, v in (("champion", self.champion), ("canary", self.canary)) if v}

    def version_for(self, token: str) -> int:
        """The version for a device with this token: the same for the same token, a share of all gets the canary."""
        if not self.canary or not self.canary_traffic:
            return self.champion
        digest = hashlib.sha256(f"canary {self.canary} {token}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") % ALL_TRAFFIC
        return self.canary if drawn < self.canary_traffic else self.champion
