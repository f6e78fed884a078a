"""What the client answers with: small frozen values without any way back to the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recommended:
    """One place of a list.

    Attributes:
        item, title: of the item.
        score: by which it was ordered.
        propensity: probability that it stood here, given those above; below 1 only under exploration.
        source: why it is here: "model", "popular", "fresh", "similar content", "exploration" or "pinned".
    """

    item: str
    title: str
    score: float
    propensity: float
    source: str


@dataclass(frozen=True)
class Recommendation:
    """A list.

    Attributes:
        id: random; give it to `log_event` as `rec` to join impressions and clicks.
        items: best first.
        model_version: that made it; 0: no model yet.
        unknown: candidates that the model does not know.
    """

    id: str
    items: tuple[Recommended, ...]
    model_version: int
    unknown: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Recommended]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Because:
    """What one item of the user's own history adds to a score."""

    item: str
    title: str
    contribution: float


@dataclass(frozen=True)
class Reasons:
    """Why an item has its score: score = base + sum of all contributions.

    Attributes:
        item, title: explained.
        score: of the model, before recency and rules.
        base: what everyone would get.
        because: largest first.
    """

    item: str
    title: str
    score: float
    base: float
    because: tuple[Because, ...]


@dataclass(frozen=True)
class Similar:
    """An item like another."""

    item: str
    title: str
    likeness: float


@dataclass(frozen=True)
class ModelInfo:
    """A model that was taken into use; `expires`: until when it is current, unless newer metadata says longer."""

    version: int
    created: int
    expires: int
    n_items: int
    kind: str
    bytes_downloaded: int
    by_delta: bool
    privacy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Eligibility:
    """Whether this device may train now.

    Attributes:
        ok: it may.
        reasons: all that speak against it, each "code: what to do".
    """

    ok: bool
    reasons: tuple[str, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes alone."""
        return tuple(reason.partition(":")[0] for reason in self.reasons)


@dataclass(frozen=True)
class TrainingReport:
    """What became of one call of `train_if_eligible`.

    Attributes:
        joined: this device took part in at least one round.
        rounds: in how many.
        bytes_up: that left the device; without a charge these are public keys and an answer to "hello".
        epsilon_spent: charged to this device's budget by this call; 0: provably nothing was released.
        next_check_in: seconds since 1970; not before.
        reason: what happened, in one line.
    """

    joined: bool
    rounds: int
    bytes_up: int
    epsilon_spent: float
    next_check_in: float
    reason: str


@dataclass(frozen=True)
class Status:
    """For bug reports; no item, no event.

    Attributes:
        client_version: of the SDK.
        population: of this device.
        model_version: in use; 0: none.
        model_state: "good", "expired", "none", or what is wrong.
        model_sha256: of the manifest of the model in use, as signed; devices that serve one version can compare it.
        metadata: versions of the signed metadata last accepted, by role.
        consent: as set.
        store: see `Store.describe`.
        last_error: of an update or a training, one line.
        server: whether there is one.
    """

    client_version: str
    population: str
    model_version: int
    model_state: str
    model_sha256: str
    metadata: Mapping[str, int]
    consent: Mapping[str, bool]
    store: Mapping[str, Any]
    last_error: str
    server: bool
