"""Less on the wire: sums stay sums, no one's data chooses what is sent, what is left out is not lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flower_helpers import lay_out
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_coordinator import FaultyExchange, run

from fedrec.core.errors import ConfigError, ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.core.stage import RoundContext
from fedrec.core.updates import BlockSpec, Dense, Layout, State, Updates, UpdateSum
from fedrec.privacy.clipping import Clip, add_clipped
from fedrec.rounds.build import clear_chain
from fedrec.rounds.chain import Chain, NodeRound
from fedrec.rounds.compression import (
    RATE,
    SENT,
    Compression,
    Feedback,
    Project,
    Quantise,
    Quantised,
    choose_rows,
    note_rows,
    quantise,
    sketched,
)
from fedrec.rounds.formats import LevelsFormat
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.rounds.shards import Rows, read_rows, spell_rows
from fedrec_client.node.node_folder import open_node
from fedrec_simulations.experiments.config import parse_config

ITEMS, D = 40, 6
WHOLE = Layout({"table": BlockSpec((ITEMS, D)), "bias": BlockSpec((ITEMS,)), "head": BlockSpec((3, 5))})
ROUNDS = RoundSettings(rounds=4)
NORMAL = np.random.default_rng(0).normal


def some(users: int, seed: int = 0, scale: float = 1.0) -> Updates:
    rng = np.random.default_rng(seed)
    blocks = {
        name: Dense(scale * rng.normal(size=(users, *spec.shape))) for name, spec in WHOLE.blocks.items()
    }
    return Updates(blocks, users, np.zeros(users), np.ones(users))


def node_round(
    own: NodeSettings, kept: State, round_: int, rows: np.ndarray | None = None, chain: Chain | None = None
) -> NodeRound:
    """A round on a node under these settings, whose stages remember `kept` of its users."""
    chain = chain or clear_chain(own, gradient=True)
    said = {} if rows is None else {Rows.name: spell_rows(rows, ITEMS)}
    named = {f"{Feedback.name}/{name}": values for name, values in kept.items()}
    return NodeRound(chain, chain.context(WHOLE, ITEMS, round_, said), WHOLE, named)


def vectors(updates: Updates) -> np.ndarray:
    return np.stack([updates.vector(user, WHOLE) for user in range(updates.n_users)])


# The public maps -------------------------------------------------------------------------------------------


@given(st.integers(1, D - 1), st.integers(0, 99), st.integers(1, 9))
def test_a_sketch_of_a_sum_is_the_sum_of_sketches_and_never_longer(rank: int, seed: int, round_: int) -> None:
    layout = sketched(WHOLE, ITEMS, rank, seed, round_)
    assert layout.size == ITEMS * rank + ITEMS + 15
    rng = np.random.default_rng(seed)
    one, other = ({n: rng.normal(size=s.shape) for n, s in WHOLE.blocks.items()} for _ in range(2))
    both = {name: one[name] + other[name] for name in one}
    sent = layout.flatten(one) + layout.flatten(other)
    np.testing.assert_allclose(sent, layout.flatten(both), atol=1e-12)
    assert np.linalg.norm(layout.flatten(one)) <= np.linalg.norm(WHOLE.flatten(one)) * (1 + 1e-12)
    # What arrives, sent again, is the same: sums can be packed and unpacked on their way.
    np.testing.assert_allclose(layout.flatten(layout.unflatten(sent)), sent, atol=1e-12)


def test_sketches_turn_so_that_every_direction_is_heard() -> None:
    blocks = {name: NORMAL(size=spec.shape) for name, spec in WHOLE.blocks.items()}
    heard = [sketched(WHOLE, ITEMS, 2, 0, t) for t in range(1, 1501)]
    mean = np.mean([layout.unflatten(layout.flatten(blocks))["table"] for layout in heard], axis=0)
    np.testing.assert_allclose(mean * D / 2, blocks["table"], atol=0.25)  # d / r times it is unbiased
    same = sketched(WHOLE, ITEMS, 2, 0, 7).blocks["table"].basis
    assert same is not None and np.array_equal(same, heard[6].blocks["table"].basis)


@given(st.integers(1, 60), st.floats(0.05, 0.95), st.integers(0, 99))
def test_rows_travel_as_one_bit_each(n_items: int, part: float, seed: int) -> None:
    rows = choose_rows({}, n_items, part, 1)
    assert np.array_equal(read_rows(spell_rows(rows, n_items), n_items, part), rows)
    for wrong in ("", "zz", None, spell_rows(rows, n_items) + "00", "00" * -(-n_items // 8)):
        with pytest.raises(ProtocolError, match="rows"):
            read_rows(wrong, n_items, part)
    with pytest.raises(ProtocolError, match="no stage"):
        clear_chain(NodeSettings(), gradient=True).context(WHOLE, ITEMS, 1, {Rows.name: "00"})


def test_rows_that_move_come_often_and_none_is_forgotten() -> None:
    server: State = {}
    speed = np.where(np.arange(ITEMS) < 10, 5.0, 0.2)
    speed[39] = 0.0
    turns, since = np.zeros(ITEMS), np.zeros(ITEMS)
    for round_ in range(1, 301):
        rows = choose_rows(server, ITEMS, 0.2, round_)
        assert len(rows) == 8 and (np.diff(rows) > 0).all()
        since += speed
        total = UpdateSum({"table": np.zeros((ITEMS, D))})
        total.blocks["table"][rows, 0] = since[rows]
        server = note_rows(server, total, ITEMS, rows, round_)
        since[rows] = 0
        turns[rows] += 1
    assert set(server) == {RATE, SENT}
    assert turns[:10].min() > 3 * turns[10:].max() and turns.min() >= 2


# Few bits --------------------------------------------------------------------------------------------------

VALUES = arrays(np.float64, st.integers(0, 70), elements=st.floats(-9, 9, allow_subnormal=False))


@given(VALUES, st.sampled_from([4, 8]), st.integers(0, 99))
def test_values_are_off_by_less_than_a_step_and_survive_the_wire(
    values: np.ndarray, bits: int, seed: int
) -> None:
    found = quantise(values, bits, np.random.default_rng(seed).random(len(values)))
    assert np.abs(found.values() - values).max(initial=0) <= float(found.scale) * (1 + 1e-5) + 1e-37
    sent = found.pack()
    assert sent["levels"].nbytes == -(-len(values) * bits // 8)
    context = RoundContext(1, layout=Layout({"values": BlockSpec(values.shape)}))
    assert sent["levels"].nbytes + 4 == LevelsFormat(None, Quantise(bits)).payload(context)
    back = Quantised.unpack(sent, len(values), bits)
    np.testing.assert_array_equal(back.values(), found.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_right_on_average(bits: int) -> None:
    values, rng = NORMAL(size=30), np.random.default_rng(1)
    mean = np.mean([quantise(values, bits, rng.random(30)).values() for _ in range(4000)], axis=0)
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(mean, values, atol=5 * step / 2 / 4000**0.5)
    fixed = quantise(values, bits, np.full(30, 0.0)).values()  # rounding down is not
    assert np.abs(fixed - values).max() > 10 * step / 2 / 4000**0.5


@given(VALUES, st.floats(0.01, 5), st.integers(0, 99))
def test_rounding_never_leads_beyond_the_bound(values: np.ndarray, bound: float, seed: int) -> None:
    values = values * min(1.0, bound / max(float(np.linalg.norm(values)), 1e-12))
    found = quantise(values, 4, np.random.default_rng(seed).random(len(values)), bound)
    assert np.linalg.norm(found.values()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a | {"levels": a["levels"][:-1]},
        lambda a: a | {"levels": a["levels"].astype(np.int8)},
        lambda a: a | {"scale": np.array([np.nan], dtype=np.float32)},
        lambda a: a | {"scale": np.array([-1], dtype=np.float32)},
        lambda a: a | {"scale": np.ones(2, dtype=np.float32)},
    ],
)
def test_what_is_not_a_packed_vector_is_refused(spoil: object) -> None:
    sent = quantise(NORMAL(size=9), 4, np.zeros(9)).pack()
    with pytest.raises(ProtocolError):
        Quantised.unpack(spoil(sent), 9, 4)  # type: ignore[operator]


# A device --------------------------------------------------------------------------------------------------


def test_with_nothing_left_out_sums_are_those_of_clipping() -> None:
    updates, users = some(5), np.arange(5)
    whole, other = UpdateSum(WHOLE.zeros()), UpdateSum(WHOLE.zeros())
    add_clipped(whole, updates, 3.0)
    alone = replace(clear_chain(NodeSettings(), gradient=True), stages=(Clip(3.0), Project()))
    node_round(NodeSettings(), {}, 1, chain=alone).add(other, updates, users, users)
    for name, values in whole.blocks.items():
        np.testing.assert_allclose(other.blocks[name], values, atol=1e-12)
    assert dict(other.numbers()) == pytest.approx(dict(whole.numbers()))


@settings(max_examples=20)
@given(st.sampled_from([None, 4, 8]), st.sampled_from([None, 2]), st.integers(0, 9))
def test_what_a_device_kept_and_what_it_sent_is_all_it_learned(
    bits: int | None, rank: int | None, seed: int
) -> None:
    compression = Compression(rows=0.3, rank=rank, feedback=True, bits=bits)  # type: ignore[arg-type]
    own = NodeSettings(seed=seed, compression=compression)
    kept: State = {name: np.zeros((3, *WHOLE.blocks[name].shape)) for name in ("table", "bias")}
    users, server = np.arange(3), {}
    learned, sent = {n: np.zeros(s.shape) for n, s in WHOLE.blocks.items()}, WHOLE.zeros()
    for round_ in range(1, 6):
        rows = choose_rows(server, ITEMS, 0.3, round_)
        updates, total = some(3, seed + round_), UpdateSum(WHOLE.zeros())
        node_round(own, kept, round_, rows).add(total, updates, users, users)
        server = note_rows(server, total, ITEMS, rows, round_)
        updates.add_into(learned, np.ones(3))
        for name in sent:
            sent[name] += total.blocks[name]
    for name in kept:
        assert np.abs(kept[name]).max() > 0.1
        np.testing.assert_allclose(sent[name] + kept[name].sum(axis=0), learned[name], atol=1e-9)


def test_what_was_kept_is_clipped_with_what_is_new() -> None:
    compression = Compression(rows=0.5, feedback=True)
    rows = np.arange(20)
    own = NodeSettings(compression=compression, clip_norm=1.0)
    kept: State = {name: np.full((1, *WHOLE.blocks[name].shape), 50.0) for name in ("table", "bias")}
    total = UpdateSum(WHOLE.zeros())
    node_round(own, kept, 1, rows).add(total, some(1), np.arange(1), np.arange(1))
    assert np.sqrt(sum((v**2).sum() for v in total.blocks.values())) <= 1 + 1e-9 and total.clipped == 1


# Whole runs ------------------------------------------------------------------------------------------------

WAYS = {
    "rank": Compression(rank=2),
    "rows": Compression(rows=0.5),
    "feedback": Compression(rows=0.5, feedback=True),
    "bits": Compression(bits=8),
    "all": Compression(rank=2, rows=0.5, feedback=True, bits=4),
}


def bytes_up(folder: Path) -> list[float]:
    lines = (folder / "coordinator" / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["bytes_up_per_user"] for line in lines]


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, way: str) -> None:
    whole, killed = (
        lay_out(tmp_path / name, 3, ROUNDS, compression=WAYS[way]) for name in ("whole", "killed")
    )
    expected = run(whole, FaultyExchange(whole))

    def kill(request: Request, reply: Reply) -> Reply:
        if request.kind == "train" and request.round == 3:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(killed, FaultyExchange(killed, {"2": kill}))
    resumed = run(killed, FaultyExchange(killed))
    for name, values in expected.shared.items():
        np.testing.assert_array_equal(resumed.shared[name], values)
    plain = lay_out(tmp_path / "plain", 3, ROUNDS)
    assert any(
        not np.array_equal(run(plain, FaultyExchange(plain)).shared[name], values)
        for name, values in expected.shared.items()
    )
    assert max(bytes_up(whole)) < min(bytes_up(plain))


@pytest.mark.parametrize("way", ["rank", "feedback"])
def test_sums_are_the_same_under_secure_aggregation(tmp_path: Path, way: str) -> None:
    clear = lay_out(tmp_path / "clear", 3, ROUNDS, compression=WAYS[way])
    secure = lay_out(tmp_path / "secure", 3, ROUNDS, secure=True, compression=WAYS[way])
    one, other = run(clear, FaultyExchange(clear)), run(secure, FaultyExchange(secure))
    for name, values in one.shared.items():
        np.testing.assert_allclose(other.shared[name], values, atol=1e-4)


def test_a_node_of_one_user_sends_packed_levels(tmp_path: Path) -> None:
    whole = lay_out(tmp_path / "probe", 1, ROUNDS)
    n_users = open_node(whole / "nodes" / "0")._split.train.n_users
    folder = lay_out(tmp_path / "run", n_users, ROUNDS, compression=Compression(bits=4))
    seen: list[int] = []

    def look(request: Request, reply: Reply) -> Reply:
        if request.kind == "train":
            assert set(reply.arrays) == {"levels", "scale"}
            seen.append(sum(values.nbytes for values in reply.arrays.values()))
        return reply

    together = lay_out(tmp_path / "together", 1, ROUNDS, compression=Compression(bits=4))
    alone = run(folder, FaultyExchange(folder, {"0": look}))
    assert seen == bytes_up(folder) and len(seen) == 4
    # Whoever hosts them, the same users send the same levels.
    for name, values in run(together, FaultyExchange(together)).shared.items():
        np.testing.assert_allclose(values, alone.shared[name], atol=2e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"kind": "ease"}, "federation": {"compression": {"rank": 4}}}, "not gradients"),
        (
            {"federation": {"compression": {"bits": 8}, "clip_norm": 1.0}, "privacy": {"unit": "none"}},
            "secagg.bits",
        ),
        (
            {"federation": {"compression": {"rows": 0.1}}, "privacy": {"unit": "user", "epsilon": 8.0}},
            "rank alone",
        ),
        ({"federation": {"compression": {"feedback": True}}}, "rows or rank"),
        ({"federation": {"compression": {"bits": 5}}}, "bits"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: State, problem: str) -> None:
    base = {
        "model": {"kind": "mf"},
        "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
    }
    with pytest.raises(ConfigError, match=problem):
        parse_config(base | change, ())
