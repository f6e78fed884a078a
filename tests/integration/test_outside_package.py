"""A package from outside: installed beside fedrec, found by its entry points, used in every way, no edit here.

Its files are the examples of `docs/extend`, word for word: one recommender, one loader, one metric, one encoder, one
mechanism and one aggregation rule.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).parents[2]
PAGES = ("recommender", "loader", "metric", "encoder", "mechanism", "aggregation-rule")
BLOCK = re.compile(
    r"^```python\n# my_package/(?P<name>\w+)\.py\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
TESTS = re.compile(
    r"^```python\n(?P<code>from fedrec\.testing import \w+Contract\n.*?)^```$", re.DOTALL | re.MULTILINE
)
POINTS = re.compile(r'^\[project\.entry-points\."fedrec\.\w+"\]\n[^\n]+\n', re.MULTILINE)
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "my-package"
version = "1.0"
"""
#: What every script begins with: planted data in which what follows an item is known.
DATA = """
import numpy as np
import fedrec

rng = np.random.default_rng(0)
start = rng.integers(0, 20, size=90)
item = (start[:, None] + np.arange(8)) % 20  # whoever has an item has the next one next
user = np.repeat(np.arange(90), 8)
if __name__ == "__main__":
    data = fedrec.from_arrays(user=user, item=item.ravel(), timestamp=np.tile(np.arange(8), 90))
    parts = fedrec.split(data)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "my_package").mkdir()
    (source / "my_package" / "__init__.py").write_text("")
    points = ""
    for page in PAGES:
        text = (ROOT / "docs" / "extend" / f"{page}.md").read_text("utf-8")
        found = BLOCK.search(text)
        assert found, page
        (source / "my_package" / f"{found['name']}.py").write_text(found["code"])
        points += "".join(POINTS.findall(text))
    (source / "pyproject.toml").write_text(PROJECT + points)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*install, "--target", str(target), str(source)], check=True, timeout=120)
    return target


def run(installed: Path, folder: Path, code: str) -> str:
    """What a script prints in a process that finds the package."""
    paths = os.pathsep.join([str(installed), *sys.path])
    (folder / "script.py").write_text(DATA + code)
    made = subprocess.run(
        [sys.executable, "script.py"],
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout


def test_the_recommender_is_one_short_file(installed: Path) -> None:
    lines = (installed / "my_package" / "transitions.py").read_text().splitlines()
    assert len(lines) < 80


def test_it_trains_in_process_and_is_measured_by_the_metric(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    model = {"kind": "transitions", "half_life": 0.5}
    chosen = {"metrics": ["rbp"], "ks": [1, 5]}
    run = fedrec.train(parts, model, evaluation=chosen)
    found = run.evaluate()
    print(round(found.value("full/hr@1"), 2), round(found.value("full/rbp@5"), 2))
""",
    )
    hit, persistence = map(float, said.split())
    assert hit > 0.9 and persistence > 0.9


def test_it_trains_privately_under_the_mechanism_and_says_so(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    privacy = {"epsilon": 500.0, "delta": 1e-3, "clip_norm": 3.0, "mechanism": "cautious", "force": True,
               "unit": "user", "trust": "central"}
    run = fedrec.train(parts, "transitions", privacy=privacy)
    run.save("run")
    print((__import__("pathlib").Path("run") / "privacy.json").read_text())
""",
    )
    assert "with twice the planned variance" in said


def test_it_trains_under_secure_aggregation_and_under_the_rule(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    ks = {"ks": [1]}
    plain = fedrec.train(parts, "transitions", clip_norm=3.0, evaluation=ks).evaluate().value("full/hr@1")
    secure = {"unit": "none", "aggregator": "secagg"}
    masked = fedrec.train(parts, "transitions", privacy=secure, clip_norm=3.0, nodes=3, evaluation=ks).evaluate()
    sealed = {"unit": "none", "aggregator": "sealed"}
    rule = {"aggregation_rule": {"kind": "bounded_nodes", "most": 2.5}}
    robust = fedrec.train(
        parts, "transitions", privacy=sealed, clip_norm=3.0, nodes=3, federation=rule, evaluation=ks
    )
    print(plain, masked.value("full/hr@1"), robust.evaluate().value("full/hr@1"))
    try:
        fedrec.train(parts, "transitions", privacy=secure, clip_norm=3.0, nodes=3, federation=rule)
    except fedrec.FedrecError as error:
        print("refused:", error)
""",
    )
    figures, _, refused = said.partition("\n")
    assert min(map(float, figures.split())) > 0.9
    assert refused.startswith("refused: ") and "aggregation_rule" in refused


@pytest.mark.slow
def test_it_trains_under_flowers_simulation_with_the_same_model(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    secure = {"unit": "none", "aggregator": "secagg"}
    chosen = {"privacy": secure, "clip_norm": 3.0, "nodes": 3}
    here = fedrec.train(parts, "transitions", **chosen, folder="here")
    there = fedrec.train(parts, "transitions", **chosen, engine="flower", folder="there")
    same = [np.array_equal(here.model[name], there.model[name]) for name in here.model]
    print(same)
""",
    )
    assert said.strip() == "[True]"


def test_it_is_served_by_the_sdk_and_exported(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    from pathlib import Path

    from fedrec.export.onnx import export_onnx
    from fedrec.ranking.model import History
    from fedrec.recommenders.registry import build
    from fedrec.recommenders.serving import serving_form
    from fedrec.wire.package import Terms
    from fedrec.wire.signing import OfflineKeys, OnlineKeys
    from fedrec_client import Client, MemoryStore
    from fedrec_client.testing import FakePlatform, FakeService
    from fedrec_server.operations.publishing import files_of_run
    from fedrec_server.operations.run_artifacts import RunArtifacts
    from fedrec_server.registry import Registry, write_bundle

    fedrec.train(parts, {"kind": "transitions", "half_life": 0.5}).save("run")
    offline, online = OfflineKeys.generate(), OnlineKeys.generate()
    registry = Registry.create(Path("models"), "pages", offline, online)
    files, facts = files_of_run(RunArtifacts.open(Path("run")))
    platform = FakePlatform()
    made = registry.publish(files, Terms(0, int(platform.now()), summary=facts), online)
    registry.promote(made.version, online)
    write_bundle(registry, Path("bundle"))
    client = Client.open(Path("device"), population="pages", trust=registry.pinned, start_model=Path("bundle"),
                         platform=platform, store=MemoryStore())
    ids = parts.split.train.item_ids.tolist()
    client.log_event("play", item=ids[4])
    print(ids[5] in [each.item for each in client.recommend(1)])
    export_onnx(registry.open(1).model, Path("model.onnx"))
    print(Path("model.onnx").stat().st_size > 0)
""",
    )
    assert said.split() == ["True", "True"]


def test_it_keeps_the_contracts(installed: Path, tmp_path: Path) -> None:
    """The tests of the pages, run by pytest as their author would."""
    found = [
        block["code"]
        for page in PAGES
        for block in TESTS.finditer((ROOT / "docs" / "extend" / f"{page}.md").read_text("utf-8"))
    ]
    assert len(found) == len(PAGES)
    (tmp_path / "test_my_package.py").write_text("\n".join(found))
    # Nothing of this repository's own settings for tests.
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join([str(installed), *sys.path])
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stdout[-3000:]
    passed = re.search(r"(\d+) passed", made.stdout)
    assert passed and int(passed[1]) >= 60 and "skipped" not in made.stdout


def test_its_loader_and_its_encoder_are_found_by_name(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        tmp_path,
        """
    from pathlib import Path

    from fedrec.content.encoders import load_encoder

    Path("clicks.csv").write_text("visitor,page,seconds\\nann,home,10\\nann,news,20\\nbob,news,15\\n")
    Path("pages.csv").write_text("page,title,section\\nhome,Home,start\\nnews,News of today,news\\n")
    print(fedrec.load_dataset("clicks", Path(".")).interactions.n_users, "clicks" in fedrec.dataset_names())
    print(load_encoder("letters").encode(["abc"]).shape)
""",
    )
    assert said.splitlines() == ["2 True", "(1, 27)"]


def test_nothing_here_was_edited_or_left_behind(installed: Path) -> None:
    if not (ROOT / ".git").exists():
        assert not list((ROOT / "fedrec").rglob("*my_package*"))
        return
    found = subprocess.run(
        ["git", "status", "--porcelain", "--", "fedrec", "server", "client", "simulations"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "my_package" not in found.stdout and "transitions" not in found.stdout
