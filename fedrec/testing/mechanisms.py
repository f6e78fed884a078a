"""The contract of a privacy mechanism of unit "user"; subclass `MechanismContract` and give `mechanism_name`.

Letters: P values of a vector, C clip norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.core.registry import OWN_CONFIGURATION
from fedrec.privacy.mechanism import Mechanism, mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings

SIZE, USERS, NODES, ROUNDS = 20_000, 60, 3, 4
#: Standard errors of a measured standard deviation.
ERRORS = 5.0


class MechanismContract:
    """What plans, accountants, statements and audits rely on."""

    #: Name or import path.
    mechanism_name: ClassVar[str]
    #: Further privacy settings, such as `options`.
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def privacy(cls) -> PrivacySettings:
        """The target, as a configuration of one's own states it."""
        made = MECHANISMS.get(cls.mechanism_name, paths=True)
        values = {
            "unit": made.unit,
            "trust": made.trust,
            "mechanism": cls.mechanism_name,
            "epsilon": 8.0,
            "delta": 1e-3,
            "clip_norm": 2.0,
            "force": True,
            "metrics": "none",
        }
        return PrivacySettings.model_validate(values | dict(cls.settings), context=OWN_CONFIGURATION)

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls, privacy: PrivacySettings) -> PrivacyPlan:
        """A plan of four rounds with sixty users."""
        return make_plan(privacy, population=USERS, rounds=ROUNDS, schedule=(1.0,) * ROUNDS, parameters=SIZE)

    @pytest.fixture(scope="class")
    @classmethod
    def mechanism(cls, plan: PrivacyPlan) -> Mechanism:
        """What carries out the plan."""
        return mechanism_of(plan)

    def test_the_plan_survives_a_file(self, plan: PrivacyPlan, mechanism: Mechanism) -> None:
        """Nodes and coordinator read it from JSON, and carry out the same."""
        again = PrivacyPlan.model_validate(plan.model_dump(mode="json"))
        assert again == plan and mechanism_of(again) == mechanism

    def test_the_target_is_kept(self, plan: PrivacyPlan, privacy: PrivacySettings) -> None:
        """Every round costs something, and all of them no more than was asked for."""
        spent = [plan.epsilon(charges) for charges in range(1, ROUNDS + 1)]
        assert 0.0 < spent[0] <= spent[-1] and spent == sorted(spent)
        assert spent[-1] <= privacy.epsilon * (1 + 1e-6)

    def test_no_less_noise_is_released_than_is_stated(self, mechanism: Mechanism, plan: PrivacyPlan) -> None:
        """Sums of zeros are released: all that is in them is noise."""
        released = self.released(mechanism, np.zeros(SIZE), 1)[:SIZE]
        stated = mechanism.noise_std(1, plan.clip_norm)
        margin = ERRORS / math.sqrt(2 * SIZE)
        assert stated > 0.0 and stated * (1 - margin) <= released.std() <= 2.0 * stated
        assert abs(released.mean()) < ERRORS * released.std() / math.sqrt(SIZE)

    def test_the_sum_is_in_the_release(self, mechanism: Mechanism) -> None:
        """Noise is added to the sum; it is the same whatever the sum is, up to rounding."""
        vector = np.where(np.arange(SIZE) % 2, 1.0, -1.0) / math.sqrt(SIZE)
        ends = [self.released(mechanism, values, 1)[:SIZE] for values in (vector, np.zeros(SIZE))]
        assert float((ends[0] - ends[1]) @ vector) == pytest.approx(NODES, abs=0.1)

    def test_rounds_nodes_and_seeds_share_no_noise(self, mechanism: Mechanism) -> None:
        """Noise that is used twice cancels."""
        vector = np.zeros(SIZE)
        one = self.released(mechanism, vector, 1)
        np.testing.assert_array_equal(one, self.released(mechanism, vector, 1))
        for other in (self.released(mechanism, vector, 2), self.released(mechanism, vector, 1, seed=9)):
            likeness = np.corrcoef(one[:SIZE], other[:SIZE])[0, 1]
            assert abs(likeness) < ERRORS / math.sqrt(SIZE)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_counts_as_zero_on_a_node(self, mechanism: Mechanism, bad: float) -> None:
        """A refusal would tell about the data of a user."""
        values, clean = np.zeros(SIZE), np.zeros(SIZE)
        values[1], values[2], clean[2] = bad, 0.5, 0.5
        one, other = (mechanism.contribute(each, 5, 1, 2.0, NoiseSource(1)) for each in (values, clean))
        np.testing.assert_array_equal(one, other)

    def test_a_broken_sum_is_not_released(self, mechanism: Mechanism) -> None:
        """The coordinator refuses, in one line; integers are always finite."""
        broken = np.full(SIZE, np.nan)
        if np.issubdtype(mechanism.zero(3).dtype, np.integer):
            return
        with pytest.raises(PrivacyRefused) as refused:
            mechanism.release(broken, USERS, 1, 2.0, NoiseSource(1))
        assert "\n" not in str(refused.value)

    def test_it_says_whom_it_protects(self, mechanism: Mechanism) -> None:
        """The privacy statement is written from these sentences."""
        sentences = [*mechanism.adversary("all who get the models"), *mechanism.uncovered(plain=True)]
        sentences.append(mechanism.released_sentence.format(rounds=ROUNDS))
        assert mechanism.adversary("x") and mechanism.noise_place and mechanism.trusted
        assert all(line.endswith(".") and "{" not in line for line in sentences)

    @staticmethod
    def released(
        mechanism: Mechanism, vector: NDArray[np.float64], round_: int, seed: int = 1
    ) -> NDArray[np.float64]:
        """What is released where each node sends `vector` as the sum over its users."""
        source, clip_norm = NoiseSource(seed), mechanism.plan.clip_norm
        total = mechanism.zero(len(vector))
        for node in range(NODES):
            noise = source.derive("node", node, round_)
            total = mechanism.add(
                total, mechanism.contribute(vector, USERS // NODES, round_, clip_norm, noise)
            )
        return mechanism.release(total, USERS, round_, clip_norm, source.derive("coordinator", round_))
