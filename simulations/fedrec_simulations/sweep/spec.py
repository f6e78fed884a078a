"""The experiment file of a sweep: what is the same in all its cells, and what differs.

Sections [data], [split], [evaluation] and [federation] are those of a run and hold for every cell; [sweep] says
which budgets and seeds; each [[method]] is a named recommender with what it overrides. Out of scope: what a
recommender or a privacy section may say (every cell becomes a `Config`, which checks that), running.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from fedrec.core.errors import ConfigError
from fedrec_server.operations.sections import Section

Values = dict[str, Any]
#: The sections of a configuration that a method may differ in.
SECTIONS = ("model", "federation", "privacy")
#: Keys of [privacy] that the sweep itself sets.
RESERVED = ("epsilon", "noise_seed")


class SweepSection(Section):
    """Budgets, seeds and the measure.

    Attributes:
        epsilons: target epsilon of each cell; inf: the same method without noise.
        seeds: of initial values, cohorts and (simulated) noise.
        evaluate: "test", after every choice is made; "validation" while settings are being chosen: the test part is
            then dropped before anything else is done.
        metric: by which methods are compared.
    """

    epsilons: tuple[float, ...] = (1.0, 3.0, 5.0, 8.0, 10.0, math.inf)
    seeds: tuple[int, ...] = (1, 2, 3)
    evaluate: Literal["test", "validation"] = "test"
    metric: str = "full/ndcg@10"

    @model_validator(mode="after")
    def _sensible(self) -> SweepSection:
        for name, values in (("epsilons", self.epsilons), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} = {list(values)}: expected at least one value, none of them twice")
        if not all(epsilon > 0 for epsilon in self.epsilons):
            raise ValueError(f"epsilons = {list(self.epsilons)}: expected values above 0; inf: without noise")
        return self


class MethodSpec(Section):
    """One recommender and how it is trained.

    Attributes:
        name: what the table and the page call it.
        model, federation, privacy: as in a run; they override the sections that hold for all. The sweep sets
            epsilon and seed itself.
        private: false: only without privacy, as the line that the others are measured against.
        local_only: no recommender at all: what a device can rank from its own history (`sweep.local_only`).
        axes: dotted key to the values that are tried, for this method only.
        at: epsilon to sections that differ at this budget.
    """

    name: str = Field(min_length=1)
    model: Values | None = None
    federation: Values = Field(default_factory=dict)
    privacy: Values = Field(default_factory=dict)
    private: bool = True
    local_only: bool = False
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    at: dict[str, dict[Literal["model", "federation", "privacy"], Values]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> MethodSpec:
        if self.local_only:
            given = [name for name in ("model", "federation", "privacy", "axes", "at") if getattr(self, name)]
            if given:
                raise ValueError(
                    f"method {self.name!r} is local_only: nothing is trained; drop {', '.join(given)}"
                )
        elif self.model is None:
            raise ValueError(f"method {self.name!r} has no model: set model.kind")
        if not self.private and (self.privacy or self.at):
            raise ValueError(f"method {self.name!r} is not private: drop its privacy and at sections")
        for section in (self.privacy, *(part.get("privacy", {}) for part in self.at.values())):
            taken = [key for key in RESERVED if key in section]
            if taken:
                raise ValueError(
                    f"method {self.name!r} sets privacy.{taken[0]}: the sweep does, from sweep.epsilons and seeds"
                )
        return self

    def overrides_at(self, epsilon: float) -> dict[str, Values]:
        """Sections that differ at one budget."""
        for text, sections in self.at.items():
            if float(text) == epsilon:
                return {str(name): values for name, values in sections.items()}
        return {}


class SweepSpec(Section):
    """A whole experiment; see the module's text."""

    name: str = "sweep"
    data: Values = Field(default_factory=dict)
    split: Values = Field(default_factory=dict)
    evaluation: Values = Field(default_factory=dict)
    federation: Values = Field(default_factory=dict)
    sweep: SweepSection = SweepSection()
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    method: tuple[MethodSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> SweepSpec:
        names = [method.name for method in self.method]
        if len(set(names)) < len(names):
            raise ValueError(f"method names {names}: expected different ones")
        if "group_bounds" in self.evaluation:
            raise ValueError("evaluation.group_bounds: a sweep takes thirds of the evaluated users; drop it")
        for method in self.method:
            self._check_axes(method)
            for text in method.at:
                if _number(text) not in self.sweep.epsilons:
                    raise ValueError(
                        f"method {method.name!r} has at.{text!r}: expected one of sweep.epsilons "
                        f"{list(self.sweep.epsilons)}"
                    )
        return self

    def _check_axes(self, method: MethodSpec) -> None:
        for key, values in (self.axes | method.axes).items():
            section, dot, _ = key.partition(".")
            if section not in SECTIONS or not dot:
                raise ValueError(f"axis {key!r}: expected {', '.join(f'{s}.<key>' for s in SECTIONS)}")
            if key in ("federation.seed", *(f"privacy.{name}" for name in RESERVED)):
                raise ValueError(f"axis {key!r}: the sweep sets it; use sweep.epsilons and sweep.seeds")
            if not values:
                raise ValueError(f"axis {key!r} has no values: give at least one")


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read an experiment file; overrides `a.b=value` as in `load_config`.

    Raises:
        ConfigError: the file cannot be read, or any value is wrong; the message lists all problems.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"experiment {path} cannot be read ({error.strerror}): give an existing TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment {path} is no TOML ({error}): mend the line named") from error
    for text in overrides:
        _override(values, text)
    return parse_sweep(values, str(path))


def parse_sweep(values: Values, source: str) -> SweepSpec:
    """A sweep from plain values; raises as `load_sweep` does."""
    try:
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_problem(item) for item in error.errors())) from error


def put(values: Values, key: str, value: Any) -> None:
    """Set a dotted key in nested tables.

    Raises:
        ConfigError: a part of the key is a value, not a table.
    """
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"key {key!r}: {section!r} is no table, so nothing lies in it; see the experiment file"
            )
    values[last] = value


def _override(values: Values, text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example --set sweep.seeds=[1]")
    try:
        put(values, key.strip(), tomllib.loads(f"x = {value}")["x"])
    except tomllib.TOMLDecodeError:
        put(values, key.strip(), value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _problem(item: Any) -> str:
    """One validation error as text: where, what was given, what was expected."""
    where = [str(part) for part in item["loc"]]
    place = ".".join(where) or "top level"
    if item["type"] == "extra_forbidden":
        kinds: dict[str, type[BaseModel]] = {"sweep": SweepSection, "method": MethodSpec}
        known = kinds.get(where[0], SweepSpec) if len(where) > 1 else SweepSpec
        near = difflib.get_close_matches(where[-1], known.model_fields, n=1)
        return f"unknown key {place}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if item["type"] == "missing":
        return f"{place} is missing" + (" (add a [[method]] table)" if place == "method" else "")
    message = item["msg"].removeprefix("Value error, ")
    return message if item["type"] == "value_error" else f"{place} = {str(item.get('input'))[:80]}: {message}"
