"""`fedrec-server model ...` from a finished run to a model that a device serves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_helpers import ask_operator, operate, run, write_config

from fedrec.ranking.model import History
from fedrec.wire.layout import TIMESTAMP
from fedrec.wire.signing import OnlineKeys
from fedrec_client import Client, MemoryStore
from fedrec_server.registry import Registry
from fedrec_simulations.experiments.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, keys and a registry."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREC_PASSPHRASE", "correct horse")
        patch.chdir(folder)
        assert run("train", write_config(folder, "ease"), "--out", "run", "--no-report") == 0
        assert operate("keys", "init", "--population", "films") == 0
    return folder


def test_from_a_run_to_a_device(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    where = ("--population", "films")
    capsys.readouterr()
    code, first = ask_operator(capsys, "model", "publish", "run", *where)
    assert code == 0 and first["version"] == 1 and first["privacy"]["unit"] == "none"
    code, second = ask_operator(capsys, "model", "publish", "run", "--no-int8", *where)
    assert (
        code == 0
        and second["files"]["model.safetensors"]["size"] > first["files"]["model.safetensors"]["size"]
    )
    assert ask_operator(capsys, "model", "promote", "1", *where)[1]["champion"] == 1
    aliases = ask_operator(capsys, "model", "promote", "2", "--alias", "canary", "--traffic", "20", *where)[1]
    assert aliases == {"champion": 1, "canary": 2, "canary_traffic": 20}
    assert ask_operator(capsys, "model", "promote", "2", *where)[1]["champion"] == 2
    assert ask_operator(capsys, "model", "rollback", "1", *where)[1]["champion"] == 1
    listed = ask_operator(capsys, "model", "list", *where)[1]
    assert [each["version"] for each in listed["versions"]] == [1, 2] and listed["aliases"]["champion"] == 1
    shown = ask_operator(capsys, "model", "show", "1", *where)[1]
    assert [entry["what"] for entry in shown["history"]] == ["publish", "promote", "rollback"]
    assert ask_operator(capsys, "model", "verify", *where) == (
        0,
        {"good": True, "versions": {"1": "good", "2": "good"}},
    )
    refreshed = ask_operator(capsys, "model", "refresh", *where)[1]
    assert refreshed["renewed"] == [] and set(refreshed["expires"]) >= {"root", "timestamp"}

    assert ask_operator(capsys, "model", "bundle", "start", *where)[1]["version"] == 1
    with Client.open(
        "device", population="films", trust="models/films/root.json", store=MemoryStore(), start_model="start"
    ) as client:
        assert client.status().model_version == 1 and len(client.recommend(3)) == 3

    package = Registry(made / "models", "films").open(2)
    folder = RunFolder.open(made / "run")
    assert package.items.ids == tuple(folder.catalog.item_ids.tolist())
    assert package.items.popularity.max() > 0
    assert "NO DIFFERENTIAL PRIVACY" in json.dumps(package.privacy).upper()
    history = History.of(package.items, package.items.ids[:3])
    scores = package.model.scores(package.model.fold_in(history))
    np_scores = folder.model["weights"][:3].sum(axis=0)
    assert scores == pytest.approx(np_scores, rel=1e-3, abs=1e-5)

    for view in (["list"], ["show", "1"], ["verify"]):
        assert operate("model", *view, *where) == 0
        assert "Traceback" not in capsys.readouterr().out
    (Registry(Path("models"), "films").path(1) / "privacy.json").write_text("{}")
    code, found = ask_operator(capsys, "model", "verify", *where)
    assert code == 20 and "privacy.json" in found["versions"]["1"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("model", "list", "--population", "strangers"), 20, "no registry"),
        (("model", "show", "77", "--population", "films"), 20, "no model version 77"),
        (("model", "publish", "none", "--population", "films"), 6, "not a run folder"),
        (("model", "rollback", "1", "--population", "films", "--keys", "none"), 6, "no online key"),
        (("keys", "init", "--population", "films"), 6, "not replaced"),
        (("keys", "init", "--population", "A B"), 20, "small letters"),
        (("keys", "init", "--population", "x", "--threshold", "2"), 3, "expected 1 to 1"),
        (("keys", "rotate-online", "--population", "films", "--offline", "none"), 6, "cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    made: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    capsys.readouterr()
    given, document = ask_operator(capsys, *arguments)
    assert given == code and says in document["error"]


def test_offline_keys_need_a_passphrase(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.delenv("FEDREC_PASSPHRASE", raising=False)
    assert ask_operator(capsys, "keys", "init", "--population", "other")[0] == 3
    assert not (made / "keys" / "other").exists()


@pytest.mark.parametrize("seeded", [False, True])
def test_the_manifest_promises_what_the_statement_does(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, seeded: bool
) -> None:
    """What was asked for is not what holds when the noise is known; and the ledger's place is no one's business."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    asked = ["unit=user", "epsilon=6", "force=true", "aggregator=plain", "insecure=true"]
    asked += ["noise_seed=3"] if seeded else [f'ledger="{tmp_path / "books"}"', "account=these users"]
    options = [word for each in asked for word in ("--set", f"privacy.{each}")]
    config = write_config(tmp_path, "mf", rounds=2)
    assert run("train", config, *options, "--out", tmp_path / "run", "--no-report") == 0
    population = "seeded" if seeded else "private"
    where = ("--population", population)
    assert operate("keys", "init", *where) == 0
    code, document = ask_operator(capsys, "model", "publish", tmp_path / "run", *where)
    assert code == 0
    promised, statement = document["privacy"], json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert promised["unit"] == "user" and promised["aggregator"] == "plain"
    for name in ("epsilon", "delta", "rounds_released"):
        assert promised[name] == statement["guarantee"][name]
    assert promised["rounds_released"] == 2
    if seeded:
        assert promised["epsilon"] is None and "NOT PRIVATE" in promised["headline"]
    else:
        assert 0 < promised["epsilon"] <= 6
    published = (Registry(Path("models"), population).path(1) / "privacy.json").read_text()
    assert str(tmp_path) in (tmp_path / "run" / "privacy.json").read_text() or seeded
    assert str(tmp_path) not in published


def test_ceremonies_replace_keys_and_a_cut_off_one_is_completed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    where = ("--population", "films")
    assert operate("keys", "init", *where, "--root-keys", "2", "--threshold", "2") == 0
    old, folder = OnlineKeys.load(Path("keys/films/online")), Path("keys/films")
    capsys.readouterr()

    def in_force() -> bool:
        keyids = Registry(Path("models"), "films").state().root.roles[TIMESTAMP].keyids
        return OnlineKeys.load(folder / "online").of(TIMESTAMP).public_key.keyid in keyids

    assert ask_operator(capsys, "keys", "rotate-online", *where) == (0, {"root": 2})
    assert in_force() and OnlineKeys.load(folder / "online.until-2").of(TIMESTAMP) is not None
    assert old.of(TIMESTAMP).public_key != OnlineKeys.load(folder / "online").of(TIMESTAMP).public_key
    assert ask_operator(capsys, "keys", "renew", *where) == (0, {"root": 3})
    assert ask_operator(capsys, "keys", "rotate-root", *where) == (0, {"root": 4})
    assert len(list((folder / "offline").glob("root*.pem"))) == 1

    # Killed after the new keys were in force and before they took their place on disk.
    with monkeypatch.context() as cut:
        cut.setattr("fedrec_server.operations.key_folder.KeyFolder._take_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            operate("keys", "rotate-online", *where)
    assert not in_force()
    assert ask_operator(capsys, "keys", "rotate-online", *where) == (0, {"root": 5}) and in_force()
    shutil.rmtree(folder / "online")
    assert ask_operator(capsys, "keys", "rotate-online", *where)[0] == 6
    assert ask_operator(capsys, "keys", "rotate-online", *where, "--lost") == (0, {"root": 6}) and in_force()
    assert ask_operator(capsys, "model", "refresh", *where)[0] == 0


def test_a_damaged_version_is_said(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    where = ("--population", "old")
    assert operate("keys", "init", *where) == 0
    for _ in range(2):
        assert operate("model", "publish", "run", *where) == 0
    (Registry(Path("models"), "old").path(1) / "manifest.json").write_bytes(b"x")
    capsys.readouterr()
    code, document = ask_operator(capsys, "model", "list", *where)
    assert code == 0 and [each["version"] for each in document["versions"]] == [2]
    assert "not the one that was signed" in document["damaged"]["1"]
