"""Where correlated noise wins: error of independent noise and of banded matrix factorisation at the same epsilon.

    python -m benchmarks.correlated_noise

User-level privacy, trust "central", T rounds, cohorts of m = qN users, delta = N^-1.1. Noise multipliers are
calibrated by the accountants that runs use; nothing is trained. Four ways with cohorts of the same size:

    secret draws   independent: every user is drawn in every round with probability q, which amplifies
                   banded: groups take turns, users are drawn in their turn with probability q s; best s of `CYCLES`
    public cohorts independent, banded: 1/q groups take turns, so a user is in T q rounds; no amplification is claimed

Error: expected squared error of all prefix sums of the released sums together, per value and over m^2 C^2: the sum
over t of E (noise in the sum of rounds 1 to t)^2. In brackets noise to signal: L2 norm of the noise in the sum of all
rounds, for P = 10,000 values, over the largest sum that can be, T m C. About two minutes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from fedrec.privacy.accounting import GaussianRelease, calibrate
from fedrec.privacy.mechanisms.banded import inverse, optimal_coefficients, squared_error, workload

PARAMETERS = 10_000
CYCLES = (2, 5, 10, 20, 50, 200)


@dataclass(frozen=True)
class Federation:
    """What is compared under.

    Attributes:
        population: N.
        rounds: T.
        rate: q.
        epsilon: the target.
    """

    population: int
    rounds: int
    rate: float
    epsilon: float

    @property
    def cohort(self) -> float:
        """m."""
        return self.rate * self.population


#: Population and epsilon at T = 200 and q = 5 %, then rounds and cohorts at one population.
BY_POPULATION = [
    Federation(population, 200, 0.05, epsilon)
    for population in (1_000, 30_000, 1_000_000)
    for epsilon in (0.5, 2.0, 8.0, 16.0)
]
BY_COHORT = [
    Federation(30_000, rounds, rate, epsilon)
    for rounds, rate in ((200, 0.005), (200, 0.2), (1_000, 0.05))
    for epsilon in (2.0, 8.0)
]


@dataclass(frozen=True)
class Noise:
    """One way to add noise, calibrated.

    Attributes:
        cycle: s, groups that take turns; 1: none.
        bands: b; 1: independent.
        multiplier: z.
        error: total squared error of the prefix sums over m^2.
        noise_to_signal: of the sum of all rounds.
    """

    cycle: int
    bands: int
    multiplier: float
    error: float
    noise_to_signal: float


def noise(given: Federation, cycle: int, bands: int, *, secret: bool) -> Noise:
    """What a way to add noise comes to.

    Args:
        given: the federation and the target.
        cycle: s; a user may be in ceil(T / s) rounds.
        bands: b, at most s.
        secret: amplification by sampling is claimed.
    """
    turns, rate = math.ceil(given.rounds / cycle), min(1.0, given.rate * cycle) if secret else 1.0
    z = calibrate(
        lambda z: [GaussianRelease(z, turns, rate)], given.epsilon, given.population**-1.1, rough=turns > 200
    )
    c = np.array(optimal_coefficients(min(bands, given.rounds), given.rounds, cycle))
    last = np.convolve(workload(given.rounds), inverse(c, given.rounds))[: given.rounds]
    in_the_sum = float(np.linalg.norm(last)) * math.sqrt(PARAMETERS)
    return Noise(
        cycle,
        bands,
        z,
        z * z * squared_error(c, given.rounds) / given.cohort**2,
        z * in_the_sum / (given.rounds * given.cohort),
    )


def ways(given: Federation) -> dict[str, tuple[Noise, Noise]]:
    """Independent and banded noise, with secret draws and with public cohorts."""
    turns = round(1 / given.rate)
    cycles = [s for s in CYCLES if s * given.rate <= 1.0]
    best = min((noise(given, s, s, secret=True) for s in cycles), key=lambda each: each.error)
    return {
        "secret": (noise(given, 1, 1, secret=True), best),
        "public": (noise(given, turns, 1, secret=False), noise(given, turns, turns, secret=False)),
    }


def rows(settings: Sequence[Federation]) -> Iterator[list[str]]:
    """One for each setting."""
    for given in settings:
        print(given, file=sys.stderr)
        row = [f"{given.population:,}", str(given.rounds), f"{given.rate:g}", f"{given.epsilon:g}"]
        for kind, (alone, banded) in ways(given).items():
            row += [f"{each.error:.3g} ({each.noise_to_signal:.2g})" for each in (alone, banded)]
            row.append(f"{banded.error / alone.error:.2f}")
            if kind == "secret":
                row.append(str(banded.cycle))
        yield row


def main() -> None:
    table = Table(title=f"error of all prefix sums (noise to signal of the last one, {PARAMETERS:,} values)")
    for heading in ("N", "T", "q", "epsilon", "secret, independent", "secret, banded", "ratio", "s"):
        table.add_column(heading, justify="right")
    for heading in ("public, independent", "public, banded", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows([*BY_POPULATION, *BY_COHORT]):
        table.add_row(*row)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
