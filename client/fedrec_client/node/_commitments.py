"""What a node has bound itself to in a run of secure aggregation, on its own disk before a share leaves it.

    attempt, stage   of the newest attempt only, each stage is taken once, whatever memory an older process left
    given            sums for which shares were given away: none of them is joined again
    group            who took part in exact sums (see `fedrec.secagg.schedule`)

The file is made when the node is prepared, and each write is on the disk, name and all, when it returns. A file that
is missing, damaged or of another run counts as a promise that forbids everything: a node that could be made to forget
could be made to answer twice. Out of scope: the protocol's steps (`secure_party`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.privacy.durable import durable_write, make_folder
from fedrec.secagg.context import Context
from fedrec.secagg.schedule import Group
from fedrec.secagg.state import Stage
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import SecaggTerms

FILE = "secagg.json"


@dataclass(frozen=True)
class Kept:
    """The content of the file."""

    run: str
    attempt: int = 0
    stage: int = int(Stage.ADVERTISE)
    given: tuple[str, ...] = ()
    group: Group = field(default_factory=Group)

    def dump(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes) -> Kept:
        """As it was written; raises ValueError, KeyError or TypeError for anything else."""
        plain: dict[str, Any] = dict(json.loads(data))
        joined, last = plain["group"]["joined"], plain["group"]["last"]
        group = Group(tuple(map(int, joined)), None if last is None else tuple(map(int, last)))
        given = tuple(str(label) for label in plain["given"])
        return cls(str(plain["run"]), int(plain["attempt"]), Stage(plain["stage"]), given, group)


class Promises:
    """Of one node in one run; see the module's text.

    Args:
        terms: of the run.
        folder: where the file lies; None: in memory, for a session that ends with its process and for simulations.
    """

    def __init__(self, terms: SecaggTerms, folder: Path | None) -> None:
        self._terms = terms
        self._path = None if folder is None else folder / FILE
        self._memory = Kept(terms.run)

    @staticmethod
    def create(terms: SecaggTerms, folder: Path) -> None:
        """Write the file of a node that has promised nothing yet; one of the same run stays as it is."""
        make_folder(folder)
        path = folder / FILE
        try:
            same = Kept.load(path.read_bytes()).run == terms.run
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            durable_write(path, Kept(terms.run).dump())

    def join(self, context: Context) -> None:
        """Promise never to join this attempt again.

        Raises:
            AggregationRefused: the sum is not scheduled or was let out, or the attempt or a later one was joined.
        """
        kept = self._read()
        self._open_to(kept, context)
        if context.attempt <= kept.attempt:
            raise AggregationRefused(
                f"attempt {context.attempt} is not new: this node has joined attempt {kept.attempt}",
                Reason.REPLAY,
            )
        self._write(replace(kept, attempt=context.attempt, stage=int(Stage.ADVERTISE)))

    def join_group(self, context: Context, sharers: Collection[int]) -> None:
        """Promise to be summed with these devices alone from now on; before the vector leaves.

        Raises:
            AggregationRefused: they are not those of earlier exact sums.
        """
        if context.kind in self._terms.schedule.guarded:
            kept = self._read()
            self._write(replace(kept, group=kept.group.check_sharers(sharers)))

    def check_survivors(self, context: Context, survivors: Collection[int]) -> None:
        """Participants of this sum may stand beside those of earlier exact sums.

        Raises:
            AggregationRefused: they are too close to them, or not among them.
        """
        if context.kind in self._terms.schedule.guarded:
            self._read().group.check_survivors(survivors, self._terms.min_nodes)

    def step(self, context: Context, stage: Stage, survivors: Collection[int]) -> None:
        """Promise never to take this stage again; with the last one never to join this sum or one close to it.

        Args:
            context: of the attempt.
            stage: that is about to be taken.
            survivors: whom this node's signature stands under; used by the last stage.

        Raises:
            AggregationRefused: the node has joined another attempt since, has taken this stage, or has given shares
                of this sum away.
        """
        kept = self._read()
        self._open_to(kept, context)
        if context.attempt != kept.attempt or stage <= kept.stage:
            raise AggregationRefused(
                f"stage {stage.name.lower()} of attempt {context.attempt} is over: this node has taken stage "
                f"{Stage(kept.stage).name.lower()} of attempt {kept.attempt}",
                Reason.REPLAY,
            )
        kept = replace(kept, stage=int(stage))
        if stage is Stage.UNMASK:
            kept = replace(kept, given=(*kept.given, _label(context)))
            if context.kind in self._terms.schedule.guarded:
                kept = replace(kept, group=kept.group.check_survivors(survivors, self._terms.min_nodes))
        self._write(kept)

    def _open_to(self, kept: Kept, context: Context) -> None:
        """The sum is scheduled, and no share of it was given away."""
        if _label(context) in kept.given:
            raise AggregationRefused(
                f"this node's shares of sum {_label(context)} were given away: it will not be summed again",
                Reason.REPLAY,
            )
        self._terms.schedule.check(context.kind, context.phase, context.round, kept.given)

    def _read(self) -> Kept:
        if self._path is None:
            return self._memory
        try:
            kept = Kept.load(self._path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AggregationRefused(
                f"{self._path} cannot be read ({error}): without it this node could be asked twice; prepare a new "
                "run",
                Reason.PROMISES,
            ) from error
        if kept.run != self._terms.run:
            raise AggregationRefused(
                f"{self._path} is of run {kept.run}, this is {self._terms.run}: prepare the node for this run",
                Reason.PROMISES,
            )
        return kept

    def _write(self, kept: Kept) -> None:
        if self._path is None:
            self._memory = kept
        else:
            durable_write(self._path, kept.dump())


def _label(context: Context) -> str:
    return label_of(context.kind, context.phase, context.round)
