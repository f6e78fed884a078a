"""Where numba is not installed, loops run as Python: a device trains closed forms and factorisation without it.

Each test runs a process that refuses to import what only training programs bring.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys

import numpy as np

REFUSED = {refused!r}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
from fedrec.core.interactions import Interactions
from fedrec.core.messages import Request
from fedrec.data.split import Split
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.terms import PlainTerms
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node

ids = np.array([f"film-{{k:03d}}" for k in range(60)])
items = np.random.default_rng(0).permutation(60)[:20].astype(np.int64)
for kind in {kinds!r}:
    model = parse({{"kind": kind}})
    history = Interactions(
        np.zeros(20, np.int64), items, np.ones(20, np.float32), np.arange(20), np.array(["me"]), ids
    )
    node = Node(
        Split(history, None, None, user_key=np.array([7])),
        model,
        NodeSettings(seed=3, clip_norm=1.0),
        EvaluationSettings(),
        LocalStore(None),
        aggregation=PlainTerms(insecure=True),
    )
    shared = build(model).init_shared(60, 3, None)
    update = node.handle(Request("train", 1, "refit", shared)).arrays["update"]
    assert np.abs(update).sum() > 0, kind
    print(kind, update.astype(np.float64).tobytes().hex())
"""
NOISE = """
import sys

REFUSED = {refused!r}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
from fedrec.privacy.noise import NoiseSource

for variance in (0.01, 3.0, 500.0, 1e6):
    print("noise", NoiseSource(5).skellam(1000, variance).astype("<f8").tobytes().hex())
"""
KINDS = ("dp_ease", "dp_ials", "dp_item_graph", "ease", "ials", "item_graph", "item_knn", "mf", "popularity")
HEAVY = ("torch", "scipy", "flwr", "opacus", "dp_accounting", "grpc")


def updates(refused: tuple[str, ...]) -> dict[str, np.ndarray]:
    program = PROGRAM.format(refused=refused, kinds=KINDS)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = (line.split() for line in done.stdout.splitlines())
    return {kind: np.frombuffer(bytes.fromhex(text)) for kind, text in lines}


@pytest.mark.slow
def test_a_device_trains_without_what_programs_bring_and_gets_the_same_updates() -> None:
    alone, compiled = updates((*HEAVY, "numba")), updates(("grpc",))
    assert set(alone) == set(KINDS)
    for kind, update in compiled.items():
        if kind == "mf":  # sums of a compiled dot product are taken in another order
            np.testing.assert_allclose(alone[kind], update, rtol=0, atol=1e-5)
        else:
            np.testing.assert_array_equal(alone[kind], update, err_msg=kind)


def test_shares_of_noise_need_numpy_alone() -> None:
    command = [sys.executable, "-c", NOISE.format(refused=(*HEAVY, "numba"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    drawn = [np.frombuffer(bytes.fromhex(line.split()[1])) for line in done.stdout.splitlines()]
    for noise, variance in zip(drawn, (0.01, 3.0, 500.0, 1e6), strict=True):
        # A mean of squares of a thousand draws; its deviation is below 6 % where draws are not rare.
        assert abs(np.mean(noise**2) - variance) < 0.5 * max(variance, 0.05)
