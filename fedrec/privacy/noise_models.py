"""How a mechanism is found: one name, one class, registered where it is written.

A mechanism is the stage of a chain that adds noise, with all that follows from where and how it adds it: the releases
that the accountant counts, the sentences of the statement, the adversary, and what an audit looks at. Which one
carries out a plan follows from the plan alone; a combination that no mechanism implements is refused, and is an error
of types before that.

Out of scope: the mechanisms (`fedrec.privacy.mechanisms`), which know the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Never, Protocol

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.core.registry import Registry
from fedrec.privacy._releases import Release
from fedrec.privacy.accounting import Accountant
from fedrec.privacy.settings import OptionValue, Trust, Unit


class NoiseModel(Protocol):
    """What a plan asks of its mechanism."""

    #: Whom it protects, and whom it trusts, as in the plan.
    unit: ClassVar[Unit]
    trust: ClassVar[Trust]
    #: Whether the secret sampling of users may be claimed: whom it protects against does not see who took part.
    claims_sampling: ClassVar[bool]
    #: Which details of a plan it carries out; it refuses the others.
    takes: ClassVar[frozenset[str]]
    #: Which of them it cannot be without.
    needs: ClassVar[frozenset[str]]
    #: Accountants that know its noise.
    accountants: ClassVar[tuple[Accountant, ...]]

    def __init__(self, plan: Any) -> None: ...

    @classmethod
    def planned(cls, options: Mapping[str, OptionValue], fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of the plan that follow from the options of the settings.

        Args:
            options: `privacy.options`.
            fields: of the plan, as far as they are known: all but the noise.

        Raises:
            ConfigError: an unknown option, or a value that it cannot have.
        """

    def problems(self) -> list[str]:
        """What else of the plan does not fit this mechanism, one line each."""

    def noise_std(self, round_: int, l2: float) -> float:
        """Standard deviation of the noise on each value of the released sum.

        Args:
            round_: from 1.
            l2: how far one unit moves the sum, in units of the update.
        """

    def effective_std(self, round_: int, l2: float) -> float:
        """The same of independent noise that disturbs training as much; arguments as of `noise_std`."""

    def releases(self, rounds: int) -> list[Release]:
        """What the first `rounds` rounds release about one unit."""

    def lost_delta(self, rounds: int) -> float:
        """Part of delta that integers take in so many rounds."""


#: Details of a plan that not every mechanism carries out, and what they are called in a message.
DETAILS = {
    "adaptive": "adaptive clipping",
    "distributed": "integers of distributed noise",
    "interaction": "local steps of unit 'interaction'",
    "carried": "sums carried by integers",
    "cycle": "groups of users that take turns",
    "separation": "rounds between which a device keeps out by itself",
}


def _check_mechanism(name: str, made: object) -> None:
    """Raises ConfigError for what is not a class with all that a plan asks for."""
    asked = (*NoiseModel.__annotations__, "problems", "noise_std", "releases", "lost_delta")
    missing = [each for each in asked if not hasattr(made, each)]
    if not isinstance(made, type) or missing:
        raise ConfigError(
            f"privacy.mechanism {name!r} is {made!r:.60}: expected a class with {', '.join(missing) or 'a plan'}; "
            "derive it from fedrec.privacy.mechanism.Mechanism"
        )


#: A plan is all that a mechanism is made of.
MECHANISMS: Registry[type[NoiseModel]] = Registry(
    "mechanisms",
    "privacy.mechanism",
    packages=("fedrec.privacy.mechanisms",),
    by_module=True,
    check=_check_mechanism,
)


def default_mechanism(unit: Unit, trust: Trust) -> str:
    """The name of the mechanism for a unit and a trust model.

    Raises:
        PrivacyRefused: nothing implements the combination.
    """
    match unit:
        case "interaction":
            return "interaction"
        case "user":
            match trust:
                case "central" | "distributed" | "local":
                    return trust
                case _:
                    return _refuse("trust", trust)
        case _:
            return _refuse("unit", unit)


def _refuse(key: str, value: Never) -> Never:
    raise PrivacyRefused(f"privacy.{key} is {value!r}: no mechanism implements it; nothing is released")


def detail_problems(model: NoiseModel, name: str, given: frozenset[str]) -> list[str]:
    """What of a plan's details the mechanism does not carry out, or needs and does not have."""
    whose = f"mechanism {name!r} (unit {model.unit!r}, trust {model.trust!r})"
    return [
        *(f"{DETAILS[each]} are not for {whose}: leave them out" for each in sorted(given - model.takes)),
        *(f"{whose} needs {DETAILS[each]}: plan it again" for each in sorted(model.needs - given)),
    ]
