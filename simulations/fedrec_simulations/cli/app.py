"""Assembles the commands, prints their answers, turns errors into one line and an exit code.

    exit 0 success · 2 wrong command line · 3..20 see `fedrec.core.errors` · 130 interrupted, a checkpoint is left

A traceback means a bug in fedrec, never a user's mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import typer
from rich.console import Console

from fedrec.core.errors import FedrecError
from fedrec_simulations.cli import (
    campaign,
    compare,
    config_commands,
    data,
    demo,
    doctor,
    evaluate,
    federation,
    keys,
    model,
    privacy,
    recommend,
    service,
    train,
    tune,
)
from fedrec_simulations.cli.answer import INTERRUPTED, Answer, notice, to_json

USAGE = 2

app = typer.Typer(
    name="fedrec",
    help="Federated recommenders: train where the data is, recommend on the device.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("compare")(compare.compare)
app.add_typer(privacy.app, name="privacy")
app.add_typer(config_commands.app, name="config")
app.command("doctor")(doctor.doctor)
app.add_typer(federation.app, name="federation")
app.add_typer(keys.app, name="keys")
app.add_typer(model.app, name="model")
app.add_typer(service.app, name="service")
app.add_typer(campaign.app, name="campaign")
app.add_typer(service.certs, name="certs")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code."""
    as_json = "--json" in arguments
    # Understood wherever it stands, also where the command is missing or wrong.
    rest = [argument for argument in arguments if argument != "--json"] or ["--help"]
    try:
        answer = typer.main.get_command(app).main(rest, prog_name="fedrec", standalone_mode=False)
    except FedrecError as error:
        return _fail(str(error), error.exit_code, as_json)
    except click.ClickException as error:
        return _usage(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED, as_json)
    if isinstance(answer, Answer):
        return _print(answer, as_json)
    # `--help` and friends have printed what they had to say.
    return INTERRUPTED if answer == INTERRUPTED else 0


def _print(answer: Answer, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(to_json(answer.document) + "\n")
        return answer.exit_code
    console = Console(highlight=False)
    if not console.is_terminal:
        # No one's window: lines are as long as they are, so that they can be searched and cut.
        console = Console(highlight=False, width=160)
    for part in answer.view:
        console.print(part, soft_wrap=isinstance(part, str))
    return answer.exit_code


def _usage(error: click.ClickException, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "fedrec"
    return _fail(f"{error.format_message().rstrip('.')}: see `{path} --help`", USAGE, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    if as_json:
        sys.stdout.write(to_json({"error": line, "exit_code": code}) + "\n")
    else:
        notice(f"error: {line}", "bold red")
    return code
