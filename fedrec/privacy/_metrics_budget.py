"""How loud the noise of a plan's metrics is: a share of the budget, fixed before the rounds are calibrated.

Out of scope: what is released (`metrics_release`).
"""

from __future__ import annotations

import math
from typing import Any

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy._headroom import with_room
from fedrec.privacy.accounting import calibrate
from fedrec.privacy.integers import Integers, integers_of
from fedrec.privacy.metrics_release import MetricsRelease
from fedrec.privacy.noise_models import MECHANISMS, default_mechanism
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import PrivacySettings


def metrics_for(settings: PrivacySettings, fields: dict[str, Any]) -> MetricsRelease:
    """The release of metrics that takes the part of the budget which was asked for.

    A Gaussian that may spend the whole target alone has multiplier z; with z / sqrt(share) it takes that share of the
    squared mu, which is what Gaussians add up by. With sampling, or by Rényi divergences, this is nearly so.

    Args:
        settings: what was asked for.
        fields: of the plan that is being made.

    Raises:
        PrivacyRefused: the integers of trust "distributed" have no room.
    """
    names, model = settings.released_metrics, MECHANISMS.get(default_mechanism(settings.unit, settings.trust))
    like = MetricsRelease(names=names, noise_multiplier=0.0)
    one: dict[str, Any] = {
        "sampling": "everyone",
        "sampling_rate": 1.0,
        "rounds": 1,
        "clip_norm": like.bound,
        "parameters": like.values,
        "mechanism": None,
        "adaptive": None,
        "interaction": None,
        "carried": None,
        "cycle": None,
        "options": (),
    }

    def at(z: float, integers: Integers | None) -> PrivacyPlan:
        return PrivacyPlan(**(fields | one), noise_multipliers=(z,), distributed=integers)

    def kept(integers: Integers | None) -> PrivacyPlan:
        left = at(0.0, integers).kept_delta
        alone = calibrate(lambda z: at(z, integers).releases(), settings.epsilon, left, fields["accountant"])
        return at(alone / math.sqrt(settings.metrics_share), integers)

    if "distributed" not in model.needs:
        # Unit "interaction" has no metrics, which the plan itself says.
        found = kept(None) if settings.unit == "user" else None
        return like.model_copy(update={"noise_multiplier": found.noise_multipliers[0]}) if found else like
    own = settings.model_copy(update={"clip_norm": like.bound, "scale": None})
    integers = integers_of(own, fields["delta"], 1, like.values)
    try:
        found = with_room(kept, integers, chosen=False)
    except PrivacyRefused as error:
        raise PrivacyRefused(f"metrics: {error}; or set privacy.metrics to 'none'") from error
    return like.model_copy(
        update={"noise_multiplier": found.noise_multipliers[0], "integers": found.distributed}
    )
