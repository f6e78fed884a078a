"""Where the data key lies, and that no one gets it who should not."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec.core.errors import StoreError, StoreLocked
from fedrec_client.store import FileVault, KeychainVault, PassphraseVault, SqliteStore, open_vault
from fedrec_client.store import _vault as vault_module
from fedrec_client.store.events import Event, EventType


class Ring:
    """A keychain in memory."""

    def __init__(self) -> None:
        self.secrets: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.secrets.get((service, name))

    def set_password(self, service: str, name: str, secret: str) -> None:
        self.secrets[service, name] = secret

    def delete_password(self, service: str, name: str) -> None:
        del self.secrets[service, name]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id as in real use, but small."""
    monkeypatch.setattr(vault_module, "MEMORY_KIB", 64)
    monkeypatch.setattr(vault_module, "system_keychain", lambda: None)


def test_the_best_that_the_device_allows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Ring()
    assert isinstance(open_vault(tmp_path / "a", keychain=ring), KeychainVault)
    assert isinstance(open_vault(tmp_path / "b", "a passphrase", ring), PassphraseVault)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_vault(tmp_path / "c"), FileVault)
    assert "whoever can read the files" in caplog.text


def test_what_a_store_began_with_stays(tmp_path: Path) -> None:
    ring = Ring()
    for name, passphrase, chain in (("a", None, ring), ("b", "long enough", None), ("c", None, None)):
        key = open_vault(tmp_path / name, passphrase, chain).key()
        assert open_vault(tmp_path / name, passphrase, chain).key() == key and len(key) == 32


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path) -> None:
    vault = open_vault(tmp_path, "correct horse")
    SqliteStore.open(tmp_path, vault).close()
    before = (tmp_path / "events.db").read_bytes()
    with pytest.raises(StoreLocked, match="passphrase is wrong"):
        SqliteStore.open(tmp_path, open_vault(tmp_path, "battery staple"))
    with pytest.raises(StoreLocked, match="give passphrase="):
        open_vault(tmp_path)
    assert (tmp_path / "events.db").read_bytes() == before
    with pytest.raises(StoreLocked, match="longer"):
        open_vault(tmp_path / "new", "short")


def test_another_passphrase_leaves_the_rows_alone(tmp_path: Path) -> None:
    vault = PassphraseVault.create(tmp_path, "the first one")
    key = vault.key()
    vault.change("the second one")
    assert vault.key() == key == PassphraseVault(tmp_path, "the second one").key()
    with pytest.raises(StoreLocked):
        PassphraseVault(tmp_path, "the first one").key()
    with pytest.raises(StoreLocked):
        PassphraseVault(tmp_path, "the first one").change("another one")


def test_the_key_itself_is_written_nowhere_under_a_passphrase(tmp_path: Path) -> None:
    vault = PassphraseVault.create(tmp_path, "correct horse")
    store = SqliteStore.open(tmp_path, vault)
    store.add_event(Event(EventType.PLAY, "item", 0.0))
    store.delete_events()
    store.close()
    key = vault.key()
    for path in tmp_path.iterdir():
        assert key not in path.read_bytes() and key.hex().encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "change", [{"wrapped": "00"}, {"salt": "x"}, {"memory_kib": 1 << 30}, {"passes": "many"}]
)
def test_a_broken_description_is_one_clear_line(tmp_path: Path, change: dict[str, object]) -> None:
    PassphraseVault.create(tmp_path, "correct horse")
    plain = json.loads((tmp_path / "vault.json").read_text())
    (tmp_path / "vault.json").write_text(json.dumps(plain | change))
    with pytest.raises(StoreLocked) as caught:
        open_vault(tmp_path, "correct horse").key()
    assert "\n" not in str(caught.value)


def test_a_key_that_is_given_up_is_written_over(tmp_path: Path) -> None:
    for name, passphrase in (("b", "long enough"), ("c", None)):
        vault = open_vault(tmp_path / name, passphrase)
        path = tmp_path / name / ("vault.json" if passphrase else "store.key")
        with path.open("rb") as before:
            held = vault.read()
            vault.write(held.settled(bytes(32), 7))
            assert held.keys[0].hex() not in before.read().decode("latin-1")
        assert open_vault(tmp_path / name, passphrase).read() == held.settled(bytes(32), 7)


def test_a_counter_costs_no_argon2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = open_vault(tmp_path, "long enough")
    held = vault.read()

    def again(*_: object) -> bytes:
        raise AssertionError("stretched again")

    with monkeypatch.context() as patch:
        patch.setattr(vault_module, "_stretch", again)
        vault.write(held.settled(held.keys[0], 3))
        assert vault.read().counter == 3
    assert open_vault(tmp_path, "long enough").read().counter == 3


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    vault = FileVault.create(tmp_path)
    (tmp_path / "store.key").chmod(0o644)
    with pytest.raises(StoreLocked, match="chmod 600"):
        vault.key()
    (tmp_path / "store.key").chmod(0o600)
    (tmp_path / "store.key").write_bytes(b"short")
    with pytest.raises(StoreLocked, match="does not hold the key"):
        vault.key()


def test_a_keychain_that_is_gone_is_said(tmp_path: Path) -> None:
    open_vault(tmp_path, keychain=Ring())
    with pytest.raises(StoreLocked, match="keychain"):
        open_vault(tmp_path)
    with pytest.raises(StoreLocked, match="no key for this store"):
        open_vault(tmp_path, keychain=Ring()).key()


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="writable"):
        open_vault(tmp_path / "file" / "x")


def test_status_says_how_the_key_is_kept(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, open_vault(tmp_path))
    store.add_event(Event(EventType.PLAY, "item", 0.0))
    told = store.describe()
    assert (
        str(told["key"]).startswith("file: whoever can read") and told["events"] == 1 and told["records"] == 0
    )
    store.close()


def test_the_store_needs_neither_torch_nor_flwr() -> None:
    code = (
        "import sys, fedrec_client.store\n"
        "print([name for name in ('torch', 'flwr', 'grpc', 'scipy', 'pydantic') if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_several_stores_of_one_process_are_unlocked_at_once(tmp_path: Path) -> None:
    """In a process of its own: stores that wait for each other for good could not be ended here."""
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from fedrec_client.store import SqliteStore\n"
        "def unlock(number):\n"
        "    SqliteStore.open(Path(sys.argv[1]) / str(number), passphrase='open sesame').close()\n"
        "threads = [threading.Thread(target=unlock, args=(number,)) for number in range(6)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=300, check=True)
