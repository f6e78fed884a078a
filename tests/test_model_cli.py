"""`fedrec model ...` from a finished run to a model that a device serves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cli_helpers import ask, run, write_config

from fedrec.ranking.serving import History
from fedrec.wire.package import open_package
from fedrec.wire.signing import read_public
from fedrec_simulations.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a root key, a round key and a registry."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREC_PASSPHRASE", "correct horse")
        patch.chdir(folder)
        assert run("train", write_config(folder, "ease"), "--out", "run", "--no-report") == 0
        assert run("model", "root", "root.pem") == 0
        assert run("model", "delegate", "round.pem", "--root", "root.pem", "--population", "films") == 0
    return folder


def test_from_a_run_to_a_device(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    where = ("--population", "films")
    capsys.readouterr()
    code, first = ask(capsys, "model", "publish", "run", "--key", "round.pem", *where)
    assert code == 0 and first["version"] == 1 and first["privacy"]["unit"] == "none"
    code, second = ask(capsys, "model", "publish", "run", "--key", "round.pem", "--no-int8", *where)
    assert (
        code == 0
        and second["files"]["model.safetensors"]["size"] > first["files"]["model.safetensors"]["size"]
    )
    assert ask(capsys, "model", "promote", "1", *where)[1]["champion"] == 1
    aliases = ask(capsys, "model", "promote", "2", "--alias", "canary", "--traffic", "20", *where)[1]
    assert aliases == {"champion": 1, "canary": 2, "canary_traffic": 20}
    assert ask(capsys, "model", "rollback", "1", "--key", "round.pem", *where)[1]["restores"] == 1
    assert ask(capsys, "model", "sign", "2", "--key", "round.pem", "--days", "3", *where)[1]["version"] == 4
    listed = ask(capsys, "model", "list", *where)[1]
    assert [each["version"] for each in listed["versions"]] == [1, 2, 3, 4] and listed["aliases"][
        "champion"
    ] == 3
    shown = ask(capsys, "model", "show", "3", *where)[1]
    assert [entry["what"] for entry in shown["history"]] == ["publish", "rollback"]
    assert ask(capsys, "model", "verify", *where) == (
        0,
        {"good": True, "versions": dict.fromkeys("1234", "good")},
    )

    package = open_package(
        made / "models" / "films" / "2", read_public(made / "root.pub"), "films", time.time()
    )
    folder = RunFolder.open(made / "run")
    assert package.items.ids == tuple(folder.catalog.item_ids.tolist())
    assert package.items.popularity.max() > 0
    assert "NO DIFFERENTIAL PRIVACY" in json.dumps(package.privacy).upper()
    history = History.of(package.items, package.items.ids[:3])
    scores = package.model.scores(package.model.fold_in(history))
    np_scores = folder.model["weights"][:3].sum(axis=0)
    assert scores == pytest.approx(np_scores, rel=1e-3, abs=1e-5)

    for view in (["list"], ["show", "1"], ["verify"]):
        assert run("model", *view, *where) == 0
        assert "Traceback" not in capsys.readouterr().out
    (made / "models" / "films" / "1" / "privacy.json").write_text("{}")
    code, found = ask(capsys, "model", "verify", *where)
    assert code == 20 and "privacy.json" in found["versions"]["1"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("model", "list", "--population", "nobody"), 20, "no registry"),
        (("model", "show", "77", "--population", "films"), 20, "no model version 77"),
        (("model", "publish", "none", "--population", "films", "--key", "round.pem"), 6, "no run folder"),
        (("model", "sign", "1", "--population", "films", "--key", "none.pem"), 6, "cannot be read"),
        (("model", "root", "root.pem"), 6, "not replaced"),
        (("model", "delegate", "x.pem", "--root", "root.pem", "--population", "A B"), 20, "small letters"),
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
    given, document = ask(capsys, *arguments)
    assert given == code and says in document["error"]


def test_a_root_key_needs_a_passphrase(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.delenv("FEDREC_PASSPHRASE", raising=False)
    assert ask(capsys, "model", "root", "other.pem")[0] == 3
    assert not (made / "other.pem").exists()


@pytest.mark.parametrize("seeded", [False, True])
def test_the_manifest_promises_what_the_statement_does(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, seeded: bool
) -> None:
    """What was asked for is not what holds when the noise is known; and the ledger's place is nobody's business."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    asked = ["unit=user", "epsilon=6", "force=true", "aggregator=plain", "insecure=true"]
    asked += ["noise_seed=3"] if seeded else [f'ledger="{tmp_path / "books"}"', "account=these people"]
    options = [word for each in asked for word in ("--set", f"privacy.{each}")]
    config = write_config(tmp_path, "mf", rounds=2)
    assert run("train", config, *options, "--out", tmp_path / "run", "--no-report") == 0
    population = "seeded" if seeded else "private"
    key = tmp_path / "round.pem"
    assert run("model", "delegate", key, "--root", "root.pem", "--population", population) == 0
    where = ("--population", population, "--key", key)
    code, document = ask(capsys, "model", "publish", tmp_path / "run", *where)
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
    published = (made / "models" / population / "1" / "privacy.json").read_text()
    assert str(tmp_path) in (tmp_path / "run" / "privacy.json").read_text() or seeded
    assert str(tmp_path) not in published


def test_a_root_key_never_takes_the_place_of_another_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    code, document = ask(capsys, "model", "root", "root.pub")
    assert code == 6 and "not replaced" in document["error"] and not Path("root.pub").exists()
    Path("other.pub").write_text("pinned in an app")
    assert ask(capsys, "model", "root", "other.pem")[0] == 6
    assert Path("other.pub").read_text() == "pinned in an app" and not Path("other.pem").exists()
    assert run("model", "root", "root.pem") == 0
    for name in ("round.delegation", "round.pem"):
        Path("round.delegation").write_text("of another key")
        code, document = ask(capsys, "model", "delegate", name, "--root", "root.pem", "--population", "films")
        assert code == 6 and "not replaced" in document["error"]
        assert Path("round.delegation").read_text() == "of another key" and not Path("round.pem").exists()


def test_what_has_ended_or_is_damaged_is_said(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("FEDREC_PASSPHRASE", "correct horse")
    key = tmp_path / "round.pem"
    where = ("--population", "old")
    assert run("model", "delegate", key, "--root", "root.pem", "--days", "30", *where) == 0
    for days in ("10", "20", "40"):
        assert run("model", "publish", "run", "--key", key, "--days", days, *where) == 0
        said = capsys.readouterr()
        assert ("the round key ends on" in said.err) == (days == "40")
    now = time.time
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now() + 15 * 86_400)
        code, document = ask(capsys, "model", "promote", "1", *where)
        assert code == 20 and "fedrec model sign 1" in document["error"]
        assert ask(capsys, "model", "promote", "2", *where)[0] == 0
    (made / "models" / "old" / "1" / "manifest.signed").write_bytes(b"x")
    code, document = ask(capsys, "model", "list", *where)
    assert code == 0 and [each["version"] for each in document["versions"]] == [2, 3]
    assert "no signed document" in document["damaged"]["1"]
