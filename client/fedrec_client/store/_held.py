"""What a vault keeps of a store: its name, its key, and the number of its last change that counts.

A deletion gives the store another key. For the moment between, the vault holds both, the newer one last: whichever
opens the store's root is the key, and the other goes. The number is that of the root (see `root`): a store with a
lower one is an older copy.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Self

from fedrec.core.errors import StoreLocked
from fedrec_client.store._sealing import KEY_BYTES

ID_BYTES = 16


@dataclass(frozen=True)
class Held:
    """See the module.

    Attributes:
        store: [16] random, never changes; the database names it too.
        keys: [32] each: the data key, or the one before a change of keys and the one after it.
        counter: of the newest root that the vault was told of; 0: the store was never made.
    """

    store: bytes
    keys: tuple[bytes, ...]
    counter: int = 0

    @classmethod
    def fresh(cls) -> Self:
        """Of a new store."""
        return cls(secrets.token_bytes(ID_BYTES), (secrets.token_bytes(KEY_BYTES),))

    def with_next(self, key: bytes) -> Self:
        """On the way to another key."""
        return replace(self, keys=(self.keys[0], key))

    def settled(self, key: bytes, counter: int) -> Self:
        """With one key."""
        return replace(self, keys=(key,), counter=counter)

    def to_bytes(self) -> bytes:
        """JSON."""
        plain = {"store": self.store.hex(), "keys": [key.hex() for key in self.keys], "counter": self.counter}
        return json.dumps(plain).encode()

    @classmethod
    def parse(cls, text: bytes | str, where: str) -> Self:
        """What `to_bytes` wrote.

        Raises:
            StoreLocked: it is something else.
        """
        try:
            plain = json.loads(text)
            made = cls(
                bytes.fromhex(plain["store"]),
                tuple(bytes.fromhex(key) for key in plain["keys"]),
                plain["counter"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreLocked(
                f"{where} does not hold the key of a store: restore it from a backup of the whole folder"
            ) from error
        sizes = {len(key) for key in made.keys}
        if len(made.store) != ID_BYTES or sizes != {KEY_BYTES} or len(made.keys) > 2:
            raise StoreLocked(f"{where}: expected one or two keys of {KEY_BYTES} bytes; restore it")
        if type(made.counter) is not int or made.counter < 0:
            raise StoreLocked(f"{where}: counter {made.counter!r:.20} is not one; restore it")
        return made
