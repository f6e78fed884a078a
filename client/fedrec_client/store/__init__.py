"""What the SDK keeps on a device, sealed."""

from fedrec_client.store._vault import FileVault, KeychainVault, PassphraseVault, Vault, open_vault
from fedrec_client.store.base import Receipt, Retention, Store
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.store.sqlite import SqliteStore

__all__ = [
    "FileVault",
    "KeychainVault",
    "MemoryStore",
    "PassphraseVault",
    "Receipt",
    "Retention",
    "SqliteStore",
    "Store",
    "Vault",
    "open_vault",
]
