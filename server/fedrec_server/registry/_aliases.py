"""Which versions devices are to use: one for all, and perhaps another one for a share of them.

They are signed entries of the repository, not a file of their own: `champion.json` and `canary.json` have length and
hash of the manifest they stand for, and say its version. A device draws for itself whether it takes the canary.
Out of scope: signing (`registry`), drawing (the SDK's `model_updates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from tuf.api.metadata import TargetFile

from fedrec.wire.layout import ALL_TRAFFIC, CANARY, CHAMPION, alias_target


@dataclass(frozen=True)
class Aliases:
    """Which versions are in use.

    Attributes:
        champion: for all; 0: none yet.
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
    def of(cls, population: str, models: Mapping[str, TargetFile]) -> Self:
        """Those of signed targets."""
        champion = _custom(models.get(alias_target(population, CHAMPION)))
        canary = _custom(models.get(alias_target(population, CANARY)))
        return cls(champion.get("version", 0), canary.get("version", 0), canary.get("traffic", 0))

    @property
    def named(self) -> dict[str, int]:
        """Those that are set."""
        return {name: v for name, v in ((CHAMPION, self.champion), (CANARY, self.canary)) if v}

    def entries(self, population: str, manifests: Mapping[int, TargetFile]) -> list[TargetFile]:
        """Targets that say so.

        Args:
            population: whose.
            manifests: targets of the manifests, by version.
        """
        out = []
        for name, version in self.named.items():
            custom = {"version": version}
            if name == CANARY:
                custom["traffic"] = self.canary_traffic
            manifest = manifests[version]
            out.append(
                TargetFile(
                    manifest.length, manifest.hashes, alias_target(population, name), {"custom": custom}
                )
            )
        return out


def _custom(target: TargetFile | None) -> dict[str, int]:
    return dict(target.custom or {}) if target is not None else {}
