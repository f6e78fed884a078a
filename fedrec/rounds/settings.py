"""Settings of the rounds: one frozen object for what nodes do, one for what the coordinator does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedrec.rounds.aggregation import ConfiguredRule, RuleSettings
from fedrec.rounds.compression import Compression


class NodeSettings(BaseModel):
    """What a node must know beside the recommender; the same on every node of a run.

    Attributes:
        seed: root of all randomness of the run.
        sampling_rate: q, the probability that a user takes part in a round.
        sampling: "poisson": by an independent coin in every round, as the accounting of a private run needs;
            "shuffled": exactly once in every 1/q rounds (rounded), at a place drawn anew each time, as minibatches of
            a shuffled pass are.
        clip_norm: C, the L2 bound of one user's whole update; None: unbounded.
        shard_parameters: a gradient of more values than this is sent in parts, some rows of the item tables in each
            round (`fedrec.rounds.shards`); None: always whole.
        compression: makes a gradient smaller (`fedrec.rounds.compression`); None: it is sent as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    sampling_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    sampling: Literal["poisson", "shuffled"] = "poisson"
    clip_norm: float | None = Field(default=None, gt=0.0)
    shard_parameters: int | None = Field(default=None, ge=1)
    compression: Compression | None = None


class RoundSettings(BaseModel):
    """How the coordinator runs rounds.

    Attributes:
        rounds: T, the most rounds of a phase.
        evaluate_every: rounds between two evaluations on the validation part.
        patience: evaluations without an improvement after which the selection ends; None: all rounds.
        min_nodes: fewer valid replies abandon the round.
        min_reply_fraction: fewer valid replies, as a fraction of the nodes asked, abandon the round.
        max_abandoned: abandoned rounds in a row after which the run stops.
        deadline_seconds: how long one exchange may take.
        stage_seconds: how long a stage of secure aggregation in which nodes compute nothing may take.
        wait_seconds: how long the coordinator waits for `min_nodes` nodes to be there.
        checkpoint_every: rounds between two checkpoints (each round by default).
        max_users_per_node: a node that claims more is refused.
        aggregation_rule: what makes one sum of the nodes' replies, a name or a table with `kind` and its settings
            (`fedrec.rounds.rules`); rules that look at single replies are refused beside secure aggregation and
            privacy targets.
        select_metric: validation metric that chooses the number of rounds, as `<protocol>/<metric>`, or
            "balanced", the geometric mean of full NDCG@10, sampled NDCG@10 and sampled HR@10, or
            "answers/likelihood", exp(-log loss) of a ranker whose probabilities are evaluated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=20, ge=1)
    evaluate_every: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
    min_nodes: int = Field(default=1, ge=1)
    min_reply_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    max_abandoned: int = Field(default=3, ge=1)
    deadline_seconds: float = Field(default=600.0, gt=0.0)
    stage_seconds: float = Field(default=60.0, gt=0.0)
    wait_seconds: float = Field(default=300.0, gt=0.0)
    checkpoint_every: int = Field(default=1, ge=1)
    max_users_per_node: int = Field(default=1_000_000, ge=1)
    aggregation_rule: ConfiguredRule = RuleSettings()
    select_metric: Literal[
        "full/ndcg@10",
        "full/hr@10",
        "full/recall@20",
        "sampled/ndcg@10",
        "sampled/hr@10",
        "balanced",
        "answers/likelihood",
    ] = "full/ndcg@10"
