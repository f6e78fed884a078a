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
    # Nothing of it is fedrec's own.
    assert things.builtin_names() == [] and list(things.builtin()) == []


def test_an_unknown_name_says_what_was_meant_and_what_there_is(things: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"'aple' is not known: did you mean 'apple'\?"):
        things.get("aple")


def test_an_import_path_of_an_own_configuration_brings_a_class(things: Registry[type]) -> None:
    from collections import OrderedDict

    assert things.get("collections:OrderedDict", paths=True) is OrderedDict
    assert things.names() == ["apple", "fruit", "pear"]
    with pytest.raises(ConfigError, match="cannot be imported"):
        things.get("no_such_package:Thing", paths=True)
    with pytest.raises(ConfigError, match="cannot be imported"):
        things.get("collections:NoSuchThing", paths=True)


def test_an_import_path_from_elsewhere_runs_nothing(
    things: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "would_run.py").write_text("raise AssertionError('imported')\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("would_run:Thing", "collections:Counter", "os:system"):
        with pytest.raises(ConfigError, match="followed in your own configuration alone"):
            things.get(path)
    assert "would_run" not in sys.modules
    # What this process has registered may be named by its path.
    assert things.get("builtins:int") is int


def test_an_object_that_breaks_the_contract_is_refused() -> None:
    def check(name: str, made: object) -> None:
        if not isinstance(made, type):
            raise ConfigError(f"{name} is not a class")

    classes: Registry[type] = Registry("test_classes", "class", check=check)
    with pytest.raises(ConfigError, match="is not a class"):
        classes.register("three")(3)
    with pytest.raises(ConfigError, match="is not a class"):
        classes.get("math:pi", paths=True)
    assert classes.names() == []


def test_what_is_registered_within_a_block_is_forgotten_after_it(things: Registry[type]) -> None:
    with things.restored():
        things.register("plum")(float)
        assert things.get("plum") is float
    assert things.names() == ["apple", "fruit", "pear"]


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


def test_a_module_named_like_what_it_registers_is_imported_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "brought_pages"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from fedrec.core.registry import Registry\n"
        "FOUND = Registry('test_pages', 'page.kind', packages=('brought_pages',), by_module=True)\n"
    )
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(
            f"import brought_pages\nbrought_pages.FOUND.register('{name}')(int)\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    import brought_pages  # type: ignore[import-not-found]

    assert brought_pages.FOUND.names() == ["one", "two"]
    assert brought_pages.FOUND.get("one") is int
    assert "brought_pages.one" in sys.modules and "brought_pages.two" not in sys.modules
