"""What the devices learn together, how they are protected, and how it is laid on the start model."""

from __future__ import annotations

import math

import numpy as np

from fedrec.core.errors import RegistryError
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.model import ServingModel
from fedrec.ranking.popular import Selected
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights
from fedrec.wire.package import Package
from fedrec_server.jobs.specification import JobSpecification, parse_job
from films.catalogue import HISTORY_HALF_LIFE

#: How much the layer that the devices learned weighs beside the start model.
LAYER_WEIGHT = 0.7
#: Of the devices: one of four may refuse or vanish, and the others' noise suffices.
SURVIVORS = 0.7


def job_specification(devices: int, join_seconds: float) -> JobSpecification:
    """What the devices compute, and how they are protected.

    The noise hides no one among so few: epsilon is stated and charged as it is. With as many users as an app
    has, the same lines with a single-digit epsilon do.

    Args:
        devices: that are to take part.
        join_seconds: for which a cohort waits for them.
    """
    return parse_job(
        {
            "model": {
                "kind": "dp_ease",
                "top_items": 20,
                "count_share": 0.3,
                "histogram_items": 12,
                "history_items": 12,
                "pair_half_life": None,
                "reg": 0.3,
                "cut": 0.8,
                "scoring_half_life": HISTORY_HALF_LIFE,
            },
            "privacy": {
                "unit": "user",
                "trust": "distributed",
                "epsilon": 600.0,
                "delta": 1e-6,
                "clip_norm": 1.0,
                "survivors": SURVIVORS,
                "force": True,
            },
            "federation": {"deadline_seconds": 20, "stage_seconds": 20},
            "job": {
                "participations": 2,  # a device is in both rounds
                "finish": "films.layer:on_champion",
                "cohort": {
                    "target": devices,
                    "least": max(3, math.ceil(SURVIVORS * devices)),
                    "most": devices,
                    "wait_seconds": join_seconds,
                },
            },
        },
        "the example app",
    )


def on_champion(trained: ServingModel, champion: Package) -> ServingModel:
    """What is published: the champion with what the devices learned on top."""
    return layered(champion.model, trained)


def layered(start: ServingModel, trained: ServingModel) -> ServingModel:
    """The start model with what the devices learned on top, in 8 bits.

    Raises:
        RegistryError: either is of another kind than this app publishes.
    """
    if not (isinstance(start, ItemItem) and isinstance(trained, Selected)):
        raise RegistryError(f"a layer of {trained.kind} on {start.kind}: this app knows item-item models")
    layer, places = trained.inner, trained.selected
    if not (isinstance(layer, ItemItem) and isinstance(start.weights, DenseWeights)):
        raise RegistryError("weights that are not dense: this app publishes dense ones")
    k = np.arange(len(places))
    weights = start.weights.table.rows(np.arange(start.n_items)).copy()
    weights[np.ix_(places, places)] += np.float32(LAYER_WEIGHT) * layer.weights.features(k)
    made = ItemItem(DenseWeights(FloatTable(weights)), start.half_life, start.base)
    return made.quantised()
