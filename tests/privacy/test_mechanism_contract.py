"""Every mechanism of unit "user" keeps the contract that is shipped for those of others."""

from __future__ import annotations

from fedrec.privacy.noise_models import MECHANISMS
from fedrec.testing import MechanismContract


class TestCentral(MechanismContract):
    mechanism_name = "central"


class TestDistributed(MechanismContract):
    mechanism_name = "distributed"


class TestLocal(MechanismContract):
    mechanism_name = "local"


class TestBanded(MechanismContract):
    mechanism_name = "banded"


def test_none_is_left_out() -> None:
    tested = {each.mechanism_name for each in MechanismContract.__subclasses__()}
    assert tested >= {name for name, made in MECHANISMS.builtin() if made.unit == "user"}
