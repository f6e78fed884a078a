"""From a finished run to the files of a model that devices serve.

The files say only what may be said in public: the model, the items, the run's privacy statement. How popular items
are comes from the model's own counts, which are private where the run is; a run without privacy may count its data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.errors import RunError
from fedrec.core.updates import State
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.recommenders.registry import build
from fedrec.recommenders.serving import serving_form
from fedrec.wire.package import pack_model
from fedrec_server.operations.run_artifacts import RunArtifacts
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import TaskSpecification

#: A dense item-item model of more items is cut to the strongest weights of each row.
DENSE_ITEMS = 4_000
STRONGEST = 200
#: Of the statement, not of the configuration: what was asked for is not always what holds.
GUARANTEE = ("epsilon", "delta", "user_epsilon", "population", "rounds_released")


def files_of_run(run: RunArtifacts, *, int8: bool = True) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files for a registry, and the summary of the statement for the manifest.

    Args:
        run: finished.
        int8: tables of 8-bit integers, a quarter of the size.

    Raises:
        RunError: it is not finished, or has no privacy statement.
    """
    config, shared = run.config, run.model
    statement = statement_of(run.path)
    model = served(config, shared, int8=int8)
    return pack_model(model, _items(run, shared), statement), summary(config, statement)


def served(config: TaskSpecification, shared: State, *, int8: bool = True) -> ServingModel:
    """The serving model of a run, small enough for a device."""
    model = serving_form(build(config.model), shared)
    if isinstance(model, ItemItem) and model.n_items > DENSE_ITEMS:
        model = model.pruned(STRONGEST)
    return model.quantised() if int8 else model


def summary(config: TaskSpecification, statement: dict[str, Any]) -> dict[str, Any]:
    """The few facts of a statement that a manifest carries; without a statement nothing is promised."""
    privacy = config.privacy
    shown = {"aggregator": privacy.aggregator, "headline": str(statement.get("headline", ""))[:500]}
    if isinstance(privacy, NoPrivacy):
        return {"unit": "none"} | shown
    guarantee = statement.get("guarantee", {})
    facts = {name: guarantee[name] for name in GUARANTEE if name in guarantee}
    return {"unit": privacy.unit, "trust": privacy.trust} | facts | shown


def _items(run: RunArtifacts, shared: State) -> Items:
    catalog = run.catalog
    counts = shared.get("count")
    if counts is None and isinstance(run.config.privacy, NoPrivacy):
        train = run.split.train
        counts = np.bincount(train.item, minlength=train.n_items).astype(np.float32)
    if counts is None:
        counts = np.zeros(len(catalog), np.float32)
    return Items.of(
        catalog.item_ids.tolist(), catalog.titles.tolist(), catalog.categories, np.maximum(counts, 0)
    )


def statement_of(path: Path) -> dict[str, Any]:
    """The statement, without the path of the ledger: it is the operator's."""
    try:
        statement = dict(json.loads((path / "privacy.json").read_text()))
        budget = statement["budget_period_and_composition"]
        return statement | {
            "budget_period_and_composition": budget | {"ledger": None if budget["ledger"] is None else "kept"}
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} has no privacy statement ({error}): write it with `fedrec privacy statement {path}`"
        ) from error
