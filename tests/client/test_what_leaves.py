"""What leaves a node: for two neighbouring histories the same kind, names, types, shapes and words, whatever happens.

Every model x privacy mode x fault. The values may differ, within their bound and under the plan's noise; nothing else
may. Faults come after the model has come: it is absurd, or its settings are; it is late; the disk is full; a promise
is missing. Out of scope: what the values tell (`test_clipping`, `test_privacy_mechanism`), pairs of sums
(`test_differences`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import split_of
from secagg_helpers import PLAIN, enrolled
from small_models import ALL, FEATURES, model_of

from fedrec.core.messages import Reply, Request
from fedrec.core.refusals import CODES, code_of
from fedrec.core.stage import ANNOUNCED
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.integers import Integers
from fedrec.privacy.metrics_release import MetricsRelease
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import InteractionPlan
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import build
from fedrec.rounds.agreement import guarded_sums
from fedrec.rounds.local_training import UpdateTraining
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.terms import SealedTerms, SecaggTerms, Terms
from fedrec_client.node._commitments import FILE
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_client.node.outgoing import WrongForm, checked, emit

ITEMS = 60
EVALUATION = EvaluationSettings(bootstrap=5, list_k=5)
#: Histories of one user that differ in everything; the shortest learns from nothing.
HISTORIES = (np.array([3, 1, 4, 15, 9, 2, 6]), np.array([50, 51]), np.array([7]))
MODES = ("none", "central", "distributed", "local")

State = dict[str, np.ndarray]


def plan_of(name: str, trust: str, **changes: Any) -> PrivacyPlan:
    model = build(model_of(name))
    rounds = model.fixed_rounds or 3
    integers = Integers(scale=100.0, beta=1e-9)
    fields: dict[str, Any] = {
        "unit": "user", "trust": trust, "target_epsilon": 8.0, "delta": 1e-6, "population": 100,
        "sampling": "everyone", "sampling_rate": 1.0, "rounds": rounds, "clip_norm": 1.0,
        "noise_multipliers": (1.0,) * rounds, "accountant": "rdp", "noise_seed": 4,
        "parameters": max(model.layout(ITEMS, r).size for r in range(1, rounds + 1)),
        "distributed": integers if trust == "distributed" else None,
        "metrics": MetricsRelease(
            names=("full/ndcg@10",), noise_multiplier=1.0, integers=integers if trust == "distributed" else None
        ),
    }  # fmt: skip
    return PrivacyPlan(**fields | changes)


def node_of(name: str, mode: str, history: np.ndarray, terms: Terms = PLAIN, **changes: Any) -> Node:
    """One user's node, in memory; its last item is held out."""
    privacy = None
    if mode != "none":
        plan = plan_of(name, mode, **changes)
        privacy = PrivacyTerms(plan=plan, run="run", dataset="d", limit_epsilon=1e9)
    return Node(
        split_of(4711, history, ITEMS), model_of(name), NodeSettings(seed=5, clip_norm=1.0), EVALUATION,
        LocalStore(None), privacy=privacy, aggregation=terms,
        simulated="integers" if isinstance(terms, SecaggTerms) else None,
    )  # fmt: skip


def shared_of(name: str) -> State:
    features = FEATURES if getattr(model_of(name), "features", 0) else None
    return build(model_of(name)).init_shared(ITEMS, 3, features)


def absurd(shared: State, number: float) -> State:
    return {
        key: np.full_like(values, number) if values.dtype.kind == "f" else values
        for key, values in shared.items()
    }


#: What the coordinator sends; the model is only the first of them.
MODELS: dict[str, Callable[[State], State]] = {
    "as it is": lambda shared: shared,
    "not a number": lambda shared: absurd(shared, float("nan")),
    "infinite": lambda shared: absurd(shared, float("inf")),
    "huge": lambda shared: absurd(shared, 1e30),
    "of another shape": lambda shared: {key: values[:-1] for key, values in shared.items() if values.ndim},
    "nothing": lambda shared: {},
    "of strangers": lambda shared: {"stranger": np.ones(3, np.float32)},
}
METAS: dict[str, dict[str, Any]] = {
    "rows of another kind": {ANNOUNCED + "rows": "nonsense"},
    "a bound that is none": {ANNOUNCED + "adaptive_clip": float("nan")},
    "words": {"hello": "x" * 50},
}


def requests(name: str) -> Iterator[tuple[str, Request]]:
    shared = shared_of(name)
    for what, change in MODELS.items():
        yield what, Request("train", 1, "refit", change(shared))
        yield what, Request("evaluate", 1, "refit", change(shared))
    plan = plan_of(name, "central")
    yield "the release of metrics", Request("evaluate", plan.charges, "refit", shared)
    yield "late", Request("train", 99, "refit", shared)
    for what, meta in METAS.items():
        yield what, Request("train", 1, "refit", shared, meta)


def shape_of(outcome: Reply | str) -> Any:
    """Everything of an answer but its values."""
    if isinstance(outcome, str):
        assert outcome in CODES
        return outcome
    arrays = {key: (values.dtype.str, values.shape) for key, values in outcome.arrays.items()}
    assert all(np.isfinite(values).all() for values in outcome.arrays.values())
    return outcome.kind, outcome.round, outcome.phase, arrays, sorted(outcome.meta)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(ALL))
def test_neighbouring_histories_give_answers_of_one_shape(name: str, mode: str) -> None:
    for what, request in requests(name):
        found = [
            shape_of(emit(lambda h=history, r=request: node_of(name, mode, h).handle(r)))
            for history in HISTORIES
        ]
        assert found[0] == found[1] == found[2], (what, request.kind)
        if what in MODELS and request.kind == "train":
            assert not isinstance(found[0], str), f"a model that is {what} is answered with zero, not refused"


@pytest.mark.parametrize("kind", ["sealed", "secagg"])
@pytest.mark.parametrize("mode", MODES)
def test_what_hides_a_reply_has_one_size(kind: str, mode: str) -> None:
    """Ciphertext and residues: their length follows from the model alone."""
    secagg, _ = enrolled([1, 1, 1], schedule=Schedule(guarded=("evaluate", "train")), clip_norm=1.0)
    terms: Terms = secagg
    if kind == "sealed":
        from fedrec.secagg.sealed import generate_key

        terms = SealedTerms(run="run", public=generate_key()[1].hex())
    for name in ("ease", "mf", "sasrec", "dp_ease"):
        for _, request in requests(name):
            found = [
                shape_of(emit(lambda h=history, n=name, r=request: node_of(n, mode, h, terms).handle(r)))
                for history in HISTORIES
            ]
            assert found[0] == found[1] == found[2]


def test_interaction_level_answers_have_one_shape_whatever_the_model_is() -> None:
    name = "mf"
    changes = {"unit": "interaction", "interaction": InteractionPlan(local_steps=2), "metrics": None}
    for what, change in MODELS.items():
        request = Request("train", 1, "refit", change(shared_of(name)))
        outcomes = [
            emit(lambda h=history, r=request: node_of(name, "local", h, **changes).handle(r))
            for history in HISTORIES
        ]
        assert len({str(shape_of(outcome)) for outcome in outcomes}) == 1, what


# -- faults around the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ease", "mf", "gru4rec", "FedPer"])
def test_a_full_disk_is_one_code(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: LocalStore, *args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device: /home/alice/film-3")

    monkeypatch.setattr(LocalStore, "put", full)
    request = Request("train", 1, "refit", shared_of(name))
    codes = {emit(lambda h=history: node_of(name, mode, h).handle(request)) for history in HISTORIES}  # type: ignore[misc]
    assert codes == {"failed"}


def test_an_error_in_the_middle_of_training_is_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """It met data of a user: neither that it came nor what it says may leave."""

    def fail(*args: Any, **options: Any) -> Any:
        raise ValueError("user 4711 saw film-3")

    monkeypatch.setattr(UpdateTraining, "train", fail)
    request = Request("train", 1, "refit", shared_of("mf"))
    for mode in MODES:
        quiet = {} if mode == "none" else {"noise_multipliers": (0.0,) * 3}
        reply = node_of("mf", mode, HISTORIES[0], **quiet).handle(request)
        assert not np.asarray(reply.arrays["update"]).any()


def test_a_missing_promise_is_one_code(tmp_path: Path) -> None:
    outcomes = []
    for k, history in enumerate(HISTORIES):
        model = model_of("ease")
        terms, identities = enrolled(
            [1, 1, 1],
            schedule=Schedule(refit_rounds=1, guarded=guarded_sums(build(model), None)),
            clip_norm=1.0,
            exact_sums=True,
        )
        folder = tmp_path / str(k)
        write_node(
            folder, split_of(4711, history, ITEMS), model, NodeSettings(seed=5, clip_norm=1.0), EVALUATION,
            aggregation=terms, identity=identities[0],
        )  # fmt: skip
        (folder / FILE).unlink()
        meta: dict[str, Any] = {
            "secagg/terms": terms.digest.hex(), "secagg/kind": "train", "secagg/attempt": 1,
            "secagg/model": "00" * 32, "secagg/length": 5,
        }  # fmt: skip
        node = open_node(folder)
        outcomes.append(emit(lambda n=node, m=meta: n.handle(Request("advertise", 1, "refit", {}, m))))  # type: ignore[misc]
    assert outcomes == ["secagg-promises"] * 3


# -- the place where everything passes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "meta"),
    [
        ({"update": np.zeros(3, np.float32), "history": np.arange(3)}, {}),
        ({"update": np.zeros((3, 3), np.float32)}, {}),
        ({"update": np.array(["film-3"])}, {}),
        ({"update": np.zeros(3, np.float32)}, {"path": "/home/alice"}),
        ({"update": np.zeros(3, np.float32)}, {"loss": float("nan")}),
        ({"update": np.zeros(3, np.float32)}, {"loss": "0.1"}),
    ],
)
def test_a_reply_of_another_form_is_held_back(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    request = Request("train", 1, "refit")
    reply = Reply("train", 1, "refit", arrays, meta)
    with pytest.raises(WrongForm):
        checked(PLAIN, request, reply)
    assert emit(lambda: checked(PLAIN, request, reply)) == "failed"


def test_under_secure_aggregation_no_number_leaves_beside_the_vector() -> None:
    terms, _ = enrolled([1, 1, 1])
    for reply in (
        Reply("train", 1, "refit", {"masked": np.zeros(3, np.uint32)}, {"users": 1}),
        Reply("train", 1, "refit", {"update": np.zeros(3, np.float32)}),
        Reply("confirm", 1, "refit", {"signature": np.zeros(64, np.uint8)}),
    ):
        with pytest.raises(WrongForm):
            checked(terms, Request("train", 1, "refit"), reply)


def test_words_of_errors_stay_in_the_nodes_log(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from fedrec.core.errors import (
        AggregationRefused,
        BudgetExhausted,
        LedgerTampered,
        ProtocolError,
        RunError,
    )

    said = f"user:4711 spent 1.2 in {tmp_path}"
    errors = [
        BudgetExhausted(said), LedgerTampered(said), RunError(said), ProtocolError(said), ValueError(said),
        AggregationRefused(said, "replay"), AggregationRefused(said, "film-3"), MemoryError(said),
    ]  # fmt: skip

    def fail(error: Exception) -> Reply:
        raise error

    with caplog.at_level(logging.WARNING):
        codes = [emit(lambda e=error: fail(e)) for error in errors]  # type: ignore[misc]
    assert codes == [
        "declined", "declined", "declined", "protocol", "failed", "secagg-replay", "failed", "failed"
    ]  # fmt: skip
    assert all(code in CODES for code in codes) and said in caplog.text
    assert all(code_of(error) == code for error, code in zip(errors, codes, strict=True))
    assert "4711" not in json.dumps(CODES)


def test_a_device_quotes_no_error_even_in_its_own_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Reply:
        raise KeyError("film-3")

    with caplog.at_level(logging.DEBUG):
        assert emit(fail, quiet=True) == "failed"
    assert "film-3" not in caplog.text


# -- where there is noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("model", ["not a number", "nothing"])
def test_an_answer_to_an_absurd_model_is_the_plans_noise_for_every_history(mode: str, model: str) -> None:
    """Equal in distribution: mean zero and the planned variance, so that zeros do not stand out."""
    plan = plan_of("mf", mode)
    shared = MODELS[model](shared_of("mf"))
    for history in HISTORIES:
        drawn = []
        for seed in range(6):
            node = node_of("mf", mode, history, noise_seed=seed)
            update = np.asarray(
                node.handle(Request("train", 1, "refit", shared)).arrays["update"], np.float64
            )
            if plan.distributed is not None:
                half = 1 << (plan.distributed.bits - 1)
                update = ((update.astype(np.int64) + half) % (2 * half) - half) / plan.distributed.scale
            drawn.append(update)
        values = np.concatenate(drawn)
        std = plan.noise_multipliers[0] * plan.clip_norm
        if plan.distributed is not None:
            std = np.sqrt(plan.share_variance(1)) / plan.distributed.scale
        error = std / np.sqrt(len(values))
        assert abs(values.mean()) < 5 * error
        assert abs(values.std() - std) < 5 * error
