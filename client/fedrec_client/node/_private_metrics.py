"""A node's part of the one release of metrics: asked once, after the rounds, answered with noised sums or not at all.

The request is an "evaluate" of phase "refit" with the number after the last round, under which it is charged. Any
other is refused, as is the same with another model; the very same one gets the very same bytes. Out of scope:
measuring (`fedrec.evaluation.bounded`), booking (`private_releases`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.core.interactions import IntArray
from fedrec.core.messages import Reply, Request
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.metrics_release import contribution_name
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec_client.node._identity import identity_of
from fedrec_client.node.private_releases import Releases


class PrivateMetrics:
    """Answers the evaluation of a private run.

    Args:
        plan: of the run.
        user_key: [U] of the hosted users.
        releases: the door through which contributions leave.
    """

    def __init__(self, plan: PrivacyPlan, user_key: IntArray, releases: Releases) -> None:
        self._plan = plan
        self._users = len(user_key)
        self._noise = NoiseSource(plan.noise_seed).derive("node", identity_of(user_key), "metrics")
        self._releases = releases

    def answer(self, request: Request, sums: Callable[[Sequence[str]], NDArray[np.float64]]) -> Reply:
        """The contribution to the release, charged before it leaves.

        Args:
            request: of the coordinator.
            sums: gives the [K + 1] sums over the hosted users of the metrics named; called if none were let out.

        Raises:
            PrivacyRefused: it is not the one evaluation of the plan, or it was answered for another model.
            BudgetExhausted: the account does not hold enough; nothing may be sent.
        """
        if self._plan.metrics is None:
            raise PrivacyRefused(
                "evaluation is refused: metrics are not part of the privacy plan; "
                "set privacy.metrics = 'noised' for a release that is charged"
            )
        if (request.phase, request.round) != ("refit", self._plan.charges):
            raise PrivacyRefused(
                f"evaluation of phase {request.phase!r}, number {request.round} is refused: under the privacy plan "
                f"there is one, of phase 'refit', number {self._plan.charges}"
            )
        earlier = self._releases.earlier(request)
        if earlier is not None:
            return earlier
        alone = self._plan.metrics_plan()
        values = sums(self._plan.metrics.names)
        sent = mechanism_of(alone).contribute(values, self._users, 1, alone.clip_norm, self._noise)
        reply = Reply(
            request.kind, request.round, request.phase, {contribution_name(alone.distributed): sent}, {}
        )
        return self._releases.release(request, reply)
