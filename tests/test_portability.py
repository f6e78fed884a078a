"""The modules that run a second time under other kernels: none that trains is forgotten, and the gate runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from portability import TRAINING, module_trains, trains

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", TRAINING)
def test_a_module_that_imports_training_is_numeric(name: str) -> None:
    parent, _, child = name.rpartition(".")
    assert trains(f"import {name}")
    assert trains(f"def test() -> None:\n    from {name}.within import thing")
    assert trains(f"from {parent or name} import {child or 'thing'}")


def test_configurations_and_types_are_not_training() -> None:
    assert not trains(
        "from fedrec.recommenders.registry import build, parse\nfrom fedrec.core.recommender import RoundSeed"
    )
    assert not trains(
        "from fedrec.recommenders import registry\nimport numpy as np\nfrom fedrec.core import randomness"
    )


def test_the_marker_is_on_every_module_that_trains(request: pytest.FixtureRequest) -> None:
    """As pytest has collected them: in a run of the whole suite these are all modules."""
    for item in request.session.items:
        if module_trains(item.path):
            assert item.get_closest_marker("numeric"), item.nodeid


def test_modules_known_to_train_are_seen() -> None:
    """Those with bounds on trained models; a rule that saw none of them would pass all of the above."""
    for name in (
        "personal",
        "neural_models",
        "reviews",
        "deepfm",
        "clusters",
        "optimizers",
        "attacks",
        "closed_forms_and_mf",
    ):
        (path,) = (ROOT / "tests").rglob(f"test_{name}.py")
        assert trains(path.read_text("utf-8")), name


def test_the_gate_runs_them_under_other_kernels() -> None:
    assert "make test-portable" in (ROOT / ".ci" / "run").read_text("utf-8")
    recipe = re.search(
        r"^test-portable:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    assert recipe and '-m "numeric and not deployment"' in recipe[1] and "$(OTHER_KERNELS)" in recipe[1]
