"""What carrying sums by integers costs in accuracy: the relative L2 error of the mean of 100 clients' updates.

    python -m benchmarks.secagg_accuracy

Updates have norm C = 1 and are Gaussian, heavy-tailed (Student's t with 2 degrees of freedom), or non-zero in 50 of
4,096 item rows. Clients agree to a degree: sqrt(rho) of what all have in common and sqrt(1 - rho) of their own. The
last two columns are what not to do: a modulus sized for clients that are independent, which wraps around as soon as
they agree, at any width; and 16 bits without a rotation, sized so that nothing wraps. Takes a few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.privacy.noise import NoiseSource
from fedrec.secagg.encoding import Encoding, encoding_for

CLIENTS, ROWS, WIDTH, TOUCHED = 100, 4096, 8, 50
SIZE = ROWS * WIDTH
CORRELATIONS = (0.0, 0.3, 0.9)
SEED = 7
Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]


def gaussian(rng: np.random.Generator, n: int) -> Floats:
    """[n, SIZE]"""
    return rng.normal(size=(n, SIZE))


def heavy_tailed(rng: np.random.Generator, n: int) -> Floats:
    """[n, SIZE]"""
    return rng.standard_t(2, size=(n, SIZE))


def item_rows(rng: np.random.Generator, n: int) -> Floats:
    """[n, SIZE]"""
    out = np.zeros((n, ROWS, WIDTH))
    for each in out:
        each[rng.choice(ROWS, TOUCHED, replace=False)] = rng.normal(size=(TOUCHED, WIDTH))
    return out.reshape(n, SIZE)


KINDS: dict[str, Draw] = {"gaussian": gaussian, "heavy tail": heavy_tailed, "50 item rows": item_rows}


def updates(draw: Draw, correlation: float) -> Floats:
    """[CLIENTS, SIZE] of norm 1."""
    rng = np.random.default_rng(SEED)
    own, common = _unit(draw(rng, CLIENTS)), _unit(draw(rng, 1))
    return _unit(math.sqrt(correlation) * common + math.sqrt(1.0 - correlation) * own)


def encodings() -> dict[str, Encoding]:
    """What is compared."""
    narrow, wide, plain = _sized(16, SEED), _sized(32, SEED), _sized(32, None)
    independent = math.sqrt(CLIENTS)
    return {
        "16 rotated": narrow,
        "32 rotated": wide,
        "32 plain": plain,
        "16 independent": Encoding(SIZE, 16, narrow.scale * independent, 0, SEED),
        "32 independent": Encoding(SIZE, 32, wide.scale * independent, 0, SEED),
        "16 plain": Encoding(SIZE, 16, plain.scale / 2**16, 0, None),
    }


def error(encoding: Encoding, x: Floats) -> float:
    """Relative L2 error of the sum, and so of the mean."""
    uniform, none = NoiseSource(SEED).uniform, np.zeros(0)
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for vector in x:
        total += encoding.encode(vector, none, uniform)
    values, _ = encoding.decode(total)
    return float(np.linalg.norm(values - x.sum(axis=0)) / np.linalg.norm(x.sum(axis=0)))


def main() -> None:
    """Print the table."""
    columns = encodings()
    print(
        f"{CLIENTS} clients, {SIZE:,} values, carried as {columns['16 rotated'].length:,}; relative error\n"
    )
    print(f"{'updates':14}{'rho':>5}" + "".join(f"{name:>16}" for name in columns))
    for kind, draw in KINDS.items():
        for correlation in CORRELATIONS:
            x = updates(draw, correlation)
            cells = "".join(f"{error(encoding, x):16.2g}" for encoding in columns.values())
            print(f"{kind:14}{correlation:5.1f}{cells}")


def _sized(bits: Literal[16, 32], seed: int | None) -> Encoding:
    return encoding_for(SIZE, bits, users=CLIENTS, clip_norm=1.0, numbers=0, rotation_seed=seed)


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
