"""The reference page of every model's keys, written from the configurations and their docstrings.

python -m fedrec_simulations.experiments.model_keys > docs/reference/model-keys.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedrec.neural.device_optimizer import DeviceOptimizer
from fedrec.neural.learning_rates import Schedule
from fedrec.neural.recommender import NeuralConfig
from fedrec.neural.sequence import AttentionConfig, SequenceConfig
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.wrapper_settings import Personal, Scaffold
from fedrec.recommenders.registry import ModelConfig

HEAD = """# Keys of every model

What `[model]` may say, from the docstrings of the configurations. What the models are:
[recommenders](recommenders.md);
keys made for noise are explained further in the [configuration](configuration.md#models). Written by
`python -m fedrec_simulations.experiments.model_keys`.
"""
#: Of several kinds, each told once.
COMMON: dict[str, type[BaseModel]] = {
    "Every network": NeuralConfig,
    "Every model of the next item": SequenceConfig,
    "Every model of the next item that attends": AttentionConfig,
}
PARTS: dict[str, type[BaseModel]] = {
    "`model.server`": ServerOptimizer,
    "`model.device`": DeviceOptimizer,
    "`schedule` of either": Schedule,
    "`model.personal`": Personal,
    "`model.scaffold`": Scaffold,
}
ITEM = re.compile(
    r"^ {4}(?P<names>\w+(?:, \w+)*): (?P<text>.*?)(?=^ {4}\w|^ {0,3}\S|\Z)", re.MULTILINE | re.DOTALL
)


def meanings(config: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a configuration and of those it builds on say of each key; the nearest counts."""
    out: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, told = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        for found in ITEM.finditer(told + "\n"):
            text = " ".join(found["text"].split())
            out |= dict.fromkeys(found["names"].split(", "), text)
    return out


def said(value: Any) -> str:
    """A default as the file would say it."""
    if isinstance(value, BaseModel):
        inside = ", ".join(
            f"{name} = {said(v)}" for name, v in value.model_dump(exclude_defaults=True).items()
        )
        return f"{{ {inside} }}" if inside else "its defaults"
    if isinstance(value, tuple):
        return f"[{', '.join(map(said, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return f'"{value}"' if isinstance(value, str) else "none" if value is None else f"{value}"


def rows(config: type[BaseModel], without: type[BaseModel] | None) -> Iterator[str]:
    """A line of the table for each key that `without` does not have in the same way."""
    told = meanings(config)
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name == "kind" and config is not Schedule:
            continue
        if without is not None and name in without.model_fields:
            before = without.model_fields[name].get_default(call_default_factory=True)
            if before == default and meanings(without).get(name) == told.get(name):
                continue
        shown = "required" if default is PydanticUndefined else said(default)
        meaning = told[name].replace("|", "\\|")
        yield f"| `{name}` | {shown} | {meaning} |"


def section(
    title: str, config: type[BaseModel], without: type[BaseModel] | None = None, note: str = ""
) -> str:
    """A heading, a note and a table."""
    lines = [*rows(config, without)]
    table = ["| key | default | meaning |", "|---|---|---|", *lines, ""] if lines else []
    return "\n".join([f"## {title}\n", *([f"{note}\n"] if note else []), *table])


def page() -> str:
    """The whole page."""
    out = [HEAD]
    for config in get_args(get_args(ModelConfig)[0]):
        kinds = ", ".join(f"`{kind}`" for kind in get_args(config.model_fields["kind"].annotation))
        builds_on = next((base for base in reversed(COMMON.values()) if issubclass(config, base)), None)
        names = [name for name, base in COMMON.items() if issubclass(config, base)]
        note = f"And those of: {', '.join(name.lower() for name in names)}." if names else ""
        out.append(section(kinds, config, builds_on, note))
    before: type[BaseModel] | None = None
    for title, base in COMMON.items():
        out.append(section(title, base, before))
        before = base
    out += [section(title, part) for title, part in PARTS.items()]
    return "\n".join(out)


if __name__ == "__main__":
    sys.stdout.write(page())
