"""Every command answers with one JSON document or one line of error, and the documented exit code."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import ask, ask_operator, operate, run, write_config, write_table
from conftest import planted

from fedrec.core import errors
from fedrec_server.cli.commands import PROGRAM as OPERATOR
from fedrec_server.cli.lazy import Group
from fedrec_server.operations.checks import packages
from fedrec_simulations.cli.commands import PROGRAM as RESEARCHER
from fedrec_simulations.cli.toml_text import to_toml
from fedrec_simulations.experiments.config import load_config
from fedrec_simulations.experiments.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, `mf` (three nodes) and `ease`."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("mf", "ease"):
        config = write_config(folder, kind)
        assert run("train", config, "--set", f'name="{kind}-run"', "--out", folder / kind) == 0
    return folder


def test_train_writes_a_run_with_report(runs: Path, capsys: Capture) -> None:
    folder = RunFolder.open(runs / "mf")
    assert folder.result["test"]["metrics"]["all"]["full/ndcg@10"]["value"] > 0
    html = (runs / "mf" / "report.html").read_text()
    assert "NO DIFFERENTIAL PRIVACY" in html and "NO SECURE AGGREGATION" in html
    assert json.loads((runs / "mf" / "command.json").read_text())["engine"] == "in-process"


def test_train_says_privacy_warnings_on_stderr(tmp_path: Path, capsys: Capture) -> None:
    code = run("train", write_config(tmp_path, "popularity"), "--out", tmp_path / "run", "--no-report")
    captured = capsys.readouterr()
    assert code == 0
    assert "NO DIFFERENTIAL PRIVACY" in captured.err and "NO DIFFERENTIAL PRIVACY" not in captured.out
    assert not (tmp_path / "run" / "report.html").exists()


def test_train_json(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "item_knn")
    code, document = ask(capsys, "train", config, "--out", tmp_path / "run")
    assert code == 0 and document["finished"] and document["rounds"] == 1
    assert document["test"]["n_users"]["all"] == 60
    assert any("NO DIFFERENTIAL PRIVACY" in line for line in document["privacy_warnings"])


def test_overrides_reach_the_run(runs: Path) -> None:
    assert RunFolder.open(runs / "ease").config.name == "ease-run"


def test_evaluate_repeats_the_result_through_the_nodes(runs: Path, capsys: Capture) -> None:
    for kind in ("mf", "ease"):
        code, document = ask(capsys, "evaluate", runs / kind)
        assert code == 0
        assert document["test"] == RunFolder.open(runs / kind).result["test"]


def test_evaluate_with_baseline_keeps_it_beside_the_run(runs: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "evaluate", runs / "ease", "--baseline")
    assert code == 0
    federated = document["test"]["metrics"]["all"]["full/ndcg@10"]["value"]
    assert document["baseline"]["test"]["metrics"]["all"]["full/ndcg@10"]["value"] == pytest.approx(
        federated, abs=1e-6
    )
    assert (runs / "ease" / "baseline.json").exists()


def test_the_baseline_of_a_model_of_features_sees_them_too(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.csv").write_text(
        "item,title,categories\n" + "".join(f"i{k:03d},Song {k},group {k % 4}\n" for k in range(40))
    )
    overrides = {
        "data.items": json.dumps(str(tmp_path / "items.csv")),
        "data.features": '{ parts = ["categories"] }',
        "model": '{ kind = "content", features = 4 }',
    }
    config = write_config(tmp_path, "ease")
    chosen = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    assert run("train", config, "--out", tmp_path / "run", "--no-report", *chosen) == 0
    code, document = ask(capsys, "evaluate", tmp_path / "run", "--baseline")
    assert code == 0
    federated, baseline = (
        part["metrics"]["all"] for part in (document["test"], document["baseline"]["test"])
    )
    assert baseline["full/ndcg@10"]["value"] == pytest.approx(federated["full/ndcg@10"]["value"], abs=1e-6)


@pytest.mark.parametrize("kind", ["mf", "ease"])
def test_rankings_agree_with_the_evaluate(runs: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    """HR@10 counted from the file by hand is what the evaluation says."""
    code, document = ask(capsys, "evaluate", runs / kind, "--rankings", tmp_path / "r.csv", "--top", 10)
    assert code == 0 and document["rankings"]["users"] == 60
    lists = _read_rankings(tmp_path / "r.csv")
    split = RunFolder.open(runs / kind).split
    assert split.test is not None
    hits = [
        str(split.test.item_ids[split.test.history(u)[0]]) in lists[str(user)]
        for u, user in enumerate(split.test.user_ids)
    ]
    # The evaluator lets ties go against us; the file must choose an order.
    expected = document["test"]["metrics"]["all"]["full/hr@10"]["value"]
    assert np.mean(hits) == pytest.approx(expected, abs=0.02)


def test_rankings_of_all_unseen_items(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "evaluate", runs / "mf", "--rankings", tmp_path / "all.csv", "--top", "all")
    lists = _read_rankings(tmp_path / "all.csv")
    history = RunFolder.open(runs / "mf").split.history("refit")
    assert code == 0 and document["rankings"]["rows"] == sum(map(len, lists.values()))
    for u, user in enumerate(history.user_ids):
        seen = {str(history.item_ids[item]) for item in history.history(u)}
        assert set(lists[str(user)]) == set(map(str, history.item_ids)) - seen


def test_ids_that_need_quotes_survive(tmp_path: Path, capsys: Capture) -> None:
    rows = [
        (f'"user, {u}"', f'"item ""{i}"""', 10 * u + k)
        for u in range(8)
        for k, i in enumerate((u % 3, 3, 4, 5))
    ]
    write_table(tmp_path / "odd.csv", rows)
    config = write_config(tmp_path, "popularity")
    assert run("train", config, "--train", tmp_path / "odd.csv", "--out", tmp_path / "run") == 0
    assert run("evaluate", tmp_path / "run", "--rankings", tmp_path / "r.csv") == 0
    lists = _read_rankings(tmp_path / "r.csv")
    assert len(lists) == 8 and 'item "0"' in lists["user, 1"]


def test_prepared_splits_for_outsiders(tmp_path: Path, capsys: Capture) -> None:
    data = planted(40, 30)
    lines = [f"{data.user_ids[u]},{data.item_ids[i]}\n" for u, i in zip(data.user, data.item, strict=True)]
    (tmp_path / "train.csv").write_text("user,item\n" + "".join(lines[::2]))
    (tmp_path / "val.csv").write_text("user,item\n" + "".join(lines[1::4]))
    (tmp_path / "items.csv").write_text("item\nbrand-new\n" + "".join(f"{i}\n" for i in data.item_ids))
    config, out = write_config(tmp_path, "mf"), tmp_path / "run"
    files = (
        "--train",
        tmp_path / "train.csv",
        "--validation",
        tmp_path / "val.csv",
        "--items",
        tmp_path / "items.csv",
    )
    capsys.readouterr()
    assert run("train", config, *files, "--out", out) == 0
    assert "--rankings" in capsys.readouterr().out
    assert RunFolder.open(out).result["test"] is None
    code, document = ask(capsys, "evaluate", out, "--rankings", tmp_path / "r.csv", "--top", "all")
    assert code == 0 and "test" not in document
    lists = _read_rankings(tmp_path / "r.csv")
    assert all("brand-new" in ranked for ranked in lists.values())
    code, document = ask(capsys, "evaluate", out)
    assert code == 4 and "--rankings" in document["error"]


def test_recommend_shows_latest_and_unseen(runs: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "recommend", runs / "mf", "--user", "u7", "--n", 5)
    history = RunFolder.open(runs / "mf").split.history("refit")
    seen = [str(history.item_ids[i]) for i in history.history(history.user_ids.tolist().index("u7"))]
    assert code == 0 and len(document["recommendations"]) == 5
    assert [line["item"] for line in document["latest"]] == seen[::-1][:5]
    assert not {line["item"] for line in document["recommendations"]} & set(seen)


def test_compare_writes_a_page(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    code, document = ask(capsys, "compare", runs / "mf", runs / "ease", "--out", tmp_path / "c.html")
    assert code == 0 and document["comparable"] and len(document["runs"]) == 2
    assert "ease" in (tmp_path / "c.html").read_text()


def test_compare_says_when_runs_do_not_compare(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "ease")
    assert run("train", config, "--set", "data.core=7", "--out", tmp_path / "run") == 0
    code, document = ask(capsys, "compare", runs / "ease", tmp_path / "run", "--out", tmp_path / "c.html")
    assert code == 0 and not document["comparable"]
    assert "do not compare" in (tmp_path / "c.html").read_text()


def test_config_show_says_where_values_come_from(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "ease")
    assert run("config", "show", config, "--set", "model.reg=7") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^reg = 7.0  # --set$", shown, re.M)
    assert re.search(r"^seed = 0  # default$", shown, re.M)
    assert re.search(r"^rounds = 4$", shown, re.M)
    assert tomllib.loads(shown)["model"]["reg"] == 7
    code, document = ask(capsys, "config", "show", config)
    assert code == 0 and document["config"]["model"]["kind"] == "ease"


def test_config_schema_is_json_either_way(capsys: Capture) -> None:
    code, document = ask(capsys, "config", "schema")
    assert code == 0 and "privacy" in document["properties"]
    assert run("config", "schema") == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_written_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "mf"))
    path = tmp_path / "again.toml"
    path.write_text(to_toml(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_data_describe(tmp_path: Path, capsys: Capture) -> None:
    table = write_table(tmp_path / "plays.csv")
    code, document = ask(capsys, "data", "describe", table, "--timestamp-column", "time")
    data = planted(60, 40)
    assert code == 0
    assert (document["users"], document["items"], document["interactions"]) == (
        60,
        data.item_counts.astype(bool).sum(),
        len(data),
    )
    assert document["top_items"][0]["users"] == data.item_counts.max()
    assert document["time_span"] is None
    code, document = ask(capsys, "data", "describe")
    assert document["name"] == "movietweetings" and document["time_span"][0].startswith("2013")


def test_data_prepare_writes_a_split_that_trains(tmp_path: Path, capsys: Capture) -> None:
    table = write_table(tmp_path / "plays.csv")
    code, document = ask(
        capsys, "data", "prepare", table, "--timestamp-column", "time", "--out", tmp_path / "split"
    )
    assert code == 0 and document["split"]["test"]["interactions"] == 60
    config = write_config(tmp_path, "popularity")
    folder = json.dumps(str(tmp_path / "split"))
    code = run(
        "train",
        config,
        "--set",
        'split.method="folder"',
        "--set",
        f"split.path={folder}",
        "--out",
        tmp_path / "r",
    )
    assert code == 0


def test_tune_never_sees_the_test_part(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing every test item changes nothing that tuning says."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, "mf")
    arguments = ("tune", config, "--grid", "model.learning_rate=0.05,0.2", "--grid", "model.reg=0.0,0.01")
    code, first = ask(capsys, *arguments)
    assert code == 0 and len(first["trials"]) == 4
    scores = [trial["validation"]["full/ndcg@10"] for trial in first["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert load_config(tmp_path / "small-tuned.toml").model.kind == "mf"
    _spoil_last_interactions(tmp_path / "plays.csv")
    _, second = ask(capsys, *arguments)
    for one, other in zip(first["trials"], second["trials"], strict=True):
        assert one["set"] == other["set"] and one["validation"] == other["validation"]


def test_tune_agrees_with_the_coordinator(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    code, document = ask(
        capsys,
        "tune",
        write_config(tmp_path, "mf"),
        "--grid",
        "model.embedding_size=4",
        "--out",
        tmp_path / "t.toml",
    )
    result = RunFolder.open(runs / "mf").result
    (trial,) = document["trials"]
    assert code == 0 and trial["rounds"] == result["rounds"]
    assert trial["validation"]["full/ndcg@10"] == pytest.approx(
        result["validation"]["full/ndcg@10"], abs=1e-12
    )


def test_doctor_reports_every_check(capsys: Capture) -> None:
    code, document = ask(capsys, "doctor")
    names = [check["name"] for check in document["checks"]]
    assert {"Python", "packages", "numba", "torch", "Flower", "bundled data", "cache"} <= set(names)
    assert code == (0 if document["ok"] else 10)
    assert all(check["ok"] or check["todo"] for check in document["checks"])


def test_the_operators_doctor_asks_for_no_package_of_researchers(capsys: Capture) -> None:
    _, document = ask_operator(capsys, "doctor")
    checks = {check["name"]: check for check in document["checks"]}
    assert {"Python", "packages", "packages of extra 'server'", "Flower"} <= set(checks)
    assert not {"numba", "torch"} & set(checks) and "ray" not in checks["Flower"]["found"]


def test_doctor_finds_missing_and_wrong_packages() -> None:
    (base, train) = packages(["numpy>=999", 'no-such-package-here>=1; extra == "train"'], ("", "train"))
    assert not base.ok and "numpy" in base.found and base.todo == "pip install 'fedrec'"
    assert not train.ok and "is missing" in train.found and train.todo == "pip install 'fedrec[train]'"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["trian"], 2, "trian"),
        (["data"], 2, "see `fedrec data --help`"),
        (["train"], 2, "CONFIG"),
        (["train", "x.toml", "--resume", "y"], 2, "--resume"),
        (["train", "x.toml", "--items", "y"], 2, "--train"),
        (["train", "x.toml", "--engine", "magic"], 2, "magic"),
        (["evaluate", "x", "--top", "few"], 2, "--top"),
        (["recommend", "x"], 2, "--user"),
        (["train", "x.toml"], 3, "x.toml"),
        (["train", "no-such-experiment"], 3, "movietweetings-ease"),
        (["train", "{config}", "--set", "model.regg=1"], 3, "regg"),
        (["train", "{config}", "--set", "oops"], 3, "section.key=value"),
        (["config", "show", "{broken}"], 3, "not valid TOML"),
        (["tune", "{config}", "--grid", "model.reg"], 3, "--grid"),
        (["tune", "{config}", "--grid", "data.core=1,2"], 3, "data.core=2"),
        (["data", "describe", "nosuchset"], 3, "nosuchset"),
        (["data", "describe", "missing.csv"], 4, "missing.csv"),
        (["train", "{config}", "--set", 'data.path="gone.csv"', "--out", "{out}"], 4, "gone.csv"),
        (["train", "{config}", "--train", "gone.csv", "--out", "{out}"], 4, "gone.csv"),
        (["recommend", "{run}", "--user", "no one"], 4, "no one"),
        (["train", "{config}", "--out", "{run}"], 6, "--resume"),
        (["train", "--resume", "nowhere"], 6, "nowhere"),
        (["evaluate", "nowhere"], 6, "nowhere"),
        (["compare", "nowhere"], 6, "nowhere"),
        (["demo", "--out", "{run}"], 6, "something else than a demo"),
    ],
)
def test_every_error_is_one_line(
    arguments: list[str],
    code: int,
    says: str,
    runs: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("a = = 1")
    places = {
        "config": runs / "ease.toml",
        "run": runs / "ease",
        "out": tmp_path / "out",
        "broken": tmp_path / "broken.toml",
    }
    filled = [argument.format(**places) for argument in arguments]
    capsys.readouterr()
    assert run(*filled) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and says in line
    given, document = ask(capsys, *filled)
    assert given == code and document["exit_code"] == code and says in document["error"]


def test_documented_exit_codes_are_those_of_the_errors() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.M))
    tree = [errors.FedrecError]
    for kind in tree:
        tree += kind.__subclasses__()
    own = [kind for kind in tree if kind.__module__ == errors.__name__ and "exit_code" in vars(kind)]
    real = {str(kind.exit_code): kind.__name__ for kind in own}
    assert documented == {code: name for code, name in real.items() if name != "FedrecError"}


@pytest.mark.parametrize(
    ("name", "table", "called"), [("fedrec", RESEARCHER, run), ("fedrec-server", OPERATOR, operate)]
)
def test_every_command_is_documented_and_speaks_json(
    name: str, table: Group, called: Callable[..., int], capsys: Capture
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    assert called("--help") == 0
    for words, _ in table.walk():
        assert f"`{' '.join((name, *words))}" in text
        assert called(*words, "--help") == 0
        assert "--json" in capsys.readouterr().out


def test_the_operators_mistakes_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    code, document = ask_operator(capsys, "federation", "status", "--folder", tmp_path / "nowhere")
    assert code == 9 and "nowhere" in document["error"]
    code, document = ask_operator(capsys, "federation", "run", tmp_path / "nowhere")
    assert code == 6 and "nowhere" in document["error"]


def _read_rankings(path: Path) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            lists[row["user"]].append(row["item"])
            assert int(row["rank"]) == len(lists[row["user"]])
    return lists


def _spoil_last_interactions(path: Path) -> None:
    """Give every user another last item (one the user has not had)."""
    head, *lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    items = sorted({row[1] for row in rows})
    had: dict[str, set[str]] = defaultdict(set)
    for user, item, _ in rows:
        had[user].add(item)
    last = {row[0]: k for k, row in enumerate(rows)}
    counts = defaultdict(int)
    for row in rows:
        counts[row[1]] += 1
    for user, k in last.items():
        # The catalogue must stay as it is.
        fresh = [item for item in items if item not in had[user]]
        if counts[rows[k][1]] > 1:
            counts[rows[k][1]] -= 1
            rows[k][1] = fresh[0]
            counts[fresh[0]] += 1
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
