"""Recommenders by name: each registers itself with its configuration, and a configuration names its recommender.

    class EaseConfig(RecommenderConfig):
        kind: str = "ease"

    @recommender(EaseConfig)
    class Ease(Recommender): ...

fedrec's own are the modules of the families below, each called as its kind; a kind is found without importing the
others. How others come: `fedrec.core.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BeforeValidator, GetJsonSchemaHandler, SerializeAsAny, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from fedrec.core.errors import ConfigError
from fedrec.core.recommender import Recommender, RecommenderConfig
from fedrec.core.registry import OWN_CONFIGURATION, Registry, paths_allowed

R = TypeVar("R", bound=Recommender)

FAMILIES = tuple(
    f"{__package__}.{family}" for family in ("closed_form", "collaborative", "ctr", "private", "sequence")
)


class Wrapper(Protocol):
    """Lays something around a recommender, for the settings of the key that is named like the wrapper."""

    def __call__(self, base: Any, settings: Any, /) -> Recommender:
        """The recommender with it."""


def _check(name: str, made: object) -> None:
    if not (isinstance(made, type) and issubclass(made, Recommender) and hasattr(made, "config_class")):
        raise ConfigError(
            f"model.kind {name!r} is {made!r}: expected a subclass of Recommender with the decorator "
            "@recommender(its configuration class)"
        )


RECOMMENDERS: Registry[type[Recommender]] = Registry(
    "recommenders", "model.kind", FAMILIES, by_module=True, check=_check
)
WRAPPERS: Registry[Wrapper] = Registry("wrappers", "model", (f"{__package__}.wrappers",), by_module=True)


def recommender(config: type[RecommenderConfig]) -> Callable[[type[R]], type[R]]:
    """Decorator: registers the recommender of a configuration under the name that the configuration gives as `kind`.

    Raises:
        ConfigError: the configuration gives no name, or another recommender has it.
    """
    kind = config.model_fields["kind"].default

    def add(made: type[R]) -> type[R]:
        if not kind:
            raise ConfigError(f'{config.__name__} has no name: give it one by `kind: str = "..."`')
        made.kind, made.config_class = kind, config
        return RECOMMENDERS.register(kind)(made)

    return add


def parse(values: Mapping[str, Any], *, paths: bool = False) -> RecommenderConfig:
    """A configuration from plain values.

    Args:
        values: with "kind".
        paths: whether kinds that are import paths are followed; only where the values are the caller's own.

    Raises:
        ConfigError: an unknown kind, or none.
        ValidationError: pydantic's, with all problems of the values.
    """
    kind = values.get("kind")
    if not isinstance(kind, str):
        raise ConfigError(f"model.kind is {kind!r}: expected the name of a recommender")
    found = RECOMMENDERS.get(kind, paths=paths)
    return found.config_class.model_validate(dict(values), context=OWN_CONFIGURATION if paths else None)


def plain(config: RecommenderConfig) -> Recommender:
    """The recommender of a configuration, with nothing laid around it."""
    return RECOMMENDERS.get(config.kind)(config)


def build(config: RecommenderConfig) -> Recommender:
    """The recommender of a configuration, with what its configuration lays around it.

    Raises:
        ConfigError: a model that does not support what is laid around it.
    """
    model = plain(config)
    around = [name for name in WRAPPERS.names() if getattr(config, name, None) is not None]
    if len(around) > 1:
        names = " and ".join(f"model.{name}" for name in around)
        raise ConfigError(f"{names} exclude each other: give one of them")
    return WRAPPERS.get(around[0])(model, getattr(config, around[0])) if around else model


class Kinds:
    """Annotation of a field that holds the configuration of any recommender that is accepted.

    Args:
        accepts: which recommenders may be named, and how messages call them; None: all.
    """

    def __init__(self, accepts: tuple[Callable[[type[Recommender]], bool], str] | None = None) -> None:
        self._accepts = accepts

    def accepted(self) -> dict[str, type[Recommender]]:
        """The recommenders that may be named."""
        found = {name: RECOMMENDERS.get(name) for name in RECOMMENDERS.names()}
        return {name: made for name, made in found.items() if self._accepts is None or self._accepts[0](made)}

    def opened(self, values: Any, info: ValidationInfo) -> Any:
        """A configuration from plain values, every problem at its key."""
        if isinstance(values, RecommenderConfig):
            kind = values.kind
        elif isinstance(values, Mapping) and isinstance(values.get("kind"), str):
            kind = values["kind"]
        else:
            raise PydanticCustomError(
                "missing_kind", 'kind is missing: expected the name of a recommender, kind = "..."'
            )
        try:
            found = RECOMMENDERS.get(kind, paths=paths_allowed(info.context))
        except ConfigError as error:
            raise PydanticCustomError("unknown_kind", "{text}", {"text": str(error)}) from error
        if self._accepts is not None and not self._accepts[0](found):
            text = f"{kind!r} is not {self._accepts[1]}: expected one of {', '.join(self.accepted())}"
            raise PydanticCustomError("refused_kind", "{text}", {"text": text})
        if isinstance(values, RecommenderConfig):
            return values
        return found.config_class.model_validate(dict(values), context=info.context)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        each = []
        for name, made in self.accepted().items():
            one = handler(made.config_class.__pydantic_core_schema__)
            handler.resolve_ref_schema(one)["properties"]["kind"]["const"] = name
            each.append(one)
        return {"oneOf": each, "discriminator": {"propertyName": "kind"}}


_ANY = Kinds()
#: Type of a field with the configuration of any recommender.
ModelConfig = Annotated[SerializeAsAny[RecommenderConfig], BeforeValidator(_ANY.opened), _ANY]

_CLUSTERED = Kinds((lambda made: made.clusterable, "a recommender of which one can be kept for each cluster"))
#: Type of a field with the configuration of a recommender of which one is kept for each cluster of users.
ClusterableConfig = Annotated[
    SerializeAsAny[RecommenderConfig], BeforeValidator(_CLUSTERED.opened), _CLUSTERED
]
