"""A mode that nothing implements is an error of types and a refusal, and is never carried out as another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from privacy_plans import CENTRAL
from privacy_plans import plan as plan_of
from pydantic import ValidationError

import fedrec.privacy.settings as settings_module
from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy.mechanism import Mechanism, mechanism_of
from fedrec.privacy.noise_models import MECHANISMS, default_mechanism
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings, Trust, Unit

ROOT = Path(__file__).parents[2]


def shuffled() -> PrivacyPlan:
    """A plan of a trust model that someone added to the settings and forgot everywhere else."""
    fields = {name: value for name, value in dict(plan_of()).items() if name != "trust"}
    return PrivacyPlan.model_construct(**fields, trust="shuffle")


@pytest.mark.parametrize("call", [mechanism_of, lambda p: p.epsilon(), lambda p: p.noise_std(1)])
def test_a_plan_of_an_unknown_trust_model_does_nothing(call: Any) -> None:
    with pytest.raises(PrivacyRefused, match=r"privacy\.trust is 'shuffle': no mechanism implements it"):
        call(shuffled())


def test_settings_of_an_unknown_trust_model_make_no_plan() -> None:
    with pytest.raises(ValidationError):
        PrivacySettings(unit="user", trust="shuffle", epsilon=3.0)  # type: ignore[arg-type]
    asked = dict(PrivacySettings(unit="user", epsilon=3.0)) | {"trust": "shuffle"}
    with pytest.raises(PrivacyRefused, match="'shuffle'"):
        make_plan(
            PrivacySettings.model_construct(**asked),
            population=1000,
            rounds=2,
            schedule=(1.0, 1.0),
            parameters=10,
        )


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match=r"privacy\.unit is 'household'"):
        default_mechanism("household", "central")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", get_args(Unit))
@pytest.mark.parametrize("trust", get_args(Trust))
def test_every_mode_of_the_settings_has_a_mechanism(unit: Unit, trust: Trust) -> None:
    found = MECHANISMS.get(default_mechanism(unit, trust))
    assert issubclass(found, Mechanism) and found.unit == unit
    assert unit == "interaction" or found.trust == trust


def test_a_new_trust_model_without_a_mechanism_is_an_error_of_types(tmp_path: Path) -> None:
    """mypy reads the settings with one more trust model in place of the real ones."""
    source = Path(str(settings_module.__file__))
    text = source.read_text()
    changed = tmp_path / "settings.py"
    changed.write_text(
        text.replace('Literal["central", "distributed", "local"]', 'Literal["central", "shuffle"]')
    )
    assert changed.read_text() != text
    target = ROOT / "fedrec/privacy/noise_models.py"
    run = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    shadow = ["--shadow-file", str(source), str(changed)]
    found = subprocess.run(
        [*run, *shadow, str(target)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 1 and "Never" in found.stdout, found.stdout + found.stderr


# Mechanisms from elsewhere ---------------------------------------------------------------------------------


OUTSIDE = '''
from dataclasses import dataclass

from fedrec.privacy.mechanisms.central import Central
from fedrec.privacy.noise_models import MECHANISMS


@MECHANISMS.register("louder")
@dataclass(frozen=True)
class Louder(Central):
    """Twice the noise that was planned."""

    def noise_std(self, round_: int, l2: float) -> float:
        return 2.0 * super().noise_std(round_, l2)
'''


def test_a_mechanism_from_elsewhere_carries_out_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an import path in the settings, or by the name under which it registered itself."""
    (tmp_path / "outside_mechanism.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = PrivacySettings(unit="user", epsilon=3.0, mechanism="outside_mechanism:Louder", force=True)
    with MECHANISMS.restored():
        made = make_plan(settings, population=1000, rounds=1, schedule=(1.0,), parameters=10)
        check_louder(made)
        check_louder(made.model_copy(update={"mechanism": "louder"}))


def check_louder(made: PrivacyPlan) -> None:
    assert PrivacyPlan.model_validate_json(made.model_dump_json()) == made
    assert type(mechanism_of(made)).__name__ == "Louder"
    assert made.noise_std(1) == 2.0 * made.model_copy(update={"mechanism": None}).noise_std(1)


@pytest.mark.parametrize("name", ["centrl", "antigravity:geohash"])
def test_a_plan_never_brings_code_with_it(name: str) -> None:
    """Plans come over networks: they hold registered names, and no import path is followed."""
    with pytest.raises(ValidationError, match=r"is not known|is an import path"):
        PrivacyPlan(**CENTRAL, noise_multipliers=(4.0,) * 4, mechanism=name)
    assert "antigravity" not in sys.modules


def test_a_mechanism_of_another_mode_is_refused() -> None:
    with pytest.raises(ValidationError, match="has unit 'user' and trust 'local'"):
        plan_of(mechanism="local")
    with pytest.raises(ConfigError, match="unit 'interaction'"):
        make_plan(
            PrivacySettings(unit="user", epsilon=3.0, mechanism="interaction", force=True),
            population=1000,
            rounds=1,
            schedule=(1.0,),
            parameters=10,
        )
