"""The cells of a sweep: one method at one budget, at one point of the other axes, with one seed.

A cell is a whole configuration, checked before any cell runs; its hash says whether a result that lies on disk is
still its own. Out of scope: running (`work`), putting results together (`table`).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.sweep.spec import MethodSpec, SweepSpec, Values, put

#: Part of every hash: raised when cells mean something else than before.
FORMAT = 2
UNPROTECTED = {"unit": "none", "aggregator": "plain", "insecure": True}
#: What a private cell assumes unless its method says otherwise. The seed makes the noise repeatable and therefore
#: worthless as protection: right for public data in a simulation, and every output says so.
SIMULATED = {"unit": "user", "trust": "central", "aggregator": "plain", "insecure": True}

Axes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Cell:
    """What one run of the sweep is.

    Attributes:
        method: its name.
        epsilon: target; inf: without noise.
        axes: the other axes' keys and values.
        seed: of everything random.
        local_only: nothing is trained.
        config: the whole configuration; where nothing is trained only data, split and evaluation count.
        data: folder of the sweep's data.
    """

    method: str
    epsilon: float
    axes: Axes
    seed: int
    local_only: bool
    config: Config
    data: Path

    @property
    def key(self) -> str:
        """Fingerprint of everything that decides the result; names for users do not."""
        parts = {
            "format": FORMAT,
            "local_only": self.local_only,
            "config": self.config.model_dump(mode="json"),
            "data": self.data.name,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class CellResult:
    """What came out of one cell.

    Attributes:
        key: the cell's.
        metrics: name to mean over users, exact, on data that is held here: `full/ndcg@10` over all, `small/...` over
            the third with the shortest histories, `tail/...` over held-out items outside the most popular fifth; and
            `released/...`, what the run itself let out under its plan; `released_std/...`, how loud its noise was.
        users: evaluated users behind "all", "small" and "tail".
        privacy: what was paid and how loud the noise was (see `costs.of_plan`); empty without noise.
        seconds: wall time of training and evaluating.
        error: why the cell has no metrics, in one line; it is tried again at the next start.
    """

    key: str
    metrics: dict[str, float] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def base_config(spec: SweepSpec, source: str) -> Config:
    """The sections that hold for all cells, as a configuration whose model is not used."""
    values = _shared_sections(spec) | {"model": {"kind": "popularity"}, "privacy": dict(UNPROTECTED)}
    # Rounds and clip play no part here, but a cohort does not fit every model.
    values["federation"] = values["federation"] | {"sampling_rate": 1.0}
    return parse_config(values, (), source)


def cells(spec: SweepSpec, data: Path, group_bounds: tuple[int, int], source: str) -> list[Cell]:
    """Every cell of an experiment, in the order of the file.

    Raises:
        ConfigError: one of them is no configuration; nothing has run yet.
    """
    return [
        _cell(spec, method, epsilon, axes, seed, data, group_bounds, source)
        for method in spec.method
        for axes in _points(spec, method)
        for epsilon in (spec.sweep.epsilons if method.private and not method.local_only else (math.inf,))
        for seed in spec.sweep.seeds
    ]


def _points(spec: SweepSpec, method: MethodSpec) -> list[Axes]:
    if method.local_only:
        return [()]
    axes = spec.axes | method.axes
    return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _cell(
    spec: SweepSpec,
    method: MethodSpec,
    epsilon: float,
    axes: Axes,
    seed: int,
    data: Path,
    group_bounds: tuple[int, int],
    source: str,
) -> Cell:
    values = _shared_sections(spec) | {"model": method.model or {"kind": "popularity"}, "privacy": {}}
    sections: list[dict[str, Values]] = [
        {"federation": method.federation, "privacy": method.privacy},
        method.overrides_at(epsilon),
    ]
    values = copy.deepcopy(values)
    for overrides in sections:
        for name, part in overrides.items():
            values[name] = values[name] | copy.deepcopy(part)
    for key, value in axes:
        put(values, key, value)
    values["federation"]["seed"] = seed
    _set_privacy(values, epsilon, seed, spec.sweep.metric)
    # Seeds give the spread here, and lists are not what is bought with epsilon.
    values["evaluation"] |= {"bootstrap": 0, "list_k": 0, "group_bounds": list(group_bounds)}
    config = parse_config(values, (), f"{source}, method {method.name!r} at epsilon {epsilon:g}")
    _require_metric(spec, config)
    return Cell(method.name, epsilon, axes, seed, method.local_only, config, data)


def _shared_sections(spec: SweepSpec) -> Values:
    """The common sections under a name that no result depends on."""
    parts = {name: dict(getattr(spec, name)) for name in ("data", "split", "evaluation", "federation")}
    return {"name": "cell", **parts}


def _set_privacy(values: Values, epsilon: float, seed: int, metric: str) -> None:
    given = values["privacy"]
    if math.isfinite(epsilon):
        # A release of metrics belongs to what a budget buys; about single interactions there is none.
        names = list(dict.fromkeys((metric, f"full/hr@{metric.partition('@')[2]}")))
        released = {"metrics": "noised", "released_metrics": names}
        values["privacy"] = SIMULATED | ({} if given.get("unit") == "interaction" else released) | given
        values["privacy"] |= {"epsilon": epsilon, "noise_seed": seed}
        values["evaluation"]["held_data"] = True
        return
    # The same method without noise keeps its clip: what is left out is the noise alone.
    if "clip_norm" in given:
        values["federation"] = {"clip_norm": given["clip_norm"]} | values["federation"]
    values["privacy"] = dict(UNPROTECTED)


def _require_metric(spec: SweepSpec, config: Config) -> None:
    settings = config.evaluation
    known = [
        f"{p}/{m}@{k}"
        for p in settings.protocols
        for m in ("ndcg", "hr", "recall", "capped_recall")
        for k in settings.ks
    ]
    if spec.sweep.metric not in known:
        raise ConfigError(
            f"sweep.metric = {spec.sweep.metric!r} is not measured: expected one of {', '.join(known)}"
        )
