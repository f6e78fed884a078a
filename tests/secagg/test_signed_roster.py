"""A signed roster: what one run, sum and attempt were signed for, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.graph import degree
from fedrec.secagg.roster import Identity, Roster
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.signed_roster import read_roster, roster_of, sign_roster
from fedrec.secagg.terms import LIVENESS, CohortTerms, SecaggTerms, parse_terms

SIGNER = Identity.create()
KEYS = [Identity.create().public for _ in range(12)]


def terms_with(**fields: Any) -> CohortTerms:
    rules = {"run": "run", "roster": Roster(members=()), "range_users": 50, "schedule": Schedule(guarded=())}
    names = {"max_nodes", "max_users", "dropout"}
    own = {name: fields[name] for name in names & set(fields)}
    rules |= {name: value for name, value in fields.items() if name not in names}
    return CohortTerms(**({"signer": SIGNER.public.hex(), "max_nodes": 12} | own), rules=SecaggTerms(**rules))


TERMS = terms_with(max_users=4)
MEMBERS = st.lists(st.integers(1, 4), min_size=3, max_size=12)


def signed(
    users: list[int], label: str = "train/refit/1", attempt: int = 1, run: str = "run"
) -> dict[str, Any]:
    roster = roster_of(zip(KEYS, users, strict=False))
    return sign_roster(SIGNER, roster, run=run, label=label, attempt=attempt)


@given(users=MEMBERS)
def test_what_was_signed_is_what_is_read(users: list[int]) -> None:
    roster = read_roster(TERMS, signed(users), label="train/refit/1", attempt=1)
    assert [bytes.fromhex(each.key) for each in roster.members] == KEYS[: len(users)]
    assert [each.users for each in roster.members] == users
    terms = TERMS.of(roster)
    assert terms.digest != TERMS.of(roster_of(zip(KEYS[1:], [*users[1:], 1], strict=False))).digest
    assert (terms.run, terms.min_nodes, terms.schedule) == ("run", 3, TERMS.rules.schedule)


@given(users=MEMBERS, data=st.data())
def test_one_changed_bit_is_refused(users: list[int], data: st.DataObject) -> None:
    arrays = signed(users)
    name = data.draw(st.sampled_from(sorted(arrays)))
    raw = bytearray(arrays[name].tobytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    arrays[name] = np.frombuffer(bytes(raw), arrays[name].dtype).reshape(arrays[name].shape)
    with pytest.raises(AggregationRefused) as refused:
        read_roster(TERMS, arrays, label="train/refit/1", attempt=1)
    assert refused.value.reason in (Reason.SIGNATURE, Reason.USERS)
    assert name == "users" or refused.value.reason is Reason.SIGNATURE


@given(
    users=MEMBERS,
    label=st.sampled_from(["train/refit/1", "train/refit/2", "evaluate/refit/1", "train/tuning/1"]),
    attempt=st.integers(1, 3),
    run=st.sampled_from(["run", "ru", "another"]),
)
def test_a_roster_is_for_one_run_sum_and_attempt(
    users: list[int], label: str, attempt: int, run: str
) -> None:
    arrays = signed(users, label, attempt, run)
    if (label, attempt, run) == ("train/refit/1", 1, "run"):
        assert len(read_roster(TERMS, arrays, label="train/refit/1", attempt=1)) == len(users)
        return
    with pytest.raises(AggregationRefused, match="not signed by the key of this job"):
        read_roster(TERMS, arrays, label="train/refit/1", attempt=1)


ARRAYS = hnp.arrays(
    st.sampled_from(["uint8", "uint32", "int64", "float32"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=65),
)
NAMES = st.sampled_from(["keys", "users", "signature", "other"])


@given(arrays=st.dictionaries(NAMES, ARRAYS | st.none() | st.binary(), max_size=4))
def test_anything_else_is_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(AggregationRefused):
        read_roster(TERMS, arrays, label="train/refit/1", attempt=1)


def test_one_key_twice_is_refused_though_it_is_signed() -> None:
    arrays = signed([1, 1, 1])
    keys = np.repeat(arrays["keys"][:1], 3, axis=0)
    with pytest.raises(AggregationRefused, match="one key twice"):
        roster_of((row.tobytes(), 1) for row in keys)


def test_terms_that_do_not_hold_together() -> None:
    member = roster_of([(KEYS[0], 1)])
    for changes, message in (
        ({"roster": member}, "expected an empty one"),
        ({"max_nodes": 51}, "expected at least min_nodes"),
        ({"min_nodes": 13}, "expected at least min_nodes"),
        ({"schedule": Schedule()}, "are guarded"),
        ({"dropout": 1.0}, "less than 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            terms_with(**changes)
    with pytest.raises(AggregationRefused, match="2 devices: expected 3 to 12"):
        TERMS.of(roster_of(zip(KEYS[:2], [1, 1], strict=True)))
    with pytest.raises(AggregationRefused, match="range_users is 50"):
        TERMS.of(roster_of(zip(KEYS[:3], [20, 20, 20], strict=True)))


def test_terms_survive_json_and_neighbours_follow_the_dropout_that_is_expected() -> None:
    few, many = (terms_with(max_nodes=1000, range_users=1000, dropout=each) for each in (0.05, 0.2))
    assert parse_terms(many.model_dump(mode="json")) == many
    roster = roster_of((k.to_bytes(32, "big"), 1) for k in range(1000))
    degrees = [each.of(roster).degree(1000) for each in (few, many)]
    assert degrees == [degree(1000, drop=each.dropout, eta=LIVENESS) for each in (few, many)]
    assert degrees[0] < degrees[1] < 999


def test_one_device_is_one_user_unless_the_terms_allow_for_sites() -> None:
    for users, terms in (([1, 1, 2], terms_with()), ([1, 1, 5], TERMS), ([1, 0, 1], TERMS)):
        with pytest.raises(AggregationRefused, match="speaks for") as refused:
            read_roster(terms, signed(users), label="train/refit/1", attempt=1)
        assert refused.value.reason is Reason.USERS
