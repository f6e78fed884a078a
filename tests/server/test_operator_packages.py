"""The operator's program needs what `fedrec[server]` brings: no torch, numba, opacus, matplotlib or Ray.

Each test runs a process that refuses to import those, as if they were not installed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedrec_server.cli.commands import PROGRAM as OPERATOR
from fedrec_server.cli.lazy import Group
from fedrec_simulations.cli.commands import PROGRAM as RESEARCHER

REFUSED = ("torch", "numba", "opacus", "matplotlib", "ray", "pyarrow", "jinja2")
BEFORE = f"""
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
"""
COORDINATE = """
import numpy as np

from fedrec.core.errors import ConfigError
from fedrec.core.updates import UpdateSum
from fedrec.recommenders.registry import RECOMMENDERS, build, parse
from fedrec.recommenders.serving import check_serves

ITEMS, rng = 30, np.random.default_rng(0)


def total(layout):
    blocks = {}
    for name, spec in layout.blocks.items():
        values = np.abs(rng.normal(size=spec.shape))
        if spec.symmetric:  # sums of outer products are positive definite
            values = values + values.swapaxes(-1, -2) + 50 * np.eye(spec.shape[-1])
        blocks[name] = values
    return UpdateSum(blocks, users=10, examples=100)


for kind, made in RECOMMENDERS.builtin():
    recommender = build(parse({"kind": kind, **made.small}))
    vectors = np.ones((ITEMS, made.small.get("features", 5)), np.float32)
    shared = recommender.init_shared(ITEMS, 0, vectors)
    server = recommender.init_server(shared)
    for number in range(1, (recommender.fixed_rounds or 2) + 1):
        shared, server = recommender.apply(shared, server, total(recommender.layout(ITEMS, number)))
    try:
        check_serves(recommender)
    except ConfigError:
        print(kind, "does not serve")
        continue
    print(kind, recommender.serving(shared).n_items)
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_cannot_be_imported(name: str) -> None:
    code = f"{BEFORE}\ntry:\n    import {name}\nexcept ModuleNotFoundError:\n    print('refused')"
    assert run(code).strip() == "refused"


def test_every_command_of_the_operator_is_imported() -> None:
    code = (
        f"{BEFORE}\nfrom fedrec_server.cli.commands import PROGRAM\nfrom fedrec_server.cli.lazy import load\n"
        "commands = [load(words[-1], target) for words, target in PROGRAM.walk()]\n"
        "import fedrec_server.federation.flower_app, fedrec_server.jobs.work\n"
        "import fedrec_server.operations.deployment, fedrec_server.service.server\n"
        "print(len(commands))"
    )
    assert int(run(code)) == len(list(OPERATOR.walk())) > 15


def test_a_coordinator_of_every_kind_starts_applies_and_publishes() -> None:
    lines = run(BEFORE + COORDINATE).splitlines()
    assert len(lines) > 20
    unserved = {line.split()[0] for line in lines if line.endswith("does not serve")}
    assert unserved == {"clustered", "deepfm", "mlp", "neumf"}
    assert all(line.endswith((" 30", "does not serve")) for line in lines)


def groups(program: Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    out = [words]
    for name, entry in program.commands.items():
        if isinstance(entry, Group):
            out += groups(entry, (*words, name))
    return out


@pytest.mark.parametrize(
    ("name", "table", "program"),
    [
        ("fedrec", "fedrec_simulations.cli.commands", RESEARCHER),
        ("fedrec-server", "fedrec_server.cli.commands", OPERATOR),
    ],
)
def test_help_of_programs_and_groups_imports_no_command(name: str, table: str, program: Group) -> None:
    """Neither numpy nor pydantic is imported, and one process prints them all in half a second for each."""
    listed = [list(words) for words in groups(program)]
    code = (
        f"import sys, time\nfrom {table} import PROGRAM\nfrom fedrec_server.cli.lazy import command_of\n"
        f"for words in {listed!r}:\n"
        f"    command_of({name!r}, PROGRAM).main([*words, '--help'], prog_name={name!r}, standalone_mode=False)\n"
        "print('loaded', sorted({'numpy', 'pydantic', 'cryptography', 'flwr'} & set(sys.modules)))\n"
        "print('seconds', time.process_time())"
    )
    *_, loaded, seconds = run(code).splitlines()
    assert loaded == "loaded []"
    assert float(seconds.split()[1]) < 0.5 * len(listed)
