"""What secure aggregation costs beside Flower's own SecAgg+ functions, in one run.

    python -m benchmarks.secure_aggregation [--quick]

m parameters, k neighbours, n = 5 k devices of which 5 % vanish before they send a vector; thresholds are two thirds.
Client: CPU milliseconds of one device over all stages, from real numbers to masked vector and opened shares.
Flower's client work is done once with its functions in the order of its client mod; ours is the mean of three devices
of a cohort that takes every step. Server: unit costs times how often each is needed, for both, since whole cohorts of
five hundred would take many minutes; a whole cohort of a hundred with drops at every stage is run below the table.
CPU is user plus system time of all threads. This compares speed and bytes only.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common.parameter import ndarray_to_bytes
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from fedrec.privacy.noise import NoiseSource
from fedrec.secagg import _shamir as shamir
from fedrec.secagg._keys import Pair, own_mask_key, pair_mask_key
from fedrec.secagg._masks import Sign, add_masks
from fedrec.secagg.client import Client
from fedrec.secagg.context import Context
from fedrec.secagg.encoding import Encoding, encoding_for
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.server import Server
from fedrec.secagg.terms import SecaggTerms

SIZES, DEGREES = (25_000, 250_000, 2_500_000), (20, 60, 100)
DROPPED, MEASURED = 0.05, 3
#: Flower's defaults: values clipped to +-8, quantised to 22 bits, summed modulo 2^32.
CLIP, TARGET, MODULUS = 8.0, 1 << 22, 1 << 32
Bits = Literal[16, 32]


@dataclass(frozen=True)
class Cost:
    """Of one way at one size."""

    client_ms: float
    server_s: float
    bytes_up: float


def cpu(act: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Least CPU seconds of some repeats, and what the last gave."""
    best, out = float("inf"), None
    gc.collect()
    for _ in range(times):
        started = time.process_time()
        out = act()
        best = min(best, time.process_time() - started)
    return best, out


def server_counts(k: int) -> tuple[int, int, int]:
    """Devices, survivors and dropped ones."""
    n = 5 * k
    gone = round(DROPPED * n)
    return n, n - gone, gone


def threshold(k: int) -> int:
    """Two thirds of a neighbourhood."""
    return -(-2 * (k + 1) // 3)


def flower(m: int, k: int) -> Cost:
    """Flower's functions."""
    others = [generate_key_pairs() for _ in range(k)]
    publics = [public_key_to_bytes(public) for _, public in others]
    values = [np.random.default_rng(0).normal(0, 0.01, m)]
    t = threshold(k)

    def client() -> Any:
        (sk1, _), (sk2, _) = generate_key_pairs(), generate_key_pairs()
        sk1_bytes, sk2_bytes, seed = private_key_to_bytes(sk1), private_key_to_bytes(sk2), os.urandom(32)
        seed_shares = create_shares(seed, t, k + 1)
        key_shares = create_shares(sk1_bytes, t, k + 1)
        sealed = []
        for i, public in enumerate(publics):
            key = generate_shared_key(bytes_to_private_key(sk2_bytes), bytes_to_public_key(public))
            sealed.append((key, encrypt(key, seed_shares[i] + key_shares[i])))
        for key, box in sealed:
            decrypt(key, box)
        vector = factor_combine(1, quantize(parameters_multiply(values, 1.0), CLIP, TARGET))
        shapes = [array.shape for array in vector]
        vector = parameters_addition(vector, pseudo_rand_gen(seed, MODULUS, shapes))
        for public in publics:
            key = generate_shared_key(bytes_to_private_key(sk1_bytes), bytes_to_public_key(public))
            vector = parameters_addition(vector, pseudo_rand_gen(key, MODULUS, shapes))
        payload = [ndarray_to_bytes(array) for array in parameters_mod(vector, MODULUS)]
        return sk1_bytes, seed_shares, key_shares, sum(map(len, payload)), shapes

    client_s, (secret, seed_shares, key_shares, size, shapes) = cpu(client)
    total = pseudo_rand_gen(os.urandom(32), MODULUS, shapes)
    n, survivors, gone = server_counts(k)
    add_s, _ = cpu(lambda: parameters_addition(total, total), 3)
    mask_s, _ = cpu(
        lambda: parameters_subtraction(total, pseudo_rand_gen(os.urandom(32), MODULUS, shapes)), 3
    )
    seed_s, _ = cpu(lambda: combine_shares(seed_shares))
    key_s, _ = cpu(lambda: combine_shares(key_shares))
    agree_s, _ = cpu(
        lambda: generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(publics[0])), 3
    )
    server_s = n * add_s + survivors * (seed_s + mask_s) + gone * (key_s + k * (agree_s + mask_s))
    return Cost(client_s * 1e3, server_s, size)


def cohort(
    n: int, bits: Bits, m: int, neighbours: int | None
) -> tuple[SecaggTerms, list[Identity], Encoding, Context]:
    """n devices with one user each, who send m values and two numbers."""
    identities = [Identity.create() for _ in range(n)]
    members = tuple(Member(name=str(i), key=one.public.hex()) for i, one in enumerate(identities))
    terms = SecaggTerms(
        run="benchmark",
        roster=Roster(members=members),
        bits=bits,
        rotate=bits == 16,
        range_users=n,
        clip_norm=1.0,
        neighbours=neighbours,
    )
    seed = 1 if bits == 16 else None
    encoding = encoding_for(m, bits, users=n, clip_norm=1.0, numbers=2, rotation_seed=seed)
    return (
        terms,
        identities,
        encoding,
        Context(terms.digest.hex(), "train", "refit", 1, 1, "00" * 32, encoding.length),
    )


class Measured:
    """A cohort that takes every step; CPU seconds of some devices and of the server."""

    def __init__(self, n: int, bits: Bits, m: int, drops: dict[str, set[int]] | None = None) -> None:
        self.terms, self.identities, self.encoding, context = cohort(n, bits, m, None if n <= 100 else n - 1)
        self.server = Server(self.terms, context)
        self.parts: dict[str, float] = {}
        self.server_s, self._context, self._drops = 0.0, context, drops or {}
        self._few = [i for i in range(n) if not any(i in gone for gone in self._drops.values())][-MEASURED:]
        rng = np.random.default_rng(0)
        self._values = rng.normal(size=m)
        self._values /= np.linalg.norm(self._values)
        self.total = self._run(n)

    @property
    def client_ms(self) -> float:
        """Mean over the measured devices."""
        return sum(self.parts.values()) / len(self._few) * 1e3

    def _run(self, n: int) -> Any:
        clients = {
            i: Client.begin(self.terms, identity, self._context) for i, identity in enumerate(self.identities)
        }
        source = NoiseSource()
        requests: Any = {key: {} for key in clients}
        gone: set[int] = set()
        server = self.server
        steps = {
            "advertise": server.adverts,
            "share": server.shares,
            "mask": server.masked,
            "confirm": server.signatures,
            "unmask": server.unmask,
        }
        result: Any = None
        self.encoding.encode(self._values, np.zeros(2), source.uniform)  # tables that a device keeps
        for stage, step in steps.items():
            gone |= self._drops.get(stage, set())
            replies = {}
            for i, request in requests.items():
                if i in gone:
                    continue
                started = time.process_time()
                if stage == "advertise":
                    replies[i] = clients[i].advertise()
                elif stage == "mask":
                    vector = self.encoding.encode(self._values, np.array([1.0, 0.5]), source.uniform)
                    encoded = time.process_time()
                    replies[i] = clients[i].mask(request, vector)
                    if i in self._few:
                        self.parts["encode"] = self.parts.get("encode", 0.0) + encoded - started
                        started = encoded
                else:
                    replies[i] = getattr(clients[i], stage)(request)
                if i in self._few:
                    self.parts[stage] = self.parts.get(stage, 0.0) + time.process_time() - started
            started = time.process_time()
            result = step(replies)
            self.server_s += time.process_time() - started
            requests = result
        return result

    def check(self) -> float:
        """Largest difference of the decoded sum from the true one."""
        values, numbers = self.encoding.decode(self.total)
        assert numbers[0] == len(self.server.survivors)
        return float(np.abs(values - len(self.server.survivors) * self._values).max())


def ours(m: int, k: int, bits: Bits) -> tuple[Cost, dict[str, float]]:
    """Our protocol."""
    run = Measured(k + 1, bits, m)
    run.check()
    context, t = run._context, threshold(k)
    n, survivors, gone = server_counts(k)
    total = np.zeros(run.encoding.length, dtype=run.encoding.dtype)
    shares = dict(enumerate(shamir.split(os.urandom(32), range(1, k + 2), t), start=1))
    pair, other = Pair(os.urandom(32)), Pair(os.urandom(32)).public
    identity = run.identities[0]
    signature = identity.sign(b"x")
    verify_s, _ = cpu(lambda: run.terms.roster.verify(0, signature, b"x"), 20)

    def combine() -> bytes | None:
        shamir._weights.cache_clear()
        return shamir.combine_checked(shares, t, lambda secret: True)

    combine_s, _ = cpu(combine, 3)
    add_s, _ = cpu(lambda: np.add(total, total, out=total), 3)
    # Streams are opened many at once, on both sides; each is timed among so many.
    some: list[tuple[bytes, Sign]] = [(os.urandom(32), -1) for _ in range(64)]
    mask_s = cpu(lambda: add_masks(total, some), 2)[0] / len(some)
    seed_s = mask_s + cpu(lambda: own_mask_key(os.urandom(32), context, 0), 20)[0]
    pair_s = mask_s + cpu(lambda: pair_mask_key(pair, other, context, 0, 1), 20)[0]
    server_s = (
        2 * n * verify_s + n * add_s + survivors * (combine_s + seed_s) + gone * (combine_s + k * pair_s)
    )
    parts = {name: seconds / MEASURED * 1e3 for name, seconds in run.parts.items()}
    return Cost(run.client_ms, server_s, total.nbytes), parts


def hundred(m: int) -> None:
    """A whole cohort with devices that vanish at every stage."""
    drops = {
        "advertise": {0}, "share": {1}, "mask": set(range(2, 12)), "confirm": {20}, "unmask": {30},
    }  # fmt: skip
    print(f"\nn = 100, complete graph, {m:,} parameters, 14 devices vanish, some at every stage:")
    for bits in (32, 16):
        run = Measured(100, bits, m, drops)
        parts = ", ".join(f"{name} {1e3 * s / MEASURED:.1f}" for name, s in run.parts.items())
        print(
            f"  {bits} bits: client {run.client_ms:.0f} ms CPU ({parts}), server {run.server_s:.2f} s; "
            f"{len(run.server.survivors)} survivors, sum within {run.check():.1e}"
        )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="25,000 parameters and 20 and 60 neighbours only"
    )
    quick = parser.parse_args().quick
    sizes, degrees = (SIZES[:1], DEGREES[:2]) if quick else (SIZES, DEGREES)
    print("client: CPU ms of a device; server: CPU s for n = 5 k with 5 % dropped (unit costs x counts)\n")
    head = f"{'m':>9} {'k':>4} {'bits':>4} | {'client Flower':>13} {'ours':>7} {'ratio':>6} | "
    print(head + f"{'server Flower':>13} {'ours':>7} {'ratio':>6} | {'bytes per parameter':>20}")
    for m in sizes:
        for k in degrees:
            peer = flower(m, k)
            for bits in (32, 16):
                own, _ = ours(m, k, bits)
                print(
                    f"{m:9,} {k:4} {bits:4} | {peer.client_ms:13,.0f} {own.client_ms:7.1f} "
                    f"{peer.client_ms / own.client_ms:5.1f}x | {peer.server_s:13,.1f} {own.server_s:7.2f} "
                    f"{peer.server_s / own.server_s:5.0f}x | {peer.bytes_up / m:9.2f} {own.bytes_up / m:10.2f}",
                    flush=True,
                )
    hundred(25_000 if quick else 250_000)


if __name__ == "__main__":
    main()
