"""Names of a configuration: registered inside, brought by an installed package, or given as an import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedrec.core.errors import ConfigError
from fedrec.core.registry import Registry


@pytest.fixture
def things() -> Registry[type]:
    found: Registry[type] = Registry("test_things", "thing.kind")
    found.register("apple", "fruit")(int)
    found.register("pear")(str)
    return found


def test_a_registered_name_is_found_under_each_of_its_names(things: Registry[type]) -> None:
    assert things.get("apple") is things.get("fruit") is int
    assert things.names() == ["apple", "fruit", "pear"]
    assert dict(things.builtin()) == {"apple": int, "fruit": int, "pear": str}


def test_an_unknown_name_says_what_was_meant_and_what_there_is(things: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"'aple' is not known: did you mean 'apple'\?"):
        things.get("aple")


def test_an_import_path_brings_a_class(things: Registry[type]) -> None:
    from collections import OrderedDict

    assert things.get("collections:OrderedDict") is OrderedDict
    with pytest.raises(ConfigError, match="cannot be imported"):
        things.get("no_such_package:Thing")
    with pytest.raises(ConfigError, match="cannot be imported"):
        things.get("collections:NoSuchThing")
    with pytest.raises(ConfigError, match="is not known"):
        things.get("collections:Counter", paths=False)


def test_two_objects_of_one_name_are_refused(things: Registry[type]) -> None:
    things.register("apple")(int)
    with pytest.raises(ConfigError, match="rename one of them"):
        things.register("apple")(float)


def test_an_installed_package_brings_names(
    things: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brought_thing.py").write_text("class Plum:\n    pass\n")
    info = tmp_path / "brought_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-thing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedrec.test_things]\nplum = brought_thing:Plum\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert things.names() == ["apple", "fruit", "pear", "plum"]
    assert things.get("plum").__name__ == "Plum"
    sys.modules.pop("brought_thing", None)


def test_modules_of_a_package_register_when_names_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "brought_family"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from fedrec.core.registry import Registry\n"
        "FOUND = Registry('test_family', 'family.kind', packages=('brought_family',))\n"
    )
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "one.py").write_text(
        "import brought_family\nbrought_family.FOUND.register('one')(int)\n"
    )
    (package / "_private.py").write_text("raise AssertionError('private modules register nothing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import brought_family  # type: ignore[import-not-found]

    assert brought_family.FOUND.get("one") is int
    assert brought_family.FOUND.names() == ["one"]
