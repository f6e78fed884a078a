"""Training from Python: data in memory, the same bytes as the command line, results as tables, saved and loaded."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from cli_helpers import run as command_line
from cli_helpers import write_table

import fedrec
from fedrec.core.files import read_arrays
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.items import Items
from fedrec.ranking.model import History
from fedrec.ranking.pipeline import RecommendationRequest, rank
from fedrec.ranking.top_n import top_n
from fedrec.recommenders.registry import build
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.report.progress import Lines, Notebook, RoundProgress, default_display

PLAIN = {"unit": "none", "aggregator": "plain", "insecure": True}
SECURE = {"unit": "none", "aggregator": "secagg"}
SEALED = {"unit": "none", "aggregator": "sealed"}
SEEDED = {"unit": "user", "epsilon": 8.0, "noise_seed": 5, "aggregator": "plain", "insecure": True}
QUICK = {"bootstrap": 0}
MF = {"kind": "mf", "embedding_size": 4, "learning_rate": 0.1}
SASREC = {"kind": "sasrec", "embedding_size": 8, "max_length": 8, "blocks": 1}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "plays.csv")


@pytest.fixture(scope="module")
def parts(table: Path) -> Prepared:
    return fedrec.split(fedrec.from_frame(pd.read_csv(table), timestamp="time"))


@pytest.fixture(scope="module")
def run(parts: Prepared) -> fedrec.Run:
    return fedrec.train(parts, MF, rounds=2, evaluation=QUICK)


# The same as the command line ------------------------------------------------------------------------------


def written(table: Path, model: Mapping[str, Any], privacy: Mapping[str, Any], **federation: Any) -> str:
    """An experiment file."""
    sections = {
        "data": {"name": "file", "path": str(table), "timestamp_column": "time"},
        "model": model,
        "privacy": privacy,
        "federation": federation,
        "evaluation": QUICK,
    }
    lines = [
        line
        for section, values in sections.items()
        for line in (f"[{section}]", *(f"{key} = {literal(value)}" for key, value in values.items()))
    ]
    return "\n".join(lines)


def literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


@pytest.mark.parametrize(
    ("model", "privacy", "federation"),
    [
        ({"kind": "popularity"}, PLAIN, {}),
        ({"kind": "ease"}, PLAIN, {}),
        (MF, PLAIN, {"rounds": 3}),
        (MF, SEALED, {"rounds": 2}),
        (MF, SECURE, {"rounds": 2, "nodes": 3, "clip_norm": 1.0}),
        (SASREC, PLAIN, {"rounds": 2}),
        ({"kind": "dp_ease"}, SEEDED, {}),
    ],
    ids=lambda value: value.get("kind") or value.get("aggregator", "") if isinstance(value, dict) else "",
)
def test_a_call_gives_the_bytes_of_the_command(
    table: Path, parts: Prepared, tmp_path: Path, model: Any, privacy: Any, federation: Any
) -> None:
    (tmp_path / "e.toml").write_text(written(table, model, privacy, **federation))
    assert command_line("train", tmp_path / "e.toml", "--out", tmp_path / "cli", "--no-report") == 0
    made = fedrec.train(parts, model, privacy=privacy, evaluation=QUICK, **federation)
    made.save(tmp_path / "api")
    for name in ("model", "checkpoint"):
        expected, found = (
            read_arrays(tmp_path / side / "coordinator" / f"{name}.safetensors")[0] for side in ("cli", "api")
        )
        assert expected.keys() == found.keys()
        assert all(expected[key].tobytes() == found[key].tobytes() for key in expected)
    kept = sorted(
        path.relative_to(tmp_path / "cli") for path in (tmp_path / "cli" / "nodes").glob("*/local/*")
    )
    assert [p for p in kept if not (tmp_path / "api" / p).exists()] == []
    for path in kept:
        expected, found = (read_arrays(tmp_path / side / path)[0] for side in ("cli", "api"))
        assert all(expected[key].tobytes() == found[key].tobytes() for key in expected)
    assert fedrec.load_run(tmp_path / "cli").result["test"] == made.result["test"]


def test_a_simulation_is_not_stopped_and_is_called_one(parts: Prepared, table: Path, tmp_path: Path) -> None:
    """The same bytes as with `insecure = true`, one line that says what it is, and none that warns of a server."""
    quiet = fedrec.train(parts, "ease", evaluation=QUICK)
    loud = fedrec.train(parts, "ease", privacy=PLAIN, evaluation=QUICK)
    assert all(quiet.model[name].tobytes() == loud.model[name].tobytes() for name in loud.model)
    assert [line.split(":")[0] for line in quiet.warnings] == ["SIMULATION"] and len(loud.warnings) == 2
    page = quiet.report(tmp_path / "report.html").read_text()
    assert page.count("SIMULATION") == 1 and "insecure" not in quiet.warnings[0]
    said = quiet.statement()["adversary_and_trust"]
    assert said["aggregator"] == "simulated" and "simulation" in " ".join(said["text"])


@pytest.mark.parametrize("engine", ["flower", "deployment"])
def test_other_engines_refuse_simulated_sums(parts: Prepared, engine: Any) -> None:
    with pytest.raises(fedrec.FedrecError, match=r"simulated.*engine"):
        fedrec.train(parts, "ease", privacy={"unit": "none", "aggregator": "simulated"}, engine=engine)


def test_other_engines_are_protected_unless_told_otherwise(parts: Prepared) -> None:
    with pytest.raises(fedrec.FedrecError, match=r"federation.clip_norm is not set: secure aggregation"):
        fedrec.train(parts, "ease", engine="flower")


# Data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_frames_of_every_library_are_the_same_data(table: Path, library: Any) -> None:
    columns = {name: values.tolist() for name, values in pd.read_csv(table).items()}
    found = fedrec.from_frame(library(columns), timestamp="time").interactions
    expected = fedrec.from_arrays(columns["user"], columns["item"], timestamp=columns["time"]).interactions
    for name, values in expected.columns().items():
        np.testing.assert_array_equal(found.columns()[name], values)
    assert found.user_ids.tolist() == expected.user_ids.tolist()


def test_a_frame_is_numbered_as_its_file(table: Path, tmp_path: Path) -> None:
    """Whole numbers by value, text in sorted order; else models of the two would differ."""
    frame = pd.DataFrame({"user": [10, 9, 9, 10], "item": ["b", "a", "b", "ä"], "time": [4, 2, 3, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "e.toml").write_text(written(tmp_path / "t.csv", {"kind": "popularity"}, PLAIN))
    from_file = fedrec_simulations_prepare(tmp_path / "e.toml").split.train
    in_memory = fedrec.split(fedrec.from_frame(frame, timestamp="time")).split.train
    assert from_file.user_ids.tolist() == in_memory.user_ids.tolist() == ["9", "10"]
    assert from_file.item_ids.tolist() == in_memory.item_ids.tolist()
    np.testing.assert_array_equal(from_file.item, in_memory.item)


def fedrec_simulations_prepare(path: Path) -> Prepared:
    from fedrec_simulations.experiments.prepare import prepare

    return prepare(fedrec.load_experiment(path))


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_dates_become_seconds(library: Any) -> None:
    days = pd.to_datetime(["2024-01-02", "2024-01-01"]).to_pydatetime().tolist()
    found = fedrec.from_frame(library({"user": [1, 1], "item": [7, 8], "day": days}), timestamp="day")
    assert found.interactions.timestamp.tolist() == [1704067200, 1704153600]
    assert found.interactions.history(0).tolist() == [1, 0]


def test_items_have_titles_and_categories() -> None:
    items = pd.DataFrame({"item": [7, 8], "title": ["Tea", None], "categories": ["hot|drink", None]})
    catalog = fedrec.from_frame(pd.DataFrame({"user": [1, 1], "item": [7, 8]}), items=items).catalog
    assert catalog.titles.tolist() == ["Tea", ""] and catalog.categories == (("hot", "drink"), ())
    assert catalog.label(1) == "8"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fedrec.from_frame([1, 2]), "frame is list: expected a data frame"),
        (lambda: fedrec.from_frame(pd.DataFrame({"usr": [1], "item": [2]})), "did you mean 'usr'"),
        (
            lambda: fedrec.from_frame(pd.DataFrame({"user": ["a", None], "item": [1, 2]})),
            "misses 1 of 2 values",
        ),
        (lambda: fedrec.from_arrays([1, 2], [1]), "one value per interaction"),
        (lambda: fedrec.from_arrays([], []), "no interactions"),
        (lambda: fedrec.from_arrays([1], [2], rating=[float("nan")]), "finite numbers"),
        (lambda: fedrec.from_arrays([1, "a", None], [1, 2, 3]), "ids of one type"),
        (lambda: fedrec.split(fedrec.from_arrays([1, 1], [1, 2]), "last"), "method = 'last'"),
        (lambda: fedrec.train([1, 2]), "data is list"),
        (lambda: fedrec.load_run("/nowhere"), "config.json"),
        (lambda: fedrec.plan_privacy(-1.0, population=9, rounds=1, parameters=1), "epsilon = -1.0"),
        (lambda: fedrec.plan_privacy(1.0, population=9, rounds=1, parameters=1, cohort=10), "cohort is 10"),
        (lambda: fedrec.compare([]), "no runs"),
    ],
)
def test_mistakes_are_one_line(call: Any, says: str) -> None:
    with pytest.raises(fedrec.FedrecError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_in_settings_are_named(parts: Prepared) -> None:
    for arguments, says in (
        ({"model": {"kind": "mf", "embeding_size": 4}}, "did you mean 'embedding_size'"),
        ({"model": "ease", "federation": {"round": 4}}, "did you mean 'rounds'"),
        ({"model": "mf", "rounds": 0}, "federation.rounds = 0"),
        ({"model": "ease", "privacy": -3.0}, "privacy.epsilon"),
    ):
        with pytest.raises(fedrec.FedrecError, match=says):
            fedrec.train(parts, **arguments)


# Results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame), ("pyarrow", pa.Table)]
)
def test_results_are_frames_of_every_library(run: fedrec.Run, backend: Any, kind: type) -> None:
    for result in (run, run.evaluate(), run.recommend("u1", n=3), fedrec.compare([run])):
        frame = result.to_frame(backend)
        names = list(frame.column_names if backend == "pyarrow" else frame.columns)
        assert isinstance(frame, kind) and names == list(result.columns()) and len(frame) == len(result)
    assert isinstance(run.to_frame(), pd.DataFrame)


def test_text_and_html_show_the_rows(run: fedrec.Run) -> None:
    lists = run.recommend("u1", n=2)
    assert [line.split()[:2] for line in str(lists).splitlines()] == [
        ["user", "rank"],
        ["u1", "1"],
        ["u1", "2"],
    ]
    page = lists._repr_html_()
    assert page.count("<tr>") == 3 and "<script" not in page
    assert "full/ndcg@10" in str(run.evaluate()) and repr(run) == str(run) == "Run('mf', 2 rounds, in memory)"


def test_lists_are_those_of_the_scores(run: fedrec.Run) -> None:
    """The pipeline of devices gives, for every user, what sorting the recommender's scores gives."""
    (host,) = run.source.hosts()
    history = host.shard.batch(host.shard.history("refit"))
    local = host.node.local_state(run.model, "refit", run.rounds)
    expected, scores = top_n(build(run.experiment.model).score(run.model, local, history), 5, history)
    found = fedrec.recommend(run, n=5)
    ids = run.split.train.item_ids
    for user, items, values in zip(run.split.train.user_ids.tolist(), expected, scores, strict=True):
        assert found.items(user) == ids[items[items >= 0]].tolist()
        assert [row[4] for row in found.rows if row[0] == user] == values[items >= 0].tolist()


def test_a_saved_run_is_the_same_run(run: fedrec.Run, parts: Prepared, tmp_path: Path) -> None:
    mine = fedrec.train(parts, MF, rounds=2, evaluation=QUICK)
    before = mine.recommend("u3").rows
    folder = mine.save(tmp_path / "run")
    again = fedrec.load_run(folder)
    assert again.folder == mine.folder == folder and again.recommend("u3").rows == before
    assert again.result["test"] == run.result["test"] and again.experiment == run.experiment
    assert again.evaluate().report == mine.evaluate().report
    with pytest.raises(fedrec.FedrecError, match="stored in"):
        mine.save(tmp_path / "other")
    with pytest.raises(fedrec.FedrecError, match="already holds a run"):
        fedrec.train(parts, MF, rounds=2).save(folder)
    assert command_line("recommend", folder, "--user", "u3") == 0


def test_a_run_can_be_written_while_it_goes(parts: Prepared, tmp_path: Path) -> None:
    made = fedrec.train(parts, "popularity", folder=tmp_path / "run", evaluation=QUICK)
    assert made.folder == tmp_path / "run" and (tmp_path / "run" / "privacy.json").exists()


def test_an_experiment_file_runs_as_it_is(table: Path, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(written(table, {"kind": "popularity"}, PLAIN))
    experiment = fedrec.load_experiment(tmp_path / "e.toml", {"name": "named", "federation.seed": 3})
    assert (experiment.name, experiment.federation.seed) == ("named", 3)
    assert fedrec.train_experiment(experiment).name == "named"


def test_private_runs_say_what_they_released(parts: Prepared) -> None:
    privacy = {"unit": "user", "epsilon": 8.0, "metrics": "noised", "force": True}
    private = fedrec.train(parts, "popularity", privacy=privacy, evaluation=QUICK)
    assert private.experiment.privacy.aggregator == "simulated" and private.statement()["private"]
    released, exact = private.evaluate(), private.evaluate(exact=True)
    assert released.report["noised"] and "noised" not in exact.report
    assert "not covered by epsilon" in exact.notes[0] and "not covered" in released.notes[0]
    silent = fedrec.train(parts, "popularity", privacy=privacy | {"metrics": "none"}, evaluation=QUICK)
    with pytest.raises(fedrec.FedrecError, match="exact=True"):
        silent.evaluate()
    shown = fedrec.compare([private, silent]).columns()
    assert shown["full/ndcg@10"][1] is None and shown["privacy"] == ["epsilon 8 per user"] * 2


def test_comparison_has_baselines_and_knows_other_data(run: fedrec.Run, parts: Prepared) -> None:
    found = fedrec.compare([run, fedrec.train(parts, "popularity", evaluation=QUICK)], baseline=True)
    assert found.columns()["run"] == [
        "mf", "mf, centralised baseline", "popularity", "popularity, centralised baseline",
    ]  # fmt: skip
    assert found.comparable and found.best() in found.columns()["run"]
    other = fedrec.train(fedrec.from_arrays([1, 1, 1], [1, 2, 3]), "popularity", evaluation=QUICK)
    apart = fedrec.compare([run, other])
    assert not apart.comparable
    with pytest.raises(fedrec.FedrecError, match="do not compare"):
        apart.best()


def test_a_sweep_compares_budgets_and_resumes(parts: Prepared, tmp_path: Path) -> None:
    lines: list[str] = []
    arguments: dict[str, Any] = {
        "epsilons": [8.0, float("inf")],
        "seeds": [1, 2],
        "folder": tmp_path / "sweep",
    }
    methods = {"counts": {"model": {"kind": "popularity"}, "privacy": {"force": True}}}
    found = fedrec.sweep(parts, methods, on_result=lines.append, **arguments)
    assert found.columns()["epsilon"] == [8.0, float("inf")] and found.columns()["seeds"] == [2, 2]
    assert found.columns()["error"] == [None, None] and len(lines) == 4 and found.conclusions
    assert fedrec.sweep(parts, methods, on_result=lines.append, **arguments) == found and len(lines) == 4
    other = fedrec.split(fedrec.from_arrays(*np.divmod(np.arange(300), 10)), validation=False)
    again = fedrec.sweep(other, methods, on_result=lines.append, **arguments)
    assert len(lines) == 8 and again != found, "other data are other trials"


def test_a_plan_says_whether_anything_can_be_learned() -> None:
    many = fedrec.plan_privacy(3.0, population=1_000_000, rounds=10, parameters=1000, cohort=20_000)
    few = fedrec.plan_privacy(3.0, population=500, rounds=10, parameters=10**6, gradient=False)
    assert many.verdict == "can learn" and few.verdict == "cannot learn" and many.epsilon <= 3.0
    rows = dict(zip(many.columns()["quantity"], many.columns()["value"], strict=True))
    assert rows["population"] == "1000000" and many.plan.rounds == 10


# Where it runs ---------------------------------------------------------------------------------------------


def test_it_works_inside_a_running_event_loop(parts: Prepared, run: fedrec.Run) -> None:
    async def main() -> list[fedrec.Run]:
        here = fedrec.train(parts, MF, rounds=2, evaluation=QUICK)
        beside = await asyncio.gather(
            asyncio.to_thread(fedrec.train, parts, MF, rounds=2, evaluation=QUICK, progress=False),
            asyncio.to_thread(fedrec.train, parts, "popularity", evaluation=QUICK, progress=False),
        )
        return [here, *beside]

    here, thread, other = asyncio.run(main())
    for made in (here, thread):
        assert all(made.model[name].tobytes() == run.model[name].tobytes() for name in run.model)
    assert other.name == "popularity"


def test_progress_goes_to_a_function_to_lines_or_nowhere(
    parts: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Mapping[str, Any]] = []
    fedrec.train(parts, MF, rounds=2, evaluation=QUICK, progress=seen.append)
    assert [(event["phase"], event["round"]) for event in seen[:2]] == [("tuning", 1), ("tuning", 2)]
    fedrec.train(parts, MF, rounds=2, evaluation=QUICK)
    fedrec.train(parts, MF, rounds=2, evaluation=QUICK, progress=False)
    assert capsys.readouterr().err == "", "stderr is not a terminal here"
    fedrec.train(parts, MF, rounds=2, evaluation=QUICK, progress=True)
    assert "choosing rounds: round 2/2" in capsys.readouterr().err


def test_a_notebook_shows_one_bar_that_is_updated(run: fedrec.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython's interface as documented; with text of a node that is not to be taken for HTML."""
    shown: list[str] = []

    class Handle:
        def update(self, value: str) -> None:
            shown[0] = value

    def display(value: str, display_id: bool = False) -> Handle:
        shown.append(value)
        return Handle()

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.HTML, module.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    assert isinstance(default_display(), Notebook)
    with RoundProgress(run.experiment, fixed_rounds=None, display=default_display()) as follow:
        for record in run.records:
            follow(record)
        follow({"round": 2, "failures": {"3": "<b>late"}, "abandoned": True, "nodes": 0})
    assert len(shown) == 3 and shown[0].startswith("<progress") and "final training" in shown[0]
    assert "&lt;b&gt;late" in shown[1]
    monkeypatch.delitem(sys.modules, "IPython")
    assert default_display() is None or not isinstance(default_display(), Notebook)


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for done in range(1, 6):
        lines.show("final training", done, 5, "facts")
    assert capsys.readouterr().err == "final training: round 5/5  facts\n"


def test_the_serving_form_gives_the_list_of_a_device(parts: Prepared) -> None:
    made = fedrec.train(parts, "ease", evaluation=QUICK)
    served = made.serving()
    user = served.fold_in(History.of(Items.of(made.catalog.item_ids.tolist()), made_history(made, "u5")))
    shelf = ItemIndex(served, Items.of(made.catalog.item_ids.tolist()))
    ranked = rank(shelf, user, user.history.item, RecommendationRequest(n=5), rng=np.random.default_rng(0))
    assert [made.catalog.item_ids[item] for item in ranked.items] == made.recommend("u5", n=5).items()


def made_history(run: fedrec.Run, user: str) -> list[str]:
    history = run.split.history("refit")
    return run.catalog.item_ids[history.history(history.user_ids.tolist().index(user))].tolist()
