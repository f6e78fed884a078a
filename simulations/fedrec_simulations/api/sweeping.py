"""Quality against epsilon: several methods at several privacy budgets, over several seeds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec.core.extras import needs
from fedrec_simulations.api.results import SweepResult
from fedrec_simulations.experiments.prepare import Prepared

EPSILONS = (1.0, 3.0, 8.0, math.inf)
SEEDS = (1, 2, 3)


def sweep(
    data: Prepared,
    methods: Mapping[str, str | Mapping[str, Any]],
    *,
    epsilons: Sequence[float] = EPSILONS,
    seeds: Sequence[int] = SEEDS,
    metric: str = "full/ndcg@10",
    axes: Mapping[str, Sequence[Any]] | None = None,
    federation: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    jobs: int = 1,
    folder: Path | str | None = None,
    on_result: Callable[[str], None] = lambda line: None,
) -> SweepResult:
    """Train methods at several budgets and compare them on the test part.

    Noise is seeded, so that the runs can be repeated: they show what protection costs and protect no one.

    Args:
        data: as `fedrec.split` returned it.
        methods: name to kind of recommender, or to the keys of a `[[method]]` table of a sweep file, such as
            `{"model": {"kind": "dp_ease", "reg": 50}, "privacy": {"clip_norm": 1.0}}`.
        epsilons: budgets per user; infinity: the same method without noise.
        seeds: of everything random.
        metric: by which methods are compared.
        axes: dotted key to values that are tried in all combinations, as "model.reg".
        federation, evaluation: keys of these sections, for all methods.
        jobs: processes; more than 1 needs a script that can be imported without starting work.
        folder: where results are kept, so that the same call resumes; None: a temporary one.
        on_result: called with one line per trial.

    Raises:
        ConfigError: a method, an axis or a metric that is wrong; nothing has run yet.

    Example:
        >>> import fedrec
        >>> rows = [(user, item) for user in range(30) for item in range(user % 5 + 3)]
        >>> data = fedrec.split(fedrec.from_arrays(*zip(*rows)))
        >>> found = fedrec.sweep(data, {"counts": "popularity"}, epsilons=[8.0], seeds=[1])
        >>> found.columns()["epsilon"]
        [8.0]
    """
    with needs("fedrec.sweep"):
        from fedrec_simulations.sweep.reading import read, sentences
        from fedrec_simulations.sweep.runner import run_sweep
        from fedrec_simulations.sweep.table import CAVEAT, points

        spec = _spec(data, methods, epsilons, seeds, metric, axes, federation, evaluation)
        with tempfile.TemporaryDirectory(prefix="fedrec-") as scratch:
            place = Path(folder) if folder is not None else Path(scratch)
            place.mkdir(parents=True, exist_ok=True)
            todo = _trials(spec, data, place)
            results = run_sweep(
                place,
                todo,
                jobs,
                lambda trial, result: on_result(
                    f"{trial.method}, epsilon {trial.epsilon:g}, seed {trial.seed}: {result.error or 'done'}"
                ),
            )
        found = points(todo, results)
        return SweepResult(tuple(map(_row, found)), tuple(sentences(read(spec, found))), CAVEAT)


def _spec(
    data: Prepared,
    methods: Mapping[str, str | Mapping[str, Any]],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    metric: str,
    axes: Mapping[str, Sequence[Any]] | None,
    federation: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> Any:
    from fedrec_simulations.sweep.spec import parse_sweep

    tables = [
        {"name": name, **({"model": {"kind": method}} if isinstance(method, str) else method)}
        for name, method in methods.items()
    ]
    if not tables:
        raise ConfigError("there are no methods: give at least one, such as {'EASE': 'dp_ease'}")
    return parse_sweep(
        {
            "name": "sweep",
            "data": data.data.model_dump(mode="json"),
            "split": data.rule.model_dump(mode="json"),
            "federation": dict(federation or {}),
            "evaluation": dict(evaluation or {}),
            "sweep": {"epsilons": list(epsilons), "seeds": list(seeds), "metric": metric},
            "axes": {key: list(values) for key, values in (axes or {}).items()},
            "method": tables,
        },
        "fedrec.sweep",
    )


def _trials(spec: Any, data: Prepared, folder: Path) -> list[Any]:
    """Every trial, checked, with the data written where its processes find it."""
    from fedrec_simulations.sweep.cells import base_config, cells
    from fedrec_simulations.sweep.data import prepare_sweep, read_data

    source = "fedrec.sweep"
    # Everything is checked before the data is written: bounds of groups decide nothing about that.
    cells(spec, folder, (1, 2), source)
    place = prepare_sweep(folder, base_config(spec, source), spec.sweep.evaluate, data)
    return cells(spec, place, read_data(place).group_bounds, source)


def _row(point: Any) -> dict[str, Any]:
    row = {"method": point.method, "epsilon": point.epsilon, **dict(point.axes), "seeds": point.seeds}
    for name, spread in point.metrics.items():
        row |= {name: spread.mean, f"{name} low": spread.low, f"{name} high": spread.high}
    return row | {"seconds": point.seconds, "error": point.error}
