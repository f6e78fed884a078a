"""The registry of published models: plain files, signed metadata that says which are in use."""

from fedrec.wire.layout import ALL_TRAFFIC
from fedrec_server.registry._aliases import Aliases
from fedrec_server.registry._bundle import write_bundle
from fedrec_server.registry._public_files import PublicFiles
from fedrec_server.registry.registry import Registry

__all__ = ["ALL_TRAFFIC", "Aliases", "PublicFiles", "Registry", "write_bundle"]
