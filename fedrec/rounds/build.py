"""From settings to the chain of a run: the one place where configuration becomes stages.

Maps that leave something out come before the clip that adds a count of its own, which no map may touch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import IntArray
from fedrec.core.stage import AggregationRule, RoundContext, Stage
from fedrec.core.updates import Layout
from fedrec.privacy.adaptive import QuantileClip
from fedrec.privacy.clipping import Clip, PrivateClip
from fedrec.privacy.fixed_point import FixedPoint
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.plan import PrivacyPlan
from fedrec.rounds.chain import Chain, Flatten
from fedrec.rounds.compression import Compression, Feedback, LowRank, Project, Quantise
from fedrec.rounds.formats import ClearFormat, Format, LevelsFormat, VectorFormat
from fedrec.rounds.local_training import (
    AllUsers,
    Cohort,
    CyclicCohort,
    PublicCohort,
    SecretCohort,
    UpdateTraining,
)
from fedrec.rounds.settings import NodeSettings
from fedrec.rounds.shards import Rows, Shard, spell_rows


def chain_of(
    settings: NodeSettings,
    plan: PrivacyPlan | None,
    *,
    gradient: bool,
    rule: AggregationRule | None = None,
) -> Chain:
    """The chain of a run, the same on nodes and server.

    Args:
        settings: of the run.
        plan: None: nothing is private.
        gradient: the update is a gradient, of which a part may be sent.
        rule: of the configuration; None: the sum.

    Raises:
        ConfigError: stages that cannot stand beside each other.
    """
    made = (
        clear_chain(settings, gradient=gradient)
        if plan is None
        else private_chain(settings, plan, gradient=gradient)
    )
    return made if rule is None else replace(made, rule=rule)


def clear_chain(settings: NodeSettings, *, gradient: bool) -> Chain:
    """Without a plan: feedback, clip, what is declared, few bits."""
    compression = settings.compression or Compression()
    stages: list[Stage] = [Feedback()] if compression.feedback else []
    stages += [Clip(settings.clip_norm), *(declared(settings) if gradient else [])]
    made: Format = ClearFormat(settings.clip_norm)
    if compression.bits is not None:
        quantise = Quantise(compression.bits)
        stages.append(quantise)
        made = LevelsFormat(settings.clip_norm, quantise)
    elif compression.feedback:
        stages.append(Project())
    cohort = PublicCohort(settings.sampling, settings.sampling_rate)
    return Chain(tuple(stages), made, UpdateTraining(), cohort, seed=settings.seed)


def private_chain(settings: NodeSettings, plan: PrivacyPlan, *, gradient: bool) -> Chain:
    """Under a plan: what is declared, clip, one vector, how it is carried, noise.

    Raises:
        ConfigError: the mechanism's noise is for gradients.
    """
    mechanism = mechanism_of(plan)
    if mechanism.correlates_rounds and not gradient:
        raise ConfigError(
            f"privacy.mechanism is {plan.mechanism_name!r}, whose noise cancels where rounds are added up, and this "
            "model's rounds are no steps of one sum: use the default mechanism"
        )
    maps = declared(settings) if gradient else []
    carried: list[Stage] = [] if plan.carried is None else [FixedPoint(plan.carried, plan.parameters)]
    stages = (*maps, private_clip(plan), Flatten(), *carried, mechanism)
    training = mechanism.training or UpdateTraining()
    return Chain(stages, VectorFormat(mechanism), training, private_cohort(plan), seed=settings.seed)


def private_cohort(plan: PrivacyPlan) -> Cohort:
    """As the plan's accounting takes it."""
    match plan.sampling:
        case "everyone" | "min_separation":
            return AllUsers()
        case "poisson":
            return SecretCohort(plan.sampling_rate, is_seeded=plan.noise_seed is not None)
        case "cyclic":
            drawn = SecretCohort(plan.turn_rate, is_seeded=plan.noise_seed is not None)
            return CyclicCohort(plan.cycle or 1, drawn if plan.turn_rate < 1.0 else AllUsers())
        case _:
            assert_never(plan.sampling)


def private_clip(plan: PrivacyPlan) -> PrivateClip:
    """A fixed norm, or one that follows a quantile."""
    rule = plan.adaptive
    if rule is None:
        return PrivateClip(plan.clip_norm)
    return QuantileClip(plan.clip_norm, rule.quantile, rule.learning_rate, plan.denominator)


def declared(settings: NodeSettings) -> list[Stage]:
    """Stages that say what of a gradient is sent."""
    compression = settings.compression or Compression()
    stages: list[Stage] = [] if compression.rank is None else [LowRank(compression.rank)]
    if compression.rows is not None:
        stages.append(Rows(compression.rows))
    elif settings.shard_parameters is not None:
        stages.append(Shard(settings.shard_parameters))
    return stages


def round_layout(
    layout: Layout,
    n_items: int,
    settings: NodeSettings,
    round_: int,
    *,
    gradient: bool,
    named: IntArray | None = None,
) -> Layout:
    """What is sent in a round: the layout itself, or one of some rows of every item table, whole or sketched.

    Args:
        layout: of the whole update.
        n_items: I, the first axis of item tables.
        settings: of the run.
        round_: from 1.
        gradient: the update is a gradient.
        named: rows that the server has named, rising, where the settings say that it does.
    """
    said = {} if named is None else {Rows.name: spell_rows(named, n_items)}
    context = RoundContext(round_, settings.seed, n_items, layout, announced=said)
    for stage in declared(settings) if gradient else []:
        layout = stage.layout(layout, context)
    return layout
