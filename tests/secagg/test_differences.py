"""Sums that cannot be subtracted: what a coordinator may ask of real nodes in a run, in any order.

The rules are `fedrec.secagg.schedule`'s. The coordinator here cheats: it asks again, in other rounds, phases and
kinds, of other nodes, with models of its own. Nodes are the product's, with their promises on disk.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import split_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties import quick
from secagg_helpers import Here, enrolled

from fedrec.core.errors import AggregationAborted, AggregationRefused, FedrecError, PrivacyRefused
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.evaluation.sums import MetricSums
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.formats import read_update
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.context import Context
from fedrec.secagg.schedule import KEPT, Group, Schedule
from fedrec.secagg.state import Stage
from fedrec.secagg.terms import SecaggTerms
from fedrec_client.node._commitments import FILE, Promises
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_server.rounds._attempt import Seconds
from fedrec_server.rounds._collectors import Question
from fedrec_server.rounds._secure_collector import SecureCollector
from fedrec_server.rounds.replies import Host

N_ITEMS, FLOOR = 12, 3
MODEL = {"kind": "ease"}
EVALUATION = EvaluationSettings(bootstrap=0, sampled=False)
SETTINGS = NodeSettings(seed=5, clip_norm=50.0)
ONE_OF_EACH = Schedule(refit_rounds=1, refit_evaluation=True)


def lay_out(folder: Path, users: int, **terms: Any) -> tuple[list[Path], SecaggTerms, list[np.ndarray]]:
    """Nodes of one user each under the closed form, their terms and their histories; the last item is held out."""
    fields: dict[str, Any] = {"min_nodes": FLOOR, "clip_norm": 50.0, "schedule": ONE_OF_EACH}
    secagg, identities = enrolled([1] * users, **fields | {"exact_sums": True} | terms)
    rng = np.random.default_rng(7)
    histories = [rng.choice(N_ITEMS, 5, replace=False) for _ in range(users)]
    folders = []
    for k, history in enumerate(histories):
        folders.append(folder / str(k))
        write_node(
            folders[-1], split_of(k, history, N_ITEMS), parse(MODEL), SETTINGS, EVALUATION,
            aggregation=secagg, identity=identities[k],
        )  # fmt: skip
    return folders, secagg, histories


class Wire:
    """Hands requests to nodes that are opened anew, as processes that start over would be."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.nodes_here: dict[str, Node] = {folder.name: open_node(folder) for folder in folders}
        self.refused: list[str] = []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return {name: self._ask(name, request) for name, request in requests.items()}

    def nodes(self) -> list[str]:
        return sorted(self.nodes_here)

    def _ask(self, name: str, request: Request) -> Reply | Failure:
        try:
            return self.nodes_here[name].handle(request)
        except AggregationRefused as error:
            self.refused.append(error.reason)
            return Failure(str(error))
        except FedrecError as error:
            return Failure(str(error))


class Cheat:
    """A coordinator without a memory of its own: it asks what it likes of whom it likes."""

    def __init__(self, folder: Path, wire: Wire, terms: SecaggTerms) -> None:
        self.wire, self.terms, self._folder = wire, terms, folder
        self.hosts = {name: Host(1, name, int(name)) for name in wire.nodes_here}
        self.sums: list[tuple[str, frozenset[str]]] = []
        self._attempt = 0

    def ask(self, kind: str, phase: str, round_: int, who: Sequence[str], model: float = 0.0) -> Any:
        """A sum, or None where there is none; `sums` remembers whose."""
        self._attempt += 1
        folder = self._folder / str(self._attempt)
        folder.mkdir(parents=True)
        collector = SecureCollector(
            self.wire, Here({name: self.hosts[name] for name in who}), self.terms, folder, seconds=Seconds(5, 5),
            min_nodes=1, min_reply_fraction=0.01, private=False,
        )  # fmt: skip
        # Attempts rise over all of its collectors, or nodes would refuse them for that alone.
        collector._log.next_attempt = lambda: self._attempt  # type: ignore[method-assign]
        try:
            question = self.question(kind, phase, round_, model)
            answers = collector.ask(question)
        except AggregationAborted:
            return None
        self.sums.append((kind, frozenset(set(who) - set(answers.failures))))
        return answers.values[0]

    def question(self, kind: str, phase: str, round_: int, model: float = 0.0) -> Question:
        """As an honest coordinator puts it, with a model of one number."""
        shared = {"weights": np.full((N_ITEMS, N_ITEMS), model, np.float32)} if kind == "evaluate" else {}
        request = Request(kind, round_, phase, shared)  # type: ignore[arg-type]
        if kind == "train":
            layout = build(parse(MODEL)).layout(N_ITEMS, 1)
            names = ("users", "loss", "examples", "clipped", "norm", "zeroed")
            example = {"update": np.zeros(layout.size, np.float32)}
            return Question(
                request, lambda r, u, s: read_update(r, layout, u, 50.0, summed=s), example, names
            )
        like = MetricSums.empty(EVALUATION, N_ITEMS)
        return Question(
            request, lambda r, u, s: MetricSums.from_arrays(r.arrays, like, u), like.to_arrays(), ()
        )


@pytest.fixture
def cheat(tmp_path: Path) -> Cheat:
    folders, terms, _ = lay_out(tmp_path / "nodes", 8)
    return Cheat(tmp_path / "coordinator", Wire(folders), terms)


def everyone(cheat: Cheat) -> list[str]:
    return sorted(cheat.hosts)


def test_a_second_sum_without_one_node_is_refused(cheat: Cheat) -> None:
    """The attack: the Gram matrix of everyone less that of everyone but one is one user's history."""
    assert cheat.ask("train", "refit", 1, everyone(cheat)) is not None
    for round_, phase in ((1, "refit"), (2, "refit"), (1, "tuning")):
        assert cheat.ask("train", phase, round_, everyone(cheat)[1:]) is None
    assert {Reason(reason) for reason in cheat.wire.refused} == {Reason.SCHEDULE, Reason.REPLAY}


def test_a_phase_is_evaluated_once_and_by_the_same_nodes(cheat: Cheat) -> None:
    """The other attack: `seen` of two evaluations, or of an evaluation and a training sum, one node apart."""
    assert cheat.ask("train", "refit", 1, everyone(cheat)) is not None
    assert cheat.ask("evaluate", "refit", 1, everyone(cheat)[1:]) is None
    assert {Reason(reason) for reason in cheat.wire.refused} == {Reason.DIFFERENCE}
    assert cheat.ask("evaluate", "refit", 1, everyone(cheat)) is not None
    for round_ in (0, 1):
        assert cheat.ask("evaluate", "refit", round_, everyone(cheat), model=1.0) is None
    assert cheat.ask("evaluate", "tuning", 1, everyone(cheat)) is None


def test_a_device_is_not_summed_among_strangers(cheat: Cheat) -> None:
    """Three that know nothing of the first sum could outvote the one that does, once its vector has left."""
    assert cheat.ask("train", "refit", 1, everyone(cheat)[2:]) is not None
    assert cheat.ask("evaluate", "refit", 1, ["0", "1", "7"]) is None
    assert cheat.ask("evaluate", "refit", 1, everyone(cheat)) is None
    assert {Reason(reason) for reason in cheat.wire.refused} == {Reason.DIFFERENCE}


def collector_of(folder: Path, nodes: int) -> tuple[SecureCollector, Cheat, Here]:
    """The product's own coordinator side over real nodes."""
    folders, terms, _ = lay_out(folder / "nodes", nodes)
    wire = Wire(folders)
    cheat = Cheat(folder / "cheat", wire, terms)
    here = Here(cheat.hosts)
    collector = SecureCollector(
        wire,
        here,
        terms,
        folder,
        seconds=Seconds(5, 5),
        min_nodes=3,
        min_reply_fraction=0.1,
        private=False,
    )
    return collector, cheat, here


def test_an_honest_coordinator_leaves_others_out_beside_those_who_are_missing(tmp_path: Path) -> None:
    """Natural drop-outs give the same pairs: a sum without one device would tell about it."""
    collector, cheat, here = collector_of(tmp_path, 15)
    assert collector.ask(cheat.question("train", "refit", 1)).nodes == 15
    here.hosts = {name: host for name, host in cheat.hosts.items() if name != "3"}
    answers = collector.ask(cheat.question("evaluate", "refit", 1))
    assert answers.nodes == 12 and not cheat.wire.refused
    assert sum("left out beside" in why for why in answers.failures.values()) == 2


@pytest.mark.parametrize(
    ("gone", "why"), [(1, "1 of the 5 devices of the last exact sum"), (2, "3 devices are to")]
)
def test_where_too_few_would_be_left_there_is_no_sum(tmp_path: Path, gone: int, why: str) -> None:
    collector, cheat, here = collector_of(tmp_path, 5)
    collector.ask(cheat.question("train", "refit", 1))
    here.hosts = {name: host for name, host in cheat.hosts.items() if int(name) >= gone}
    with pytest.raises(AggregationAborted, match=why):
        collector.ask(cheat.question("evaluate", "refit", 1))


# -- promises -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "of another run", "not JSON"])
def test_a_promise_that_cannot_be_read_counts_as_given(tmp_path: Path, damage: str) -> None:
    folders, terms, _ = lay_out(tmp_path / "nodes", 5)
    path = folders[0] / FILE
    content = {"empty": "", "not JSON": "{", "of another run": path.read_text().replace(terms.run, "another")}
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(content[damage])
    cheat = Cheat(tmp_path / "coordinator", Wire(folders), terms)
    assert cheat.ask("train", "refit", 1, everyone(cheat)) is not None, "the others go on"
    assert cheat.sums == [("train", frozenset({"1", "2", "3", "4"}))]
    assert set(cheat.wire.refused) == {Reason.PROMISES}


def test_promises_are_on_disk_before_a_share_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes nothing: no stage of the node is answered, so that nothing is let out unrecorded."""
    folders, terms, _ = lay_out(tmp_path / "nodes", 5)
    wire = Wire(folders)
    cheat = Cheat(tmp_path / "coordinator", wire, terms)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedrec_client.node._commitments.durable_write", full)
    with pytest.raises(OSError, match="No space"):
        cheat.ask("train", "refit", 1, everyone(cheat))


def test_a_prepared_node_keeps_the_promises_of_its_run(tmp_path: Path) -> None:
    folders, terms, _ = lay_out(tmp_path / "nodes", 5)
    cheat = Cheat(tmp_path / "coordinator", Wire(folders), terms)
    cheat.ask("train", "refit", 1, everyone(cheat))
    before = (folders[0] / FILE).read_bytes()
    Promises.create(terms, folders[0])
    assert (folders[0] / FILE).read_bytes() == before
    Promises.create(terms.model_copy(update={"run": "next"}), folders[0])
    assert (folders[0] / FILE).read_bytes() != before


def test_a_node_whose_terms_guard_too_little_does_not_open(tmp_path: Path) -> None:
    folders, _, _ = lay_out(tmp_path / "nodes", 3, schedule=Schedule(guarded=("evaluate",)))
    with pytest.raises(PrivacyRefused, match="does not guard exact sums of kind train"):
        open_node(folders[0])


def test_a_deployed_node_without_a_plan_needs_an_explicit_word(tmp_path: Path) -> None:
    folders, _, _ = lay_out(tmp_path / "nodes", 3, exact_sums=False)
    open_node(folders[0])
    with pytest.raises(PrivacyRefused, match=r"privacy\.exact_sums = true"):
        open_node(folders[0], deployed=True)


# -- the rule ------------------------------------------------------------------------------------------------------


@given(
    first=st.sets(st.integers(0, 30), min_size=3, max_size=25),
    came=st.lists(st.sets(st.integers(0, 30), max_size=30), max_size=5),
    floor=st.integers(3, 6),
)
@quick
def test_what_an_honest_server_chooses_devices_accept(
    first: set[int], came: list[set[int]], floor: int
) -> None:
    group = Group().check_sharers(first)
    for each in came:
        chosen, why = group.choose(each, floor)
        assert bool(chosen) != bool(why)
        if chosen:
            assert set(chosen) <= each
            group = group.check_sharers(chosen).check_survivors(chosen, floor)


@given(
    wanted=st.lists(st.tuples(st.sets(st.integers(0, 8), min_size=3), st.randoms()), min_size=2, max_size=7),
    floor=st.integers(3, 4),
)
@settings(max_examples=300, deadline=None)
def test_no_combination_of_opened_sums_speaks_of_fewer_than_the_floor(
    wanted: list[tuple[set[int], Any]], floor: int
) -> None:
    """The server chooses who shares, who survives, and which two thirds of them it asks to open a sum."""
    knows: dict[int, Group] = {}
    opened: list[set[int]] = []
    for sharers, random in wanted:
        masked = set()
        for device in sharers:
            with contextlib.suppress(AggregationRefused):
                knows[device] = knows.get(device, Group()).check_sharers(sharers)
                masked.add(device)
        out = random.choice([0, 0, 1, 3])
        survivors = set(sorted(masked, key=lambda device: random.random())[out:])
        needed = max(math.ceil(2 / 3 * len(sharers)), len(sharers) // 2 + 1)
        if len(survivors) < max(floor, needed):
            continue
        willing = {}
        for device in sorted(survivors, key=lambda device: random.random()):
            with contextlib.suppress(AggregationRefused):
                willing[device] = knows[device].check_survivors(survivors, floor)
        if len(willing) >= needed:
            # No more of them than it must ask learn that the sum was opened.
            knows |= dict(itertools.islice(willing.items(), needed))
            opened.append(survivors)
    cells = Counter(tuple(d in group for group in opened) for d in set().union(*opened) if opened)
    assert all(size >= floor for size in cells.values())


def test_the_parts_that_hold_the_rule_together() -> None:
    """Two sums of a group must have been opened by more than half of it each: 2/3 of 4/5."""
    assert 2 / 3 * KEPT > 0.5
    nine = Group().check_sharers(range(9)).check_survivors(range(9), 3)
    for survivors in (range(1, 9), range(4), range(1, 10)):
        with pytest.raises(AggregationRefused):
            nine.check_survivors(survivors, 3)
    for sharers in (range(7), range(10), range(1, 10)):
        with pytest.raises(AggregationRefused):
            nine.check_sharers(sharers)


@given(kind=st.sampled_from(["train", "evaluate", "hello"]), phase=st.sampled_from(["tuning", "refit", "x"]),
       round_=st.integers(-1, 9), select=st.integers(0, 4), final=st.integers(0, 4), every=st.integers(0, 3),
       test=st.booleans())  # fmt: skip
@quick
def test_only_scheduled_sums_are_open(
    kind: str, phase: str, round_: int, select: int, final: int, every: int, test: bool
) -> None:
    schedule = Schedule(tuning_rounds=select, refit_rounds=final, evaluate_every=every, refit_evaluation=test)
    try:
        schedule.check(kind, phase, round_, ())
        opened = True
    except AggregationRefused as error:
        opened = False
        assert error.reason == Reason.SCHEDULE
    most = {"tuning": select, "refit": final}.get(phase, -1)
    if opened:
        assert kind in ("train", "evaluate") and 0 <= round_ <= most + (phase == "refit")
        assert kind == "train" or (test if phase == "refit" else every > 0)
    if kind == "train":
        assert opened == (1 <= round_ <= most)


def test_the_last_stage_is_promised_once(tmp_path: Path) -> None:
    terms, _ = enrolled([1] * 4, schedule=ONE_OF_EACH)
    Promises.create(terms, tmp_path)
    context = Context(terms.digest.hex(), "train", "refit", 1, 1, "00" * 32, 4)
    promises = Promises(terms, tmp_path)
    promises.join(context)
    promises.join_group(context, (0, 1, 2))
    promises.step(context, Stage.UNMASK, (0, 1, 2))
    for again in (lambda: promises.step(context, Stage.UNMASK, (0, 1, 2)), lambda: promises.join(context)):
        with pytest.raises(AggregationRefused) as refused:
            again()
        assert refused.value.reason == Reason.REPLAY


# -- a coordinator that tries everything ----------------------------------------------------------------------------


class CheatingCoordinator(RuleBasedStateMachine):
    """Asks real nodes anything in any order; restarts them and hands them other models in between."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.folders, terms, self.histories = lay_out(self.folder / "nodes", 9)
        self.cheat = Cheat(self.folder / "coordinator", Wire(self.folders), terms)

    @rule(
        kind=st.sampled_from(["train", "evaluate"]),
        phase=st.sampled_from(["refit", "refit", "tuning"]),
        round_=st.integers(0, 2),
        missing=st.sets(st.integers(0, 8), max_size=6) | st.just(set()),
        model=st.sampled_from([0.0, 1.0, float("nan")]),
    )
    def ask(self, kind: str, phase: str, round_: int, missing: set[int], model: float) -> None:
        who = [name for name in self.cheat.hosts if int(name) not in missing]
        if len(who) >= 2:
            self.cheat.ask(kind, phase, round_, who, model)

    @rule()
    def restart_the_nodes(self) -> None:
        self.cheat.wire = Wire(self.folders)

    @precondition(lambda self: len(self.cheat.sums) > 1)
    @rule()
    def look(self) -> None:
        kinds = [kind for kind, _ in self.cheat.sums]
        assert len(kinds) == len(set(kinds)), "each sum once"

    @invariant()
    def sums_are_far_enough_apart(self) -> None:
        if not hasattr(self, "cheat"):
            return
        sums = [group for _, group in self.cheat.sums]
        for one in sums:
            for other in sums:
                for part in (one - other, other - one, one & other):
                    assert not part or len(part) >= FLOOR

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestCheatingCoordinator = pytest.mark.slow(CheatingCoordinator.TestCase)
TestCheatingCoordinator.settings = settings(max_examples=8, stateful_step_count=6, deadline=None)  # type: ignore[attr-defined]
