"""`fedrec tune`: a grid of hyper-parameters, evaluated on the validation part only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import ConfigError
from fedrec_server.cli.answer import Answer, notice, table, warn
from fedrec_simulations.cli.options import ConfigArgument, JsonFlag, Overrides, read_config
from fedrec_simulations.cli.toml_text import to_toml
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.tuning import Trial, combinations, run_trials, without_test
from fedrec_simulations.report.summary import HEADLINE
from fedrec_simulations.report.tables import DASH


def tune(
    config: ConfigArgument,
    grid: Annotated[
        list[str], typer.Option(metavar="A.B=C,D", help="Values to try; several --grid are combined.")
    ],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the best configuration is written; <name>-tuned.toml by default."),
    ] = None,
    json_: JsonFlag = False,
) -> Answer:
    """Try hyper-parameters on the validation part; the test part is dropped before anything else."""
    base = read_config(config, overrides)
    configs = [(points, read_config(config, [*(overrides or []), *points])) for points in combinations(grid)]
    _refuse_other_questions(base, configs)
    target = out or Path(f"{base.name}-tuned.toml")
    if not target.parent.is_dir():
        raise ConfigError(f"--out {target}: folder {target.parent} does not exist")
    split = without_test(prepare(base).split)
    warn(base.warnings())
    done = 0

    def progress(trial: Trial) -> None:
        nonlocal done
        done += 1
        what = " ".join(trial.overrides) or "as given"
        notice(f"{done}/{len(configs)}  {what}  {trial.score:.4f}  ({trial.seconds:.1f} s)")

    trials = run_trials(configs, split, jobs, progress)
    best = trials[0]
    target.write_text(to_toml(best.config.model_dump(mode="json")), encoding="utf-8")
    metric = base.federation.select_metric
    document = {"metric": metric, "trials": [_plain(trial) for trial in trials], "best": target}
    columns = ["trial", metric, *HEADLINE.values(), "rounds", "seconds"]
    rows = [_row(trial) for trial in trials]
    view: list[RenderableType] = [
        table(f"{base.name} on the validation part", columns, rows),
        f"best: {escape(str(target))}; train it with: fedrec train {escape(str(target))}",
    ]
    return Answer(document, view)


def _refuse_other_questions(base: Config, configs: list[tuple[tuple[str, ...], Config]]) -> None:
    for points, config in configs:
        if (config.data, config.split, config.evaluation) != (base.data, base.split, base.evaluation) or (
            config.federation.select_metric != base.federation.select_metric
        ):
            raise ConfigError(
                f"--grid {' '.join(points)} changes the data, the split or the measure, so results would not "
                "compare: vary model.* and federation.* only"
            )


def _plain(trial: Trial) -> dict[str, object]:
    return {
        "set": list(trial.overrides),
        "rounds": trial.rounds,
        "validation": trial.validation,
        "seconds": trial.seconds,
    }


def _row(trial: Trial) -> list[str]:
    shown = [f"{trial.validation[name]:.4f}" if name in trial.validation else DASH for name in HEADLINE]
    what = " ".join(trial.overrides) or "as given"
    return [what, f"{trial.score:.4f}", *shown, str(trial.rounds), f"{trial.seconds:.1f}"]
