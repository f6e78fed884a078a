"""From a target to a run, its ledger, its statement and its audit, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ask, run, write_config

from fedrec.core.errors import ConfigError
from fedrec_server.operations.deployment import federation_run, run_deployment

Capture = pytest.CaptureFixture[str]
NOISED = ("--set", "privacy.metrics=noised", "--set", "evaluation.held_data=true")
PRIVATE = ("--set", "privacy.unit=user", "--set", "privacy.epsilon=6", "--set", "privacy.force=true")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and a private run of it."""
    folder = tmp_path_factory.mktemp("private")
    config = write_config(folder, "mf", rounds=3)
    out = folder / "run"
    assert run("train", config, *PRIVATE, *NOISED, "--out", out) == 0
    return folder


def test_plan_prints_what_a_target_asks_for(capsys: Capture) -> None:
    asked = "--epsilon 3 --population 100000 --rounds 200 --cohort 1000 --parameters 237184"
    code, document = ask(capsys, "privacy", "plan", *asked.split(" "))
    assert code == 0
    text = json.dumps(document)
    assert "0.70" in text or "0.71" in text
    assert "hard" in text and "without_amplification" in text


def test_plan_refuses_what_cannot_learn_and_names_a_lever(capsys: Capture) -> None:
    asked = "--epsilon 0.1 --population 1000 --rounds 500 --cohort 10 --parameters 1000000"
    code, document = ask(capsys, "privacy", "plan", *asked.split(" "))
    assert code == 13 and "nothing can be learned" in document["error"] and "ratio" in document["error"]


def test_a_run_has_its_statement_and_says_its_epsilon(place: Path, capsys: Capture) -> None:
    statement = json.loads((place / "run" / "privacy.json").read_text())
    assert statement["private"] is True
    assert statement["guarantee"]["epsilon"] <= 6.0
    page = (place / "run" / "privacy.html").read_text()
    assert "What is not covered" in page and 'src="http' not in page
    code, _ = ask(capsys, "compare", place / "run", "--out", place / "compare.html")
    assert code == 0
    assert "epsilon 6 per user" in (place / "compare.html").read_text()


def test_exact_metrics_are_no_setting_any_more(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "popularity")
    code, document = ask(capsys, "train", config, *PRIVATE, "--set", "privacy.metrics=exact")
    assert code == 3 and "privacy.metrics" in document["error"] and "noised" in document["error"]


def test_released_and_held_figures_lie_apart_and_say_what_they_are(place: Path, capsys: Capture) -> None:
    out = place / "run"
    result = json.loads((out / "coordinator" / "result.json").read_text())
    held = json.loads((out / "held_data.json").read_text())
    assert result["test"]["noised"] is True and set(result["test"]["metrics"]) == {"all"}
    assert "not covered by epsilon" in held["note"] and "few" in held["test"]["metrics"]
    # Nothing exact of the evaluation lies where the coordinator or a node wrote.
    for folder in (out / "coordinator", out / "nodes"):
        for path in folder.rglob("*.json*"):
            assert "recommended" not in path.read_text() and "n_users" not in path.read_text()
    assert json.loads((out / "coordinator" / "task.json").read_text())["evaluation"].get("held_data") is None
    page = (out / "report.html").read_text()
    for text in ("not a release, not covered by epsilon", "How settings were chosen is not covered"):
        assert text in page
    code, document = ask(capsys, "evaluate", out)
    assert code == 0 and document["held_data"] == held["test"] and "test" not in document
    code, document = ask(capsys, "compare", out, "--out", place / "both.html")
    assert code == 0 and document["runs"][0]["held_data"]["note"] == held["note"]


def test_a_private_run_is_evaluated_exactly_only_where_its_data_is_held(
    tmp_path: Path, capsys: Capture
) -> None:
    config = write_config(tmp_path, "popularity")
    out = tmp_path / "run"
    assert run("train", config, *PRIVATE, "--out", out, "--no-report") == 0
    assert not (out / "held_data.json").exists()
    code, document = ask(capsys, "evaluate", out)
    assert code == 3 and "evaluation.held_data" in document["error"]


def test_a_deployment_refuses_to_measure_data_that_it_does_not_hold(
    place: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = write_config(tmp_path, "popularity")
    out = tmp_path / "run"
    code, document = ask(capsys, "train", config, *PRIVATE, *NOISED, "--engine", "deployment", "--out", out)
    assert code == 3 and "evaluation.held_data is true: a deployment" in document["error"]
    assert not out.exists()
    for start in (lambda: run_deployment(place / "run", 1), lambda: federation_run(tmp_path, place / "run")):
        with pytest.raises(ConfigError, match="a deployment's data is with its users"):
            start()


def test_metrics_that_stay_on_the_nodes_are_said_to(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "popularity")
    capsys.readouterr()
    assert run("train", config, *PRIVATE, "--out", tmp_path / "run", "--no-report") == 0
    assert "privacy.metrics is 'none'" in " ".join(capsys.readouterr().out.split())


def test_an_account_is_known_by_name_not_by_file(tmp_path: Path, capsys: Capture) -> None:
    books = ("--set", f'privacy.ledger="{tmp_path / "books"}"', *PRIVATE)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        config = write_config(tmp_path / place, "popularity")
        assert run("train", config, *books, "--out", tmp_path / place / "run", "--no-report") == 0
    named = (*books, "--set", "privacy.account=these users")
    assert run("train", config, *named, "--out", tmp_path / "three", "--no-report") == 0
    assert run("train", config, *named, "--out", tmp_path / "four", "--no-report") == 11


def test_a_run_without_privacy_has_a_statement_too(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "popularity")
    assert run("train", config, "--out", tmp_path / "run", "--no-report") == 0
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert statement["private"] is False and statement["guarantee"]["epsilon"] is None


def test_ledger_shows_what_was_spent(place: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "privacy", "ledger", place / "run")
    assert code == 0
    (account,) = document["accounts"]
    assert account["releases"] == 4 and account["epsilon"] <= 6.0
    code, document = ask(capsys, "privacy", "ledger", place)
    assert code == 6 and "holds no ledger" in document["error"]


def test_ledger_that_was_edited_is_not_believed(place: Path, tmp_path: Path, capsys: Capture) -> None:
    source = place / "run" / "coordinator" / "ledger"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    book = tmp_path / "ledger.jsonl"
    book.write_text(book.read_text().replace('"round":3', '"round":2').replace('"round": 3', '"round": 2'))
    code, document = ask(capsys, "privacy", "ledger", tmp_path)
    assert code == 12, document


def test_a_shared_ledger_stops_the_second_run(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "popularity")
    shared = ("--set", f'privacy.ledger="{tmp_path / "books"}"', *PRIVATE)
    assert run("train", config, *shared, "--out", tmp_path / "one", "--no-report") == 0
    code, document = ask(capsys, "train", config, *shared, "--out", tmp_path / "two", "--no-report")
    assert code == 11 and "nothing was released" in document["error"]
    assert not (tmp_path / "two" / "coordinator" / "model.safetensors").exists()


def test_audit_goes_into_the_statement_of_its_own_plan_only(place: Path, capsys: Capture) -> None:
    audit = place / "run" / "audit.json"
    arguments = (place / "mf.toml", *PRIVATE, *NOISED, "--canaries", 100)
    code, found = ask(capsys, "privacy", "audit", *arguments, "--out", audit)
    assert code == 0 and found["audits"][0]["verdict"] in ("consistent", "inconclusive")
    code, document = ask(capsys, "privacy", "statement", place / "run")
    assert code == 0 and document["audit"]["audit"]["canaries"] > 0
    other: dict[str, Any] = json.loads(audit.read_text())
    other["audits"][0]["plan"]["clip_norm"] = 7.0
    audit.write_text(json.dumps(other))
    code, document = ask(capsys, "privacy", "statement", place / "run")
    assert code == 6 and "another plan" in document["error"]


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (["privacy.epsilon=-1"], 3, "privacy.epsilon"),
        (["privacy.delta=0.5"], 13, "less than 1/N"),
        (["privacy.epsilon=500", "privacy.force=false"], 13, "protects no one"),
        (["privacy.population=3"], 13, "not be less"),
        (["federation.clip_norm=1.0"], 3, "drop federation.clip_norm"),
        (["privacy.trust=distributed", "privacy.bits=8"], 13, "privacy.bits"),
        (["privacy.nonsense=1"], 3, "privacy.nonsense"),
    ],
)
def test_settings_whose_guarantee_would_be_false_are_refused(
    place: Path, tmp_path: Path, capsys: Capture, changes: list[str], code: int, says: str
) -> None:
    sets = [part for change in changes for part in ("--set", change)]
    given, document = ask(capsys, "train", place / "mf.toml", *PRIVATE, *sets, "--out", tmp_path / "run")
    assert given == code and says in document["error"], document
    assert not (tmp_path / "run").exists(), "nothing half-written"


def test_tuning_a_private_configuration_is_refused(place: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "tune", place / "mf.toml", *PRIVATE, "--grid", "model.reg=0.0,0.1")
    assert code == 3 and "fedrec privacy sweep" in document["error"]
