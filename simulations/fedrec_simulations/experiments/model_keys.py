"""The reference page of every model's keys, written from the configurations and their docstrings.

python -m fedrec_simulations.experiments.model_keys > docs/reference/model-keys.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedrec.core.recommender import RecommenderConfig
from fedrec.recommenders.registry import RECOMMENDERS

HEAD = """# Keys of every model

What `[model]` may say, from the docstrings of the configurations of fedrec's own recommenders (`python -m
fedrec_simulations.experiments.model_keys` writes this page). What the models are: [recommenders](recommenders.md);
keys made for noise are explained further in the [configuration](configuration.md#models).
"""
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


def title(config: type[BaseModel]) -> str:
    """The first sentence of a configuration's docstring."""
    return (inspect.getdoc(config) or "").partition("\n")[0].rstrip(".")


def rows(config: type[BaseModel], without: Sequence[type[BaseModel]] = ()) -> Iterator[str]:
    """A line of the table for each key that none of `without` has in the same way."""
    told = meanings(config)
    for name, field in config.model_fields.items():
        if name == "kind" and issubclass(config, RecommenderConfig):
            continue
        default = field.get_default(call_default_factory=True)
        if any(_same(name, default, told.get(name), base) for base in without):
            continue
        shown = "required" if default is PydanticUndefined else said(default)
        meaning = told[name].replace("|", "\\|")
        yield f"| `{name}` | {shown} | {meaning} |"


def _same(name: str, default: object, meaning: str | None, base: type[BaseModel]) -> bool:
    field = base.model_fields.get(name)
    return (
        field is not None
        and field.get_default(call_default_factory=True) == default
        and meanings(base).get(name) == meaning
    )


def section(
    heading: str, config: type[BaseModel], without: Sequence[type[BaseModel]] = (), note: str = ""
) -> str:
    """A heading, a note and a table."""
    lines = [*rows(config, without)]
    table = ["| key | default | meaning |", "|---|---|---|", *lines, ""] if lines else []
    return "\n".join([f"## {heading}\n", *([f"{note}\n"] if note else []), *table])


def shared_bases(configs: Sequence[type[BaseModel]]) -> list[type[BaseModel]]:
    """The configurations on which several others build, the widest first."""
    counts: Counter[type[BaseModel]] = Counter(
        base
        for config in configs
        for base in config.__mro__
        if issubclass(base, RecommenderConfig) and base is not RecommenderConfig and base not in configs
    )
    found = [base for base, count in counts.items() if count > 1]
    return sorted(found, key=lambda base: (-counts[base], base.__name__))


def parts(configs: Sequence[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Settings within the configurations, and within these, by the key that holds them first."""
    found: dict[str, type[BaseModel]] = {}
    for config in configs:
        for name, field in config.model_fields.items():
            for part in (field.annotation, *get_args(field.annotation)):
                known = part in found.values() or part is RecommenderConfig
                if isinstance(part, type) and issubclass(part, BaseModel) and not known:
                    found[name] = part
    within = parts([*found.values()]) if found else {}
    return found | {name: part for name, part in within.items() if part not in found.values()}


def page() -> str:
    """The whole page."""
    kinds = {kind: made.config_class for kind, made in RECOMMENDERS.builtin()}
    bases, out = shared_bases([*kinds.values()]), [HEAD]
    for kind, config in kinds.items():
        own = [base for base in bases if issubclass(config, base)]
        note = f"And those under: {'; '.join(title(base) for base in own)}." if own else ""
        out.append(section(f"`{kind}`", config, own, note))
    for base in bases:
        wider = [other for other in bases if other is not base and issubclass(base, other)]
        out.append(section(title(base), base, wider))
    out += [section(f"`{name}`", part) for name, part in parts([*bases, *kinds.values()]).items()]
    return "\n".join(out)


if __name__ == "__main__":
    sys.stdout.write(page())
