"""Recommenders by name: found one by one, open to others, refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores, Sending
from fedrec.core.updates import BlockSpec, Layout, Rows, State, Updates, UpdateSum
from fedrec.recommenders.registry import RECOMMENDERS, build, parse, recommender
from fedrec.recommenders.serving import check_serves
from fedrec_simulations.experiments.config import Config, parse_config

HERE = f"{__name__}:Constant"
NONE = {"unit": "none", "aggregator": "sealed"}


class ConstantConfig(RecommenderConfig):
    """Configuration of the constant."""

    kind: str = "constant"
    scale: float = 1.0


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with RECOMMENDERS.restored():
        recommender(ConstantConfig)(Constant)
        yield


class Constant(Recommender):
    """Counts items; the least that a recommender can be."""

    config: ConstantConfig
    fixed_rounds: ClassVar[int | None] = 1

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        return Layout({"count": BlockSpec((n_items,))})

    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        return Updates({"count": Rows(batch.indptr, batch.item, np.ones(len(batch.item)))}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        return {"count": self.config.scale * total.blocks["count"].astype(np.float32)}, server

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
        return np.tile(shared["count"], (len(batch), 1))


def test_no_kind_needs_torch_numba_or_scipy_before_it_computes() -> None:
    """A program that reads a task or checks a configuration runs without them."""
    code = (
        "import sys, json\n"
        "from fedrec.recommenders.registry import RECOMMENDERS, build, parse\n"
        "for kind, made in RECOMMENDERS.builtin():\n"
        "    build(parse({**made.small, 'kind': kind})).layout(20)\n"
        "heavy = {'torch', 'numba', 'scipy', 'flwr', 'opacus'}\n"
        "print(json.dumps(sorted(heavy & {n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def test_a_kind_is_read_without_importing_the_others() -> None:
    code = (
        "import sys\n"
        "from fedrec.recommenders.registry import parse\n"
        "parse({'kind': 'ease'})\n"
        "print(sum(n.startswith('fedrec.recommenders.') for n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 10


def test_four_methods_are_enough(interactions: Any) -> None:
    model = build(parse({"kind": "constant", "scale": 2.0}))
    shared, local = model.fit(interactions, seed=0, rounds=7)
    np.testing.assert_array_equal(shared["count"], 2.0 * interactions.item_counts)
    assert (
        local == {}
        and model.init_shared(60, 0) == {}
        and model.fold_in(shared, interactions.batch(np.arange(2))) == {}
    )
    with pytest.raises(ConfigError, match="'constant' cannot serve on a device"):
        check_serves(model)
    (problem,) = model.conflicts(Sending(sampling_rate=0.5))
    assert "set it to 1" in problem


def test_a_path_is_kept_in_files_and_followed_in_own_configurations_alone(tmp_path: Path) -> None:
    config = parse_config({"model": {"kind": HERE, "scale": 3.0}, "privacy": NONE})
    assert isinstance(config.model, ConstantConfig) and isinstance(build(config.model), Constant)
    plain = json.loads(json.dumps(config.model_dump(mode="json")))
    assert plain["model"] == {"kind": HERE, "scale": 3.0}
    assert parse_config(plain) == config
    elsewhere = {"kind": "not_imported_yet.anywhere:Model"}
    with pytest.raises(ConfigError, match="followed in your own configuration alone"):
        parse(elsewhere)
    with pytest.raises(ConfigError, match="cannot be imported"):
        parse(elsewhere, paths=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "eas"}, "model.kind 'eas' is not known: did you mean 'ease'?"),
        ({}, "kind is missing"),
        ({"kind": 3}, "kind is missing"),
        ({"kind": "ease", "rge": 1.0}, "unknown key model.rge (did you mean 'reg'?)"),
        ({"kind": "ease", "reg": -1.0}, "model.reg = -1.0: Input should be greater than 0"),
        ({"kind": "constant", "scale": "much"}, 'model.scale = "much"'),
        (
            {"kind": "clustered", "features": 3, "base": {"kind": "sasrec"}},
            "model.base: 'sasrec' is not a recommender",
        ),
        ({"kind": "clustered", "features": 3, "base": {"kind": "ease", "reg": -1}}, "model.base.reg = -1"),
        ({"kind": "json:JSONDecoder"}, "expected a subclass of Recommender"),
    ],
)
def test_what_is_wrong_is_one_line(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"model": model, "privacy": NONE})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_schema_lists_every_kind() -> None:
    each = Config.model_json_schema()["properties"]["model"]["oneOf"]
    definitions = Config.model_json_schema()["$defs"]
    kinds = [
        (definitions[one["$ref"].rpartition("/")[2]] if "$ref" in one else one)["properties"]["kind"]["const"]
        for one in each
    ]
    assert kinds == RECOMMENDERS.names() and "constant" in kinds


def test_a_class_without_a_configuration_is_refused() -> None:
    class Nameless(RecommenderConfig):
        """It has no kind."""

    with pytest.raises(ConfigError, match="has no name"):
        recommender(Nameless)(Constant)
    with pytest.raises(ConfigError, match="expected a subclass of Recommender"):
        RECOMMENDERS.register("thing")(dict)
