"""A sweep is resumable at any byte, runs real private runs, and says what its numbers say."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_helpers import write_table
from conftest import last_out, planted
from evaluation_helpers import batch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, RunError
from fedrec_simulations.cli.privacy_sweep import sweep
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.sweep import _plots as plots
from fedrec_simulations.sweep._local_only import local_scores
from fedrec_simulations.sweep._work import run_cell
from fedrec_simulations.sweep.cells import Cell, CellResult, cells
from fedrec_simulations.sweep.data import evaluated_split, is_head, prepare_sweep, read_data, thirds
from fedrec_simulations.sweep.reading import read, sentences
from fedrec_simulations.sweep.runner import Journal, run_sweep
from fedrec_simulations.sweep.spec import load_sweep
from fedrec_simulations.sweep.table import Point, Spread, points

EXPERIMENT = """
name = "small sweep"
[data]
name = "file"
path = {path}
timestamp_column = "time"
[sweep]
epsilons = [1, inf]
seeds = [1, 2]
[[method]]
name = "popularity"
model.kind = "popularity"
privacy.clip_norm = 2.0
[[method]]
name = "private EASE"
model = {{ kind = "dp_ease", top_items = 20 }}
privacy.force = true
[method.at."1"]
model.top_items = 10
[[method]]
name = "EASE"
private = false
model = {{ kind = "ease", reg = 5.0 }}
[[method]]
name = "local only"
local_only = true
"""
CELLS = 4 + 4 + 2 + 2


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    table = write_table(tmp_path / "plays.csv")
    path = tmp_path / "small.toml"
    path.write_text(EXPERIMENT.format(path=json.dumps(str(table))))
    return path


def go(experiment: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return sweep(str(experiment), list(overrides), out, 1).document


def table_of(out: Path) -> list[dict[str, str]]:
    """The table without what a clock says."""
    with (out / "sweep.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def finished(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (out / "cells.jsonl").read_text().splitlines()]


def cells_of(experiment: Path, out: Path) -> list[Cell]:
    spec = load_sweep(experiment)
    place = prepare_sweep(out, parse_config(_base(spec), ()), "test")
    return cells(spec, place, read_data(place).group_bounds, "test")


def _base(spec: Any) -> dict[str, Any]:
    unprotected = {"unit": "none", "aggregator": "plain", "insecure": True}
    return {"data": dict(spec.data), "model": {"kind": "popularity"}, "privacy": unprotected}


def test_sweep_writes_table_page_and_plots(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = go(experiment, out)
    rows = table_of(out)
    assert len(rows) == CELLS == document["finished"]
    assert pq.read_table(out / "sweep.parquet").num_rows == CELLS
    assert {row["note"] for row in rows} == {"simulated noise, public data, tuning not charged"}
    private = [row for row in rows if row["epsilon"] == "1.0"]
    assert len(private) == 4
    for row in private:
        assert row["unit"] == "user"
        assert 0.9 < float(row["epsilon_user"]) <= 1.0
        assert float(row["epsilon_interaction"]) <= float(row["epsilon_user"])
        assert float(row["noise_multiplier"]) > 1 and float(row["noise_to_signal"]) > 0
    assert all(row["epsilon_user"] == "" for row in rows if row["epsilon"] == "inf")
    # Noise costs: the planted groups that plain EASE finds are not found at epsilon 1 among sixty users.
    mean = {(p["method"], p["epsilon"]): p["metrics"]["full/ndcg@10"]["mean"] for p in document["points"]}
    assert mean["EASE", "inf"] > mean["private EASE", 1.0]
    assert json.loads((out / "sweep.json").read_text())["points"] == document["points"]
    page = (out / "sweep.html").read_text()
    for text in (
        document["says"][0],
        "simulated noise",
        "popularity · 1",
        "≤ ",
        "Short histories",
        "local only",
    ):
        assert text in page, text
    assert page.count("<svg") == 3 and "http://www.w3.org" in page
    for name in ("quality", "quality-small", "quality-tail"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "scratch").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_privacy_sweep import cells_of
from fedrec_simulations.sweep.runner import run_sweep
out = Path({out!r})
done = []
def kill_after_three(cell, result):
    done.append(cell)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
run_sweep(out, cells_of(Path({experiment!r}), out), 2, kill_after_three)
"""


def test_killed_sweep_ends_with_the_table_of_an_undisturbed_one(experiment: Path, tmp_path: Path) -> None:
    out, calm = tmp_path / "killed", tmp_path / "calm"
    out.mkdir()
    code = KILLED.format(path=sys.path, out=str(out), experiment=str(experiment))
    killed = subprocess.run(
        [sys.executable, "-c", code], check=False, env=os.environ | {"PYTHONWARNINGS": "ignore"}, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    before = finished(out)
    assert len(before) == 3
    with (out / "cells.jsonl").open("ab") as file:
        file.write(b'{"key": "torn by a ki')
    go(experiment, out)
    assert finished(out)[:3] == before
    assert len(set(finished(out))) == CELLS
    go(experiment, calm)
    assert table_of(out) == table_of(calm)


def test_only_changed_cells_run_again(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(experiment, out, "sweep.seeds=[1]")
    first = finished(out)
    experiment.write_text(experiment.read_text().replace("reg = 5.0", "reg = 6.0"))
    go(experiment, out, "sweep.seeds=[1]")
    assert finished(out)[: len(first)] == first
    assert len(finished(out)) == len(first) + 1
    # A new name is no new cell.
    experiment.write_text(experiment.read_text().replace('"private EASE"', '"PE"'))
    go(experiment, out, "sweep.seeds=[1]")
    assert len(finished(out)) == len(first) + 1
    assert {row["method"] for row in table_of(out)} >= {"PE"}


def test_a_cell_that_fails_is_named_and_tried_again(experiment: Path, tmp_path: Path) -> None:
    text = experiment.read_text()
    experiment.write_text(text.replace("privacy.force = true", "privacy.delta = 0.9"))
    out = tmp_path / "out"
    document = go(experiment, out, "sweep.seeds=[1]")
    wrong = [p for p in document["points"] if p["error"]]
    assert [(p["method"], p["epsilon"]) for p in wrong] == [("private EASE", 1.0)]
    assert "delta" in wrong[0]["error"] and "\n" not in wrong[0]["error"]
    assert wrong[0]["error"][:40] in (out / "sweep.html").read_text()
    lines = len(finished(out))
    go(experiment, out, "sweep.seeds=[1]")
    assert len(finished(out)) == lines + 1


def test_axes_and_processes(experiment: Path, tmp_path: Path) -> None:
    text = experiment.read_text().split("[[method]]")
    alone = text[0] + "[[method]]" + text[3] + '[method.axes]\n"model.reg" = [1.0, 5.0]\n'
    experiment.write_text(alone)
    out = tmp_path / "out"
    assert sweep(str(experiment), [], out, 2).document["finished"] == 4
    assert [row["model.reg"] for row in table_of(out)] == ["1.0", "1.0", "5.0", "5.0"]


def test_same_cell_gives_the_same_result(experiment: Path, tmp_path: Path) -> None:
    cell = next(c for c in cells_of(experiment, tmp_path) if c.method == "private EASE" and c.epsilon == 1)
    first, second = run_cell(cell, tmp_path), run_cell(cell, tmp_path)
    assert first.metrics == second.metrics and first.error is None
    assert cell.config.model.model_dump()["top_items"] == 10


def test_validation_is_evaluated_without_the_test_part(experiment: Path, tmp_path: Path) -> None:
    split = last_out(planted(20, 40))
    evaluated = evaluated_split(split, "validation")
    assert evaluated.test is split.validation and evaluated.train is split.train
    assert len(evaluated_split(split, "test").train) == len(split.train) + len(split.validation or [])
    out = tmp_path / "out"
    go(experiment, out, "sweep.evaluate=validation", "sweep.seeds=[1]")
    assert "Evaluated on the validation part" in (out / "sweep.html").read_text()


WRONG = {
    "sweep.epsilon=[1]": "did you mean 'epsilons'",
    "sweep.epsilons=[0]": "above 0",
    "sweep.seeds=[1, 1]": "twice",
    "sweeps.seeds=[1]": "unknown key sweeps",
    "sweep.metric=full/ndcg@11": "not measured",
    "evaluation.group_bounds=[1, 2]": "thirds",
    "axes.reg=[1]": "expected model.<key>",
    "federation.round=3": "federation.round",
}


@pytest.mark.parametrize(("override", "said"), WRONG.items())
def test_mistakes_are_one_line(experiment: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        go(experiment, tmp_path / "out", override)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "cells.jsonl").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('model.kind = "popularity"', "", "has no model"),
        ("privacy.force = true", "privacy.epsilon = 3", "the sweep does"),
        ('at."1"', 'at."2"', "expected one of sweep.epsilons"),
        ('at."1"', 'at."one"', "expected one of sweep.epsilons"),
        ("local_only = true", "local_only = true\nmodel.kind = 'ease'", "nothing is trained"),
        ("private = false", "private = false\nprivacy.clip_norm = 1", "is not private"),
        ('name = "EASE"', 'name = "popularity"', "different ones"),
        ("privacy.force = true", "privacy.forced = true", "unknown key privacy.*forced"),
        ('kind = "ease", reg', 'kind = "ease", regg', "method 'EASE' at epsilon inf.*did you mean 'reg'"),
        ("[sweep]", "[sweep", "no TOML"),
    ],
)
def test_mistakes_in_the_file_are_one_line(
    experiment: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = experiment.read_text()
    assert old in text
    experiment.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said) as caught:
        go(experiment, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_share_a_folder(experiment: Path, tmp_path: Path) -> None:
    todo = cells_of(experiment, tmp_path)[:2]

    def second(cell: Cell, result: CellResult) -> None:
        with pytest.raises(RunError, match="another process"):
            run_sweep(tmp_path, todo, 1)

    assert len(run_sweep(tmp_path, todo, 1, second)) == 2


def test_stop_keeps_what_is_finished(experiment: Path, tmp_path: Path) -> None:
    todo, seen = cells_of(experiment, tmp_path), list[Cell]()
    results = run_sweep(tmp_path, todo, 1, lambda cell, _: seen.append(cell), lambda: len(seen) == 2)
    assert len(results) == 2
    assert len(run_sweep(tmp_path, todo, 1)) == CELLS


@given(st.binary(max_size=40), st.integers(0, 60))
def test_journal_survives_a_kill_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "cells.jsonl"
    Journal(path).add(CellResult("a", {"m": 0.5}))
    Journal(path).add(CellResult("b", {"m": 0.25}))
    whole = path.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    path.write_bytes(first + whole[len(first) : min(len(first) + cut, len(whole) - 1)])
    assert set(Journal(path).results) == {"a"}
    path.write_bytes(first + tail.replace(b"\n", b""))
    Journal(path).add(CellResult("c"))
    assert set(Journal(path).results) == {"a", "c"}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_thirds_are_valid_bounds(lengths: list[int]) -> None:
    first, second = thirds(np.array(lengths))
    assert 0 < first < second


def test_thirds_and_head() -> None:
    assert thirds(np.arange(1, 31)) == (11, 21)
    assert is_head(np.array([3, 9, 3, 1, 0])).tolist() == [False, True, False, False, False]


def test_local_only_uses_nothing_but_the_own_history() -> None:
    categories = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    scores = local_scores(batch([[0], [2]], [5, 6]), categories, 1)
    assert scores[0, 1] > scores[0, 2:].max() and scores[1, 3] > scores[1, :2].max()
    # The other user's history changes nothing.
    np.testing.assert_array_equal(local_scores(batch([[0], [1]], [5, 6]), categories, 1)[0], scores[0])
    bare = local_scores(batch([[0], [2]], [5, 6]), np.zeros((4, 0), dtype=np.float32), 1)
    assert len(np.unique(bare)) == 8


def point(method: str, epsilon: float, mean: float, width: float = 0.0) -> Point:
    spread = Spread(mean, mean - width, mean + width, width)
    return Point(method, epsilon, (), 3, {"full/ndcg@10": spread}, {}, 1.0, None)


def test_sentences_follow_the_numbers(experiment: Path) -> None:
    spec = load_sweep(experiment)
    some = [
        point("popularity", 1, 0.02, 0.001),
        point("private EASE", 1, 0.0205, 0.002),
        point("popularity", 3, 0.02),
        point("private EASE", 3, 0.04),
        point("EASE", math.inf, 0.08),
        point("local only", math.inf, 0.01),
    ]
    said = sentences(read(spec, some))
    assert said[0] == (
        "private EASE is best at every budget shown, with 0.0205 (26%) at epsilon 1 and 0.0400 (50%) at epsilon 3; "
        "without privacy EASE reaches 0.0800 (100%)."
    )
    assert said[1] == "Over the seeds, at epsilon 1 popularity cannot be told apart from private EASE."
    assert "as good as anything else at epsilon 1; learning about users pays at epsilon 3" in said[2]
    assert "less than the best method at every budget" in said[3]
    some[-1] = point("local only", math.inf, 0.03)
    assert "at epsilon 1 nothing that learns together is clearly better" in sentences(read(spec, some))[3]
    some[1] = point("private EASE", 1, 0.01)
    assert sentences(read(spec, some))[0].startswith("popularity is best at epsilon 1, with 0.0200 (25%)")
    assert "nothing can be said" in sentences(read(spec, some[4:]))[0]


def test_spread_and_places() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3.0, 1.0)
    assert Spread.of([1.0]).sd == 0.0
    place = plots.places([10, 1, math.inf])
    assert list(place) == [1, 10, math.inf] and place[math.inf] > place[10]


def test_points_leave_out_what_failed(experiment: Path, tmp_path: Path) -> None:
    some = cells_of(experiment, tmp_path)[:2]
    results = {
        some[0].key: CellResult(some[0].key, {"m": 1.0}),
        some[1].key: CellResult(some[1].key, error="no"),
    }
    (found,) = points(some, results)
    assert found.seeds == 1 and found.metrics["m"].mean == 1.0 and found.error == "no"
