"""Keys of populations as they are stored: KEYS/<population>/offline and KEYS/<population>/online.

The offline folder is meant to be moved to a machine that is not on the network; a ceremony is told where it is.
A ceremony that is killed leaves either the old or the new keys in force, and the next one finds out which.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fedrec.core.errors import FedrecError, RegistryError, RunError
from fedrec.wire.layout import ROOT, TIMESTAMP
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_server.registry import Registry


class KeyFolder:
    """Keys of one population.

    Args:
        keys: folder of all populations.
        population: whose.
        offline: where the offline keys are; None: beside the online ones.
    """

    def __init__(self, keys: Path, population: str, offline: Path | None = None) -> None:
        self.online_folder = keys / population / "online"
        self.offline_folder = offline or keys / population / "offline"

    def online(self) -> OnlineKeys:
        """Those in force.

        Raises:
            RunError: there are none, or they cannot be read.
        """
        return OnlineKeys.load(self.online_folder)

    def offline(self, passphrase: str) -> OfflineKeys:
        """Those in force.

        Raises:
            RunError: there are none, they cannot be read, or the passphrase is wrong.
        """
        return OfflineKeys.load(self.offline_folder, passphrase)

    def create(self, passphrase: str, root_keys: int) -> tuple[OfflineKeys, OnlineKeys]:
        """Fresh ones, written.

        Raises:
            RunError: there are some already, or they cannot be written.
        """
        offline, online = OfflineKeys.generate(root_keys), OnlineKeys.generate()
        made = [each for each in (self.offline_folder, self.online_folder) if not each.exists()]
        try:
            offline.save(self.offline_folder, passphrase)
            online.save(self.online_folder)
        except (FedrecError, OSError):
            self.remove(made)
            raise
        return offline, online

    def remove(self, folders: Sequence[Path]) -> None:
        """Take away keys that have signed nothing: what they were made for could not be written."""
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def replace_online(self, registry: Registry, passphrase: str, *, lost: bool) -> int:
        """Fresh online keys in the place of those in force; the version of the new root metadata.

        Args:
            registry: of the population.
            passphrase: of the offline keys.
            lost: those in force are not here any more.

        Raises:
            RunError, RegistryError, BadSignature: see `Registry.replace_keys`; the old ones stay in force.
        """
        offline = self.offline(passphrase)

        def ceremony(folder: Path) -> int:
            online = OnlineKeys.generate()
            online.save(folder)
            before = None if lost else self.online()
            return registry.replace_keys((offline, before), (offline, online))

        def in_force(folder: Path) -> bool:
            keyid = OnlineKeys.load(folder).of(TIMESTAMP).public_key.keyid
            return keyid in registry.state().root.roles[TIMESTAMP].keyids

        return self._replaced(self.online_folder, registry, in_force, ceremony)

    def replace_offline(self, registry: Registry, passphrase: str, *, root_keys: int, threshold: int) -> int:
        """Fresh offline keys in the place of those in force; the version of the new root metadata.

        Raises:
            RunError, RegistryError, BadSignature: see `Registry.replace_keys`; the old ones stay in force.
        """
        online = self.online()

        def ceremony(folder: Path) -> int:
            offline = OfflineKeys.generate(root_keys)
            offline.save(folder, passphrase)
            before = (self.offline(passphrase), online)
            return registry.replace_keys(before, (offline, online), threshold=threshold)

        def in_force(folder: Path) -> bool:
            keyids = {signer.public_key.keyid for signer in OfflineKeys.load(folder, passphrase).root}
            return keyids == set(registry.state().root.roles[ROOT].keyids)

        return self._replaced(self.offline_folder, registry, in_force, ceremony)

    def _replaced(
        self,
        folder: Path,
        registry: Registry,
        in_force: Callable[[Path], bool],
        ceremony: Callable[[Path], int],
    ) -> int:
        """Carry out a ceremony with new keys beside the old ones, then let them take their place."""
        beside = folder.with_name(f"{folder.name}.next")
        try:
            if beside.exists():
                if self._is(in_force, beside):  # an earlier ceremony was cut off after it counted
                    return self._take_place(folder, beside, registry)
                shutil.rmtree(beside)
            try:
                ceremony(beside)
            except (RunError, RegistryError):
                if not self._is(in_force, beside):
                    shutil.rmtree(beside, ignore_errors=True)
                raise
            return self._take_place(folder, beside, registry)
        except OSError as error:
            raise RunError(
                f"keys {folder} cannot be replaced ({error.strerror}): run the command again"
            ) from error

    @staticmethod
    def _is(in_force: Callable[[Path], bool], folder: Path) -> bool:
        try:
            return in_force(folder)
        except RunError:  # cut off while it was written
            return False

    @staticmethod
    def _take_place(folder: Path, beside: Path, registry: Registry) -> int:
        """The old ones are kept under the version of the root metadata that ended them."""
        version = registry.state().root.version
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.until-{version}"))
        beside.rename(folder)
        return version
