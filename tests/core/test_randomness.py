"""Counter-based draws: streams never meet, look random, and stay what they are from version to version."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from properties import quick

from fedrec.core.randomness import Purpose, bits, key, normal, uniform, user_keys

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
user_ids = st.integers(0, 2**62)


def splitmix(x: int) -> int:
    """The finaliser in Python's own integers, from the published constants."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def chain(seed: int, *parts: int) -> int:
    state = seed & MASK
    for part in parts:
        state = splitmix((state * GAMMA + part + GAMMA) & MASK)
    return state


def test_no_two_streams_share_a_draw() -> None:
    keys = [
        user_keys(key(seed, purpose, round_), np.arange(60))
        for seed, purpose, round_ in product((0, 1, 2, -1), Purpose, (0, 1, 2, 3, 1000))
    ]
    draws = bits(np.concatenate(keys), 8)
    # 76,800 different numbers of 64 bits meet by chance once in 6 billion tries.
    assert len(np.unique(draws)) == draws.size


def test_purposes_are_different_numbers() -> None:
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose)


@given(seed=st.integers(-(2**63), 2**63), round_=st.integers(0, 2**40), user=user_ids, n=st.integers(1, 5))
@quick
def test_draws_are_the_published_hash_of_their_components(seed: int, round_: int, user: int, n: int) -> None:
    base = key(seed, Purpose.SHUFFLE, round_)
    drawn = bits(user_keys(base, np.array([user])), n)[0]
    assert [int(d) for d in drawn] == [chain(seed, 4, round_, user, counter) for counter in range(n)]


@given(users=st.lists(user_ids, min_size=1, max_size=20, unique=True), data=st.data())
@quick
def test_a_user_draws_the_same_in_any_company(users: list[int], data: st.DataObject) -> None:
    base = key(1, Purpose.NEGATIVE, 2)
    together = bits(user_keys(base, np.array(users)), 6)
    order = data.draw(st.permutations(range(len(users))))
    shuffled = bits(user_keys(base, np.array(users)[list(order)]), 6)
    np.testing.assert_array_equal(shuffled, together[list(order)])
    alone = bits(user_keys(base, np.array(users[:1])), 6)
    np.testing.assert_array_equal(alone[0], together[0])
    # Asking for fewer draws gives the first of them.
    np.testing.assert_array_equal(bits(user_keys(base, np.array(users)), 2), together[:, :2])


def test_uniforms_are_uniform_and_independent() -> None:
    u = uniform(user_keys(key(5, Purpose.COHORT, 9), np.arange(2000)), 50)
    assert u.min() >= 0.0 and u.max() < 1.0
    n = u.size
    # Five standard errors each: mean 1/2, variance 1/12, all of a hundred cells equally full.
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    cells = np.histogram(u, bins=100, range=(0, 1))[0]
    assert abs(((cells - n / 100) ** 2 / (n / 100)).sum() - 99) < 5 * np.sqrt(2 * 99)
    # Neighbouring counters and neighbouring users.
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 5 / np.sqrt(n)


def test_normals_are_standard_normal() -> None:
    z = normal(user_keys(key(5, Purpose.INIT_LOCAL), np.arange(2000)), 50)
    n = z.size
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert abs((np.abs(z) < 1.959964).mean() - 0.95) < 5 * np.sqrt(0.95 * 0.05 / n)


def test_pinned_values() -> None:
    """Whoever changes these breaks the repetition of every recorded run: it needs a new major version."""
    base = key(7, Purpose.NEGATIVE, 3)
    assert int(base) == 3347589617653361430
    users = user_keys(base, np.array([0, 1, 6039, 2**40]))
    assert users.tolist() == [
        3937462269557659948,
        2535756567824504613,
        5340536216380184610,
        14978604930121595657,
    ]
    assert bits(users, 2).tolist()[:2] == [
        [7154134565591639149, 3420939610219805756],
        [14750727968825426162, 13820460710269965711],
    ]
    assert [x.hex() for x in uniform(users, 1)[:2, 0]] == ["0x1.8d225deec5bb8p-2", "0x1.996a39deb0848p-1"]
    np.testing.assert_allclose(normal(users, 2)[0], [0.8708412498712593, -0.4236210466877401], rtol=1e-12)
    assert [(purpose.name, int(purpose)) for purpose in list(Purpose)[:5]] == [
        ("INIT_SHARED", 1), ("INIT_LOCAL", 2), ("COHORT", 3), ("SHUFFLE", 4), ("NEGATIVE", 5),
    ]  # fmt: skip
