"""The public names of the four packages: short lists, lazily loaded, documented with executed examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedrec

ROOT = Path(__file__).parents[1]
NAMES = {
    "fedrec": """
        Catalog Comparison Dataset Evaluation Experiment FedrecError Interactions PrivacyPlan Recommendations
        Recommender RecommenderConfig Run compare dataset_names evaluate from_arrays from_frame load_dataset
        load_experiment load_run plan_privacy recommend split sweep train train_experiment
    """,
    "fedrec_client": """
        Apart AsyncClient AtMost Boost Client Conditions Consent Dpp EpsilonGreedy Event EventType LinUcb MemoryStore
        Mmr Pin Platform Policy RecommendationRequest Retention Store SystemPlatform Thompson Transport
    """,
    "fedrec_server": "Coordinator Federation Outcome Registry Task open_coordinator",
    "fedrec_simulations": "Config RunFolder load_config prepare run_deployment run_flower run_in_process",
}
STUBS = {"fedrec": ROOT, "fedrec_server": ROOT / "server", "fedrec_simulations": ROOT / "simulations"}
#: Top-level packages of the optional extras.
OPTIONAL = ("torch", "numba", "scipy", "flwr", "grpc", "pandas", "polars", "narwhals", "matplotlib", "rich")


@pytest.mark.parametrize("package", NAMES)
def test_the_exported_names_are_these(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(NAMES[package].split())
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"{package}.{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", STUBS)
def test_type_checkers_know_the_same_names(package: str) -> None:
    """The stub names the very objects that the table loads."""
    stub = ast.parse((STUBS[package] / package / "__init__.pyi").read_text("utf-8"))
    known = {
        alias.asname: (node.module, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module = importlib.import_module(package)
    assert sorted(map(str, known)) == sorted(module.__all__)
    for name, (home, own) in known.items():
        assert getattr(importlib.import_module(str(home)), own) is getattr(module, str(name))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_fedrec_costs_nothing() -> None:
    """CPU seconds and modules of `import fedrec` alone, beside those of Python's own start."""
    cost, heavy = python(
        "import sys, time; start = time.process_time(); import fedrec; cost = time.process_time() - start;"
        f"print(cost, [name for name in ('numpy', 'pydantic', *{OPTIONAL}) if name in sys.modules], sep='|')"
    ).split("|")
    assert float(cost) < 0.1 and heavy.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("numba", "fedrec.train(fedrec.from_arrays([1, 1, 1], [1, 2, 3]), 'ease')", "train"),
        ("torch", "fedrec.train(fedrec.from_arrays([1, 1, 1], [1, 2, 3]), 'sasrec')", "train"),
        ("narwhals", "fedrec.from_frame([])", "frames"),
        (
            "narwhals",
            "fedrec.train(fedrec.from_arrays([1, 1, 1], [1, 2, 3]), 'popularity').to_frame()",
            "frames",
        ),
        (
            "dp_accounting",
            "fedrec.plan_privacy(1.0, population=100, rounds=2, parameters=1, cohort=50)",
            "train",
        ),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(missing: str, code: str, extra: str) -> None:
    said = python(
        f"import sys; sys.modules[{missing!r}] = None\nimport fedrec\n"
        f"try:\n    {code}\nexcept fedrec.FedrecError as error:\n    print(error)"
    )
    assert said.count("\n") == 1 and repr(missing) in said and f"fedrec[{extra}]" in said


def examples(name: str) -> list[doctest.DocTest]:
    """Of a public name and, for a class of the API itself, of its methods."""
    found: Any = getattr(fedrec, name)
    own = inspect.isclass(found) and found.__module__.startswith("fedrec_simulations.api")
    home = sys.modules[found.__module__]
    return doctest.DocTestFinder(recurse=own, exclude_empty=True).find(found, name, module=home, globs={})


@pytest.mark.parametrize("name", NAMES["fedrec"].split())
def test_every_name_of_the_api_has_an_example_that_runs(name: str) -> None:
    tests = [test for test in examples(name) if test.examples]
    assert tests, f"fedrec.{name} has no example"
    for test in tests:
        assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed


@pytest.mark.parametrize(("server", "package"), [("localhost:1", "grpc"), ("https://localhost", "urllib3")])
def test_a_server_without_the_extra_client_is_one_line(server: str, package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from fedrec.core.errors import EnvironmentProblem
from fedrec_client.app._server_calls import connect
try:
    connect({server!r}, {{}})
except EnvironmentProblem as problem:
    assert "fedrec[client]" in str(problem) and "Client.open" in str(problem), problem
else:
    raise AssertionError("not refused")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
