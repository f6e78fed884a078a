"""The registry of published models: plain files, versions that only grow, aliases that say which are in use."""

from fedrec_server.registry.aliases import ALL_TRAFFIC, Aliases
from fedrec_server.registry.registry import Registry

__all__ = ["ALL_TRAFFIC", "Aliases", "Registry"]
