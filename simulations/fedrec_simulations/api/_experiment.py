"""From the arguments of a call to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedrec.core.recommender import RecommenderConfig
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import Prepared

Engine = Literal["in-process", "flower", "deployment"]
Model = str | Mapping[str, Any] | RecommenderConfig
#: A target epsilon per user, or the keys of the section `privacy`; None: no differential privacy.
Privacy = float | Mapping[str, Any] | None


def experiment_of(
    parts: Prepared,
    model: Model,
    privacy: Privacy,
    engine: Engine,
    name: str | None,
    sections: Mapping[str, Mapping[str, Any] | None],
) -> Config:
    """The configuration of a run on data that is prepared already.

    Args:
        parts: the data, which say how they were made.
        model: kind, keys of the section `model`, or a recommender's configuration.
        privacy: see `Privacy`.
        engine: where the rounds run.
        name: of the run; None: that of the model.
        sections: federation, evaluation and secagg.

    Raises:
        ConfigError: any value is wrong; the message lists all problems.
    """
    chosen = _model(model)
    values: dict[str, Any] = {
        "name": name or str(chosen.get("kind", "run")),
        "data": parts.data.model_dump(mode="json"),
        "split": parts.rule.model_dump(mode="json"),
        "model": chosen,
        "privacy": _privacy(privacy, engine),
    }
    values |= {section: dict(given) for section, given in sections.items() if given}
    return parse_config(values, (), "fedrec.train")


def _model(model: Model) -> dict[str, Any]:
    if isinstance(model, str):
        return {"kind": model}
    return model.model_dump(mode="json") if isinstance(model, RecommenderConfig) else dict(model)


def _privacy(privacy: Privacy, engine: Engine) -> dict[str, Any]:
    """In one process nothing is hidden from whoever holds all data: such a run is a simulation, and called so."""
    if privacy is None:
        given: dict[str, Any] = {"unit": "none"}
    elif isinstance(privacy, Mapping):
        given = dict(privacy)
    else:
        given = {"unit": "user", "epsilon": float(privacy)}
    where = {"aggregator": "simulated"} if engine == "in-process" and "aggregator" not in given else {}
    return where | given
