"""When a stage closes before its deadline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedrec_server.rounds.cohorts import LEAST_PATIENCE, Patience

COUNTS = st.integers(1, 10_000)


@given(COUNTS, st.floats(0, 1e5))
def test_without_patience_settings_a_stage_waits_for_all(asked: int, passed: float) -> None:
    assert all(Patience().seconds(asked, missing, passed) is None for missing in (1, asked))


@given(COUNTS, COUNTS, st.floats(0, 0.5), st.floats(0, 10), st.floats(0, 1e5))
def test_no_more_than_the_agreed_part_is_left_behind(
    asked: int, missing: int, part: float, factor: float, passed: float
) -> None:
    found = Patience(part, factor).seconds(asked, missing, passed)
    assert (found is not None) == (missing <= part * asked)
    if found is not None:
        assert found >= passed + LEAST_PATIENCE and found >= factor * passed
