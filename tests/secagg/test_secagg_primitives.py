"""What secure aggregation is built of: shares of secrets, masks, and the graph of neighbours."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import quick

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg._masks import add_mask, mask
from fedrec.secagg._shamir import ELEMENT_BYTES, PRIME, combine, combine_checked, split
from fedrec.secagg.graph import COMPLETE_UP_TO, degree, neighbours, permutation, threshold

secrets = st.binary(min_size=32, max_size=32)
SECRET = bytes(range(32))
WIDTHS: tuple[Literal[16], Literal[32]] = (16, 32)


def stream(label: str) -> Callable[[int], bytes]:
    """A source of bytes that gives the same ones every time."""
    counter = itertools.count()
    return lambda n: hashlib.shake_256(f"{label} {next(counter)}".encode()).digest(n)


def shares_of(secret: bytes, h: int, t: int) -> dict[int, bytes]:
    return dict(enumerate(split(secret, range(1, h + 1), t, stream("shares")), start=1))


def changed(share: bytes, by: int = 1) -> bytes:
    return ((int.from_bytes(share, "big") + by) % PRIME).to_bytes(ELEMENT_BYTES, "big")


def lagrange(points: dict[int, int], at: int) -> int:
    """The polynomial through all points, straight from the formula."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * (at - other) * pow(x - other, -1, PRIME) % PRIME
        total += y
    return total % PRIME


# Shares ------------------------------------------------------------------------------------------------------


def test_the_field_is_one() -> None:
    """Fermat's test to many bases; a composite passes none but a few of them."""
    assert 2**256 < PRIME < 2**264 == 1 << (8 * ELEMENT_BYTES)
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in range(2, 60))


@quick
@given(secret=secrets, data=st.data())
def test_any_t_shares_give_the_secret(secret: bytes, data: st.DataObject) -> None:
    xs = data.draw(st.lists(st.integers(1, 2**40), min_size=1, max_size=12, unique=True))
    t = data.draw(st.integers(1, len(xs)))
    shares = dict(zip(xs, split(secret, xs, t), strict=True))
    some = data.draw(st.permutations(xs))[: data.draw(st.integers(t, len(xs)))]
    assert combine({x: shares[x] for x in some}, t) == secret


@quick
@given(secret=secrets, guess=secrets, data=st.data())
def test_fewer_shares_fit_any_secret(secret: bytes, guess: bytes, data: st.DataObject) -> None:
    """With t - 1 shares and a guess at the secret the missing share can be made up: nothing contradicts the guess."""
    t = data.draw(st.integers(2, 8))
    shares = dict(enumerate(split(secret, range(1, t + 1), t), start=1))
    missing = data.draw(st.sampled_from(sorted(shares)))
    del shares[missing]
    points = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    made_up = lagrange(points | {0: int.from_bytes(guess, "big")}, missing)
    assert combine(shares | {missing: made_up.to_bytes(ELEMENT_BYTES, "big")}, t) == guess


def test_shares_are_points_of_a_polynomial_of_degree_t_less_one() -> None:
    points = {x: int.from_bytes(share, "big") for x, share in shares_of(SECRET, 9, 5).items()}
    five = {x: points[x] for x in (1, 2, 3, 4, 5)}
    assert [lagrange(five, x) for x in (6, 7, 8, 9)] == [points[x] for x in (6, 7, 8, 9)]
    four = {x: points[x] for x in (1, 2, 3, 4)}
    assert lagrange(four, 5) != points[5]


def test_the_same_secret_is_never_shared_twice_alike() -> None:
    assert not set(split(SECRET, range(1, 6), 3)) & set(split(SECRET, range(1, 6), 3))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zero", "largest"])
def test_the_ends_of_the_range_survive(secret: bytes) -> None:
    assert combine(shares_of(secret, 5, 3), 3) == secret


def test_what_no_secret_can_be_is_none() -> None:
    """With t = 1 a share is the value itself; 2^256 to p - 1 are elements of the field but no 32 bytes."""
    assert combine({1: (2**256 - 1).to_bytes(ELEMENT_BYTES, "big")}, 1) == b"\xff" * 32
    assert combine({1: (2**256).to_bytes(ELEMENT_BYTES, "big")}, 1) is None
    assert combine({1: (PRIME - 1).to_bytes(ELEMENT_BYTES, "big")}, 1) is None


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_share_that_was_changed_gives_another_secret(place: int) -> None:
    shares = shares_of(SECRET, 5, 3)
    assert combine(shares | {place: changed(shares[place])}, 3) != SECRET


def test_only_the_smallest_places_are_used() -> None:
    shares = shares_of(SECRET, 5, 3)
    assert combine(shares | {4: changed(shares[4])}, 3) == SECRET


@pytest.mark.parametrize(
    ("secret", "xs", "t", "reason"),
    [
        (bytes(31), [1, 2], 2, Reason.FORMAT),
        (bytes(33), [1, 2], 2, Reason.FORMAT),
        (SECRET, [0, 1], 2, Reason.FORMAT),
        (SECRET, [1, -1], 2, Reason.FORMAT),
        (SECRET, [1, PRIME], 2, Reason.FORMAT),
        (SECRET, [2, 2, 3], 2, Reason.FORMAT),
        (SECRET, [1, 2], 0, Reason.THRESHOLD),
        (SECRET, [1, 2], 3, Reason.THRESHOLD),
    ],
)
def test_a_split_that_cannot_be_is_refused(secret: bytes, xs: list[int], t: int, reason: Reason) -> None:
    with pytest.raises(AggregationRefused) as error:
        split(secret, xs, t)
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "t", "reason"),
    [
        ({}, 6, Reason.THRESHOLD),
        ({}, 0, Reason.THRESHOLD),
        ({1: bytes(32)}, 3, Reason.FORMAT),
        ({1: bytes(34)}, 3, Reason.FORMAT),
        ({1: PRIME.to_bytes(ELEMENT_BYTES, "big")}, 3, Reason.FORMAT),
        ({0: bytes(ELEMENT_BYTES)}, 3, Reason.FORMAT),
    ],
)
def test_shares_that_are_none_are_refused(change: dict[int, bytes], t: int, reason: Reason) -> None:
    with pytest.raises(AggregationRefused) as error:
        combine(shares_of(SECRET, 5, 3) | change, t)
    assert error.value.reason == reason
    assert SECRET.hex() not in str(error.value)


# Holders who lie ---------------------------------------------------------------------------------------------


def is_right(secret: bytes) -> bool:
    return secret == SECRET


@pytest.mark.parametrize(
    "lie", [changed, lambda share: bytes(33), lambda share: b"\xff" * 33, lambda share: b""]
)
@pytest.mark.parametrize("liars", [1, 2, 3])
def test_up_to_half_the_spare_shares_may_be_wrong(liars: int, lie: Callable[[bytes], bytes]) -> None:
    shares = shares_of(SECRET, 21, 14)
    # Every third of the sets, so that liars sit next to each other, apart, first and last.
    for wrong in itertools.islice(itertools.combinations(shares, liars), 0, None, 3 ** (2 * liars - 2)):
        given_out = shares | {x: lie(shares[x]) for x in wrong}
        assert combine_checked(given_out, 14, is_right) == SECRET


@quick
@given(data=st.data())
def test_wrong_shares_are_put_right_or_nothing_comes(data: st.DataObject) -> None:
    h = data.draw(st.integers(1, 14))
    t = data.draw(st.integers(1, h))
    shares = shares_of(SECRET, h, t)
    wrong = data.draw(st.lists(st.sampled_from(sorted(shares)), unique=True))
    lies = {x: changed(shares[x], data.draw(st.integers(1, 5))) for x in wrong}
    found = combine_checked(shares | lies, t, is_right)
    assert found in (SECRET, None)
    if h >= t + 2 * len(wrong) or (len(wrong) == 1 and h > t):
        assert found == SECRET


def test_liars_who_agree_on_another_secret_are_outvoted() -> None:
    shares, others = shares_of(SECRET, 101, 67), shares_of(bytes(32), 101, 67)
    # Every sixth, so that no run of neighbouring places is free of them.
    together = shares | {x: others[x] for x in range(1, 102, 6)}
    assert combine_checked(together, 67, is_right) == SECRET


@pytest.mark.parametrize("liar", [1, 30, 49, 50])
def test_one_liar_with_one_share_to_spare(liar: int) -> None:
    shares = shares_of(SECRET, 50, 49)
    assert combine_checked(shares | {liar: changed(shares[liar])}, 49, is_right) == SECRET


def test_too_few_or_too_many_wrong_shares_give_nothing() -> None:
    shares = shares_of(SECRET, 5, 3)
    assert combine_checked({}, 1, is_right) is None
    assert combine_checked({x: shares[x] for x in (1, 2)}, 3, is_right) is None
    assert combine_checked(shares | dict.fromkeys((1, 2, 3), bytes(5)), 3, is_right) is None
    assert combine_checked({x: changed(share) for x, share in shares.items()}, 3, is_right) is None


def test_a_place_at_zero_is_not_believed() -> None:
    shares = shares_of(SECRET, 5, 3)
    tried: list[bytes] = []
    forged = {0: bytes(32) + b"\x07"} | shares
    assert combine_checked(forged, 3, lambda secret: tried.append(secret) is not None) is None
    assert (7).to_bytes(32, "big") not in tried


# Masks -------------------------------------------------------------------------------------------------------


def keystream(size: int, bits: int, key: bytes) -> list[int]:
    """AES in counter mode, made of single encrypted counters, as Python's integers."""
    blocks = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    needed = size * bits // 8
    raw = blocks.update(b"".join(i.to_bytes(16, "big") for i in range(-(-needed // 16))))
    step = bits // 8
    return [int.from_bytes(raw[i : i + step], "little") for i in range(0, needed, step)]


def residues(size: int, bits: int, seed: int = 0) -> np.ndarray[Any, Any]:
    words = np.random.default_rng(seed).integers(0, 2**bits, size, dtype=np.uint64)
    return words.astype(f"<u{bits // 8}")


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 33, 32768, 65536, 65537, 200_003])
def test_a_mask_is_the_keystream(bits: Literal[16, 32], size: int) -> None:
    made = mask(size, bits, SECRET)
    assert made.dtype == np.dtype(f"<u{bits // 8}")
    assert made.tolist() == keystream(size, bits, SECRET)


def test_the_keystream_is_the_published_one() -> None:
    """AES-256 of a zero block under a zero key: the hash key of test case 13 in the specification of GCM."""
    assert mask(4, 32, bytes(32)).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@quick
@given(key=secrets, size=st.integers(0, 300), bits=st.sampled_from(WIDTHS), seed=st.integers(0, 2**32))
def test_adding_and_taking_off_is_modular(key: bytes, size: int, bits: Literal[16, 32], seed: int) -> None:
    vector = residues(size, bits, seed)
    total = vector.copy()
    add_mask(total, key, 1)
    expected = [(a + b) % 2**bits for a, b in zip(vector.tolist(), keystream(size, bits, key), strict=True)]
    assert total.tolist() == expected
    add_mask(total, key, -1)
    assert total.tolist() == vector.tolist()


@pytest.mark.parametrize("bits", WIDTHS)
def test_pairwise_masks_cancel_in_the_sum(bits: Literal[16, 32]) -> None:
    n, size = 6, 70_001
    vectors = [residues(size, bits, seed) for seed in range(n)]
    masked = [vector.copy() for vector in vectors]
    for u, v in itertools.combinations(range(n), 2):
        key = hashlib.sha256(f"{u} {v}".encode()).digest()
        add_mask(masked[u], key, 1)
        add_mask(masked[v], key, -1)
    assert all((a != b).mean() > 0.99 for a, b in zip(vectors, masked, strict=True))
    assert sum(masked[1:], start=masked[0]).tolist() == sum(vectors[1:], start=vectors[0]).tolist()


def test_threads_do_not_share_a_buffer() -> None:
    keys = [bytes([i]) * 32 for i in range(8)]
    alone = [mask(300_000, 16, key).tobytes() for key in keys]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert [made.tobytes() for made in pool.map(lambda key: mask(300_000, 16, key), keys)] == alone


def test_no_keystream_stays_behind() -> None:
    from fedrec.secagg import _masks as masks

    mask(100_000, 32, SECRET)
    assert not any(masks._buffer())


def read_only() -> np.ndarray[Any, Any]:
    vector = residues(8, 32)
    vector.flags.writeable = False
    return vector


@pytest.mark.parametrize(
    "vector",
    [
        residues(8, 32).astype(">u4"),
        residues(8, 32).astype(np.int32),
        residues(8, 32).astype(np.uint64),
        residues(8, 32).astype(np.float32),
        residues(8, 32)[::2],
        residues(8, 32).reshape(2, 4),
        read_only(),
    ],
    ids=["big endian", "signed", "64 bits", "float", "strided", "two rows", "read only"],
)
def test_another_kind_of_vector_is_refused_and_left_alone(vector: np.ndarray[Any, Any]) -> None:
    before = vector.tobytes()
    with pytest.raises(AggregationRefused, match="expected") as error:
        add_mask(vector, SECRET, 1)
    assert error.value.reason == Reason.FORMAT
    assert vector.tobytes() == before


@pytest.mark.parametrize(("key", "sign"), [(bytes(16), 1), (b"", 1), (SECRET, 0), (SECRET, 2)])
def test_another_key_or_sign_is_refused(key: bytes, sign: Any) -> None:
    with pytest.raises(AggregationRefused, match="mask key"):
        add_mask(residues(4, 32), key, sign)


# Graph -------------------------------------------------------------------------------------------------------


@quick
@given(n=st.integers(1, 160), half=st.integers(1, 90), seed=st.binary(max_size=40))
def test_a_graph_is_symmetric_regular_and_connected(n: int, half: int, seed: bytes) -> None:
    k = min(2 * half, n - 1)
    near = {place: set(neighbours(place, n, k, seed)) for place in range(n)}
    assert all(len(others) == k and place not in others for place, others in near.items())
    assert all(place in near[other] for place, others in near.items() for other in others)
    assert all(neighbours(place, n, k, seed) == tuple(sorted(near[place])) for place in range(n))
    reached, frontier = {0}, {0}
    while frontier:
        frontier = set().union(*(near[place] for place in frontier)) - reached
        reached |= frontier
    assert reached == set(range(n))


def test_the_seed_draws_the_graph() -> None:
    graphs = [tuple(neighbours(place, 300, 20, seed) for place in range(300)) for seed in (b"a", b"b", b"a")]
    assert graphs[0] == graphs[2] != graphs[1]


def test_pairs_are_neighbours_as_often_as_chance_has_it() -> None:
    """A fixed pair among 60 with k = 12 is joined with chance 12 / 59; four standard errors either way."""
    joined = sum(1 in neighbours(0, 60, 12, bytes([a, b])) for a in range(40) for b in range(100))
    assert abs(joined / 4000 - 12 / 59) < 4 * math.sqrt(12 / 59 * 47 / 59 / 4000)


@pytest.mark.parametrize(("n", "seed"), [(1, b""), (2, b"x"), (1000, b"seed")])
def test_a_permutation_is_one_and_sorts_the_stream(n: int, seed: bytes) -> None:
    raw = hashlib.shake_256(b"fedrec neighbours " + seed).digest(16 * n)
    order = sorted(range(n), key=lambda i: int.from_bytes(raw[16 * i : 16 * i + 16], "big"))
    assert permutation(n, seed) == tuple(order)
    assert sorted(order) == list(range(n))


@pytest.mark.parametrize(("place", "n", "k"), [(-1, 10, 4), (10, 10, 4), (0, 10, 3), (0, 10, -2), (0, 0, 0)])
def test_a_graph_that_cannot_be_is_refused(place: int, n: int, k: int) -> None:
    with pytest.raises(AggregationRefused, match="neighbours of device"):
        neighbours(place, n, k, b"")


@pytest.mark.parametrize("n", [1, 2, 3, 50, COMPLETE_UP_TO])
def test_small_cohorts_are_complete(n: int) -> None:
    assert degree(n) == n - 1
    assert neighbours(0, n, degree(n), b"") == tuple(range(1, n))


def tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    """P(X >= least) of a hypergeometric X, exactly."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, draws - x)
        for x in range(max(least, 0), min(draws, marked) + 1)
    )
    return Fraction(ways, math.comb(population, draws))


def is_enough(n: int, k: int, t: int, part: float, *, active: bool) -> bool:
    """Both bounds of the module's text for one t, in whole numbers."""
    marked = math.ceil(part * n)
    needed = 2 * t - (k + 1) if active else t
    return (
        needed > 0
        and n * tail(n - 1, marked, k, needed) <= Fraction(1, 2**40)
        and n * tail(n - 1, marked, k, k - t + 1) <= Fraction(1, 2**30)
    )


@pytest.mark.parametrize("fraction", [2 / 3, None], ids=["two thirds", "best t"])
@pytest.mark.parametrize("active", [True, False], ids=["active", "semi-honest"])
@pytest.mark.parametrize(
    ("n", "part"), [(100, 0.05), (100, 0.1), (100, 0.2), (333, 0.1), (1000, 0.05), (1000, 0.1)]
)
def test_k_is_the_smallest_that_is_enough(n: int, part: float, active: bool, fraction: float | None) -> None:
    def fits(k: int) -> bool:
        ts = range(2, k + 1) if fraction is None else (min(threshold(k, fraction), k),)
        return any(is_enough(n, k, t, part, active=active) for t in ts)

    k = degree(n, part, part, active=active, fraction=fraction, complete_up_to=2)
    assert fits(k)
    assert not any(fits(smaller) for smaller in range(max(2, k - 12), k, 2))


#: Smallest k, odd ones too, where a device keeps no share of its own secret; from another computation.
FOUND_ELSEWHERE = {
    0.05: ((11, 31, 37), (16, 60, 73)),
    0.1: ((21, 52, 60), (31, 113, 143)),
    0.2: ((41, 109, 134), (61, 340, 559)),
}


@pytest.mark.parametrize("part", sorted(FOUND_ELSEWHERE))
@pytest.mark.parametrize("active", [False, True], ids=["semi-honest", "active"])
def test_the_table_of_degrees(part: float, active: bool) -> None:
    for n, other in zip((100, 1000, 10_000), FOUND_ELSEWHERE[part][active], strict=True):
        k = degree(n, part, part, active=active, fraction=None, complete_up_to=2)
        assert k % 2 == 0
        assert other <= k <= other + 7


@pytest.mark.parametrize("n", [101, 102, 150, 300, 1000, 10_000])
def test_the_threshold_in_use_meets_the_bounds_at_the_degree_in_use(n: int) -> None:
    k = degree(n)
    assert k < n - 1
    assert is_enough(n, k, threshold(k), 0.1, active=True)


@quick
@given(
    n=st.integers(101, 400),
    corrupt=st.floats(0, 0.99),
    drop=st.floats(0, 0.99),
    fraction=st.sampled_from([2 / 3, None]),
)
def test_a_degree_is_even_or_complete(n: int, corrupt: float, drop: float, fraction: float | None) -> None:
    k = degree(n, corrupt, drop, fraction=fraction)
    assert 2 <= k <= n - 1
    assert k % 2 == 0 or k == n - 1


def test_what_no_graph_can_stand_is_complete() -> None:
    assert [degree(n, 0.45, 0.45) for n in (101, 102, 1000)] == [100, 101, 999]


@pytest.mark.parametrize(
    ("n", "corrupt", "drop"), [(0, 0.1, 0.1), (200, 1.0, 0.1), (200, 0.1, -0.1), (5, math.nan, 0)]
)
def test_a_degree_of_what_is_no_part_is_refused(n: int, corrupt: float, drop: float) -> None:
    with pytest.raises(AggregationRefused, match="parts from 0"):
        degree(n, corrupt, drop)


@quick
@given(k=st.integers(1, 600), fraction=st.floats(0.5, 1), corrupted=st.integers(0, 100))
def test_a_threshold_is_the_smallest_that_is_safe(k: int, fraction: float, corrupted: int) -> None:
    # A product next to a whole number may be on either side of it.
    assume(abs(fraction * (k + 1) - round(fraction * (k + 1))) > 1e-6 or fraction == 1)

    def safe(t: int) -> bool:
        return t >= 2 and t >= fraction * (k + 1) and 2 * t > k + 1 + corrupted

    if not safe(k + 1):
        with pytest.raises(AggregationRefused) as error:
            threshold(k, fraction, corrupted)
        assert error.value.reason == Reason.THRESHOLD
    else:
        t = threshold(k, fraction, corrupted)
        assert safe(t) and not safe(t - 1) and t <= k + 1


@pytest.mark.parametrize(("k", "t"), [(1, 2), (2, 2), (8, 6), (20, 14), (99, 67), (100, 68)])
def test_two_thirds_of_the_holders(k: int, t: int) -> None:
    assert threshold(k) == t


@pytest.mark.parametrize(("k", "corrupted"), [(0, 0), (9, 10), (9, -1)])
def test_a_threshold_that_cannot_be_is_refused(k: int, corrupted: int) -> None:
    with pytest.raises(AggregationRefused):
        threshold(k, corrupted=corrupted)
