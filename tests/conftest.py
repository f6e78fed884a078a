"""Shared planted data: small, seeded, with structure that a recommender can find."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
import pytest
from hypothesis import settings
from portability import module_trains
from real_parts import pytest_runtest_setup, pytest_terminal_summary  # noqa: F401

from fedrec.core.interactions import Interactions
from fedrec.data.split import Split

# How long an example takes says how busy the machine is.
settings.register_profile("fedrec", deadline=None)
settings.load_profile("fedrec")


#: Modules whose federations devices of an app join.
DEVICES = ("test_job", "test_example_app")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real federations first, one of devices and one of sites at a time; modules whole, on whatever core is free.

    Federations wait most of the time, so two at once cost little; each takes ports of its own.

    Modules that train are marked, so that they can run again under other kernels (`portability`).
    """
    items.sort(key=lambda item: item.get_closest_marker("deployment") is None)
    for item in items:
        if module_trains(item.path):
            item.add_marker(pytest.mark.numeric)
        group = item.path.stem
        if item.get_closest_marker("deployment") is not None:
            group = "devices" if group.startswith(DEVICES) else "sites"
        item.add_marker(pytest.mark.xdist_group(group))


def planted(n_users: int = 120, n_items: int = 60, groups: int = 4, seed: int = 0) -> Interactions:
    """Users of group g like items of group g: 90 % of each history; lengths 6 to 20, no item twice."""
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(n_users):
        likes = np.flatnonzero(np.arange(n_items) % groups == user % groups)
        others = np.setdiff1d(np.arange(n_items), likes)
        length = int(rng.integers(6, min(20, len(likes)) + 1))
        own = rng.choice(likes, max(3, round(0.9 * length)), replace=False)
        noise = rng.choice(others, length - len(own), replace=False)
        history = rng.permutation(np.concatenate([own, noise]))
        users += [user] * len(history)
        items += history.tolist()
    return Interactions.from_columns(
        np.array(users),
        np.array([f"i{k:03d}" for k in items]),
        item_ids=np.array([f"i{k:03d}" for k in range(n_items)]),
    )


def last_out(interactions: Interactions) -> Split:
    """The last interaction of each user is the test, the last but one the validation part."""
    age = interactions.batch(np.arange(interactions.n_users)).age
    return Split(interactions.select(age > 1), interactions.select(age == 1), interactions.select(age == 0))


@pytest.fixture(scope="session")
def interactions() -> Interactions:
    return planted()


@pytest.fixture(scope="session")
def split(interactions: Interactions) -> Split:
    return last_out(interactions)


def split_of(user: int, history: np.ndarray, n_items: int) -> Split:
    """One user's node: the last event of the history is held out as the test part."""

    def part(items: np.ndarray) -> Interactions:
        return Interactions(
            np.zeros(len(items), np.int64),
            items.astype(np.int64),
            np.ones(len(items), np.float32),
            np.arange(len(items), dtype=np.int64),
            np.array([f"u{user}"]),
            np.array([f"i{k}" for k in range(n_items)]),
        )

    return Split(part(history[:-1]), None, part(history[-1:]), user_key=np.array([user], dtype=np.int64))
