"""The coordinator's part of the one release of metrics: asked for the charged model, noised, booked, then shown.

The order is that of a round: what is to be said is staged on disk, its digest is charged under the number after the
last round, then it may be read. A coordinator killed in between finds it charged and says the very same, or finds
nothing charged and asks again, which nodes answer word for word. Out of scope: what the noise is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import FedrecError, PrivacyRefused, ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.core.updates import State
from fedrec.evaluation.sums import TOLERANCE
from fedrec.privacy.durable import durable_write, sync_folder
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.metrics_release import contribution_name
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.noised_means import NoisedReport, noised_means
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.private_files import remove_durably
from fedrec_server.rounds._collectors import Question
from fedrec_server.rounds.charges import Charges

Contribution = tuple[NDArray[np.generic], int]

STAGED, SHOWN = "staged-metrics.json", "metrics.json"


class MetricsRound:
    """Asks for metrics, reads contributions, releases the noised means and books them.

    Args:
        rounds: the private run's; its plan releases metrics.
        folder: the coordinator's.
    """

    def __init__(self, rounds: Charges, folder: Path) -> None:
        self._rounds = rounds
        self._plan = rounds.plan
        self._alone = rounds.plan.metrics_plan()
        self._mechanism = mechanism_of(self._alone)
        self._name = contribution_name(self._alone.distributed)
        self._noise = NoiseSource(rounds.plan.noise_seed).derive("server", "metrics")
        self._staged, self._shown = folder / STAGED, folder / SHOWN

    def question(self, shared: State) -> Question:
        """What every node is asked of the final model."""
        example = self._mechanism.zero(self._alone.parameters)
        request = Request("evaluate", self._plan.charges, "refit", shared)
        return Question(request, self._read, {self._name: example}, (), lambda summed: self.noised([summed]))

    def earlier(self) -> dict[str, Any] | None:
        """What was charged and may have been read already; None: nothing was.

        Raises:
            PrivacyRefused: it was charged, and is not there any more.
        """
        digest = self._rounds.charged(self._plan.charges)
        if digest is None:
            remove_durably([self._staged])
            return None
        if self._staged.exists() and _digest(self._staged) == digest:
            self._show()
        if not self._shown.exists() or _digest(self._shown) != digest:
            raise PrivacyRefused(
                f"metrics were charged, and {self._shown} is not what was charged: nothing else is released; "
                "start a new run"
            )
        return dict(json.loads(self._shown.read_bytes()))

    def noised(self, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
        """[P + 1] the noised sums, and the number of users whose nodes answered: all that may be kept of the answers.

        Args:
            contributions: as read from the answers, with the users behind each.

        Raises:
            PrivacyRefused: too few users came for the noise that their shares add up to.
        """
        total = self._mechanism.zero(self._alone.parameters)
        for sent, _ in contributions:
            total = self._mechanism.add(total, sent)
        users = sum(count for _, count in contributions)
        flat = self._mechanism.release(total, users, 1, self._alone.clip_norm, self._noise)
        return np.append(flat[: self._alone.parameters], float(users))

    def release(self, noised: NDArray[np.float64]) -> dict[str, Any]:
        """The noised means, charged before this returns.

        Args:
            noised: what the method of that name returned.

        Raises:
            BudgetExhausted: the account does not hold enough; nothing may be shown.
        """
        said = self._report(noised[:-1], int(noised[-1])).as_dict()
        durable_write(self._staged, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())
        digest = _digest(self._staged)
        try:
            self._rounds.charge(self._plan.charges, digest)
        except (Exception, KeyboardInterrupt):
            with suppress(FedrecError, OSError):
                if self._rounds.charged(self._plan.charges) != digest:
                    remove_durably([self._staged])
            raise
        self._show()
        return said

    def _show(self) -> None:
        self._staged.replace(self._shown)
        sync_folder(self._shown.parent)

    def _report(self, flat: NDArray[np.float64], users: int) -> NoisedReport:
        assert self._plan.metrics is not None
        return noised_means(
            self._plan.metrics.names, flat[: self._alone.parameters], noise_of(self._alone, users)
        )

    def _read(self, reply: Reply, users: int, summed: bool) -> Contribution:
        """The contribution of a node that hosts `users`, or the sum of those that host so many together.

        Raises:
            ProtocolError: names, shape, type or finiteness are not as declared, or a clean sum is impossible.
        """
        if set(reply.arrays) != {self._name} or reply.meta:
            raise ProtocolError(
                f"evaluation reply has {sorted(reply.arrays)} and {sorted(reply.meta)}: expected {self._name!r} only"
            )
        sent, like = reply.arrays[self._name], self._mechanism.zero(self._alone.parameters)
        if sent.dtype != like.dtype or sent.shape != like.shape or not np.isfinite(sent).all():
            raise ProtocolError(
                f"evaluation reply is {sent.dtype}{sent.shape}: expected finite {like.dtype}{like.shape}"
            )
        clean = self._mechanism.sends_clean_sums
        if clean and (sent.min() < 0 or sent.max() > users * (1.0 + TOLERANCE)):
            raise ProtocolError("evaluation reply outside its possible range: the node's sums are discarded")
        return sent, users


def noise_of(alone: PrivacyPlan, users: int) -> float:
    """Standard deviation of the noise on each value of a sum over `users` users, by a plan of one round.

    Shares on devices, and full noise on each of them, add up with the users who answered.
    """
    planned = alone.noise_std(1)
    grows = mechanism_of(alone).noise_per_user
    return planned * math.sqrt(users / alone.denominator) if grows else planned


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
