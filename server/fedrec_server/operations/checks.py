"""What an installation must have, checked by trying it. Out of scope: printing (`cli.doctor`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

NEEDED_GB = {"disk": 2.0, "memory": 2.0}
FLOWER_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """One finding; `todo` is empty where all is well."""

    name: str
    ok: bool
    found: str
    todo: str = ""


def run_checks(needed: Collection[str], on_check: Callable[[str], None] = lambda name: None) -> list[Check]:
    """All checks, in order.

    Args:
        needed: extras that the program needs, with "" for the base; packages of the others may be missing.
        on_check: called with the name of each check before it runs.
    """
    named: list[tuple[str, Callable[[], list[Check]]]] = [
        ("Python", lambda: [_python()]),
        ("packages", lambda: packages(requires("fedrec") or [], needed)),
        *([("numba", lambda: [_numba()]), ("torch", lambda: [_torch()])] if "train" in needed else []),
        ("Flower", lambda: [_flower(with_ray="sim" in needed)]),
        ("bundled data", lambda: [_bundled()]),
        ("cache", lambda: [cache()]),
        ("disk and memory", lambda: [_disk(), _memory()]),
    ]
    out: list[Check] = []
    for name, check in named:
        on_check(name)
        out += check()
    return out


def packages(requirements: list[str], needed: Collection[str]) -> list[Check]:
    """Every package of the base installation and of every extra, against the versions that are allowed.

    Args:
        requirements: lines of the distribution's metadata, `numpy<3,>=1.26` or `torch>=2.4; extra == "train"`.
        needed: see `run_checks`.
    """
    extras: dict[str, list[Requirement]] = {}
    for line in requirements:
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        extra = marker.split("extra == ")[-1].strip("\"' ") if "extra ==" in marker else ""
        if requirement.name != "fedrec":
            extras.setdefault(extra, []).append(requirement)
    return [_extra(name, found, name in needed) for name, found in extras.items() if name != "all"]


def _extra(name: str, requirements: list[Requirement], is_needed: bool) -> Check:
    """One line for the base installation or an extra."""
    wrong: list[str] = []
    right: list[str] = []
    for requirement in {one.name: one for one in requirements}.values():
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        fits = requirement.specifier.contains(here, prereleases=True)
        text = f"{requirement.name} {here}"
        (right if fits else wrong).append(text if fits else f"{text} is not {requirement.specifier}")
    label = f"packages of extra {name!r}" if name else "packages"
    optional = not is_needed and all(text.endswith("is missing") for text in wrong)
    found = ", ".join(wrong + right) + (" (optional)" if wrong and optional else "")
    return Check(
        label,
        not wrong or optional,
        found,
        f"pip install 'fedrec{f'[{name}]' if name else ''}'" if wrong else "",
    )


def _python() -> Check:
    here = sys.version.split()[0]
    return Check("Python", sys.version_info >= (3, 11), here, "install Python 3.11 or newer")


def _numba() -> Check:
    try:
        import numba

        compiled = numba.njit(lambda x: x + 1)
        found = "compiles" if compiled(1) == 2 else "compiles wrongly"
        return Check(
            "numba", found == "compiles", found, "install numba again: pip install --force-reinstall numba"
        )
    except Exception as error:
        return Check(
            "numba", False, _first_line(error), "pip install 'fedrec[train]'; is the cache folder writable?"
        )


def _torch() -> Check:
    try:
        import torch

        cores = os.cpu_count() or 1
        threads = torch.get_num_threads()
        text = f"{torch.__version__}, {threads} threads on {cores} cores"
        return Check("torch", threads <= cores, text, "set OMP_NUM_THREADS to the number of cores at most")
    except Exception as error:
        return Check("torch", False, _first_line(error), "pip install 'fedrec[train]'")


def _flower(*, with_ray: bool) -> Check:
    """In a process of its own: importing Flower is slow, and only the adapters may do it here."""
    from fedrec.core.errors import FedrecError

    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    code = "import flwr; print(flwr.__version__)"
    if with_ray:  # of the simulation engine
        code = "import flwr, ray; print(flwr.__version__, 'with ray', ray.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            check=False,
            env=env,
            capture_output=True,
            text=True,
            timeout=FLOWER_SECONDS,
        )
        found = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
        ok = done.returncode == 0
        if ok:
            from fedrec_server.federation.run_files import app_folder

            app_folder()
            found += ", telemetry off"
    except (subprocess.TimeoutExpired, FedrecError, OSError) as error:
        ok, found = False, _first_line(error)
    extra = "sim" if with_ray else "server"
    return Check("Flower", ok, found, f"federations need it: pip install 'fedrec[{extra}]'")


def _bundled() -> Check:
    try:
        from fedrec.data.loaders import load_dataset

        data = load_dataset("movietweetings").interactions
        return Check(
            "bundled data", True, f"MovieTweetings, {len(data):,} interactions of {data.n_users:,} users"
        )
    except Exception as error:
        return Check(
            "bundled data", False, _first_line(error), "install fedrec again: its data file is damaged"
        )


def cache() -> Check:
    """Whether downloads can be kept."""
    from fedrec.data.download import cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ok = existing.is_dir() and os.access(existing, os.W_OK)
    return Check(
        "cache", ok, str(folder), f"make {existing} writable, or set FEDREC_HOME to a folder of yours"
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Check(
        "free disk here", free >= NEEDED_GB["disk"], f"{free:.1f} GB", "free some: runs need up to 2 GB"
    )


def _memory() -> Check:
    free = _free_memory()
    if free is None:
        return Check("free memory", True, "unknown on this system")
    text = f"{free / 1e9:.1f} GB"
    return Check(
        "free memory", free / 1e9 >= NEEDED_GB["memory"], text, "close something: runs need up to 2 GB"
    )


def _free_memory() -> int | None:
    """Bytes available, where the system says so (Linux)."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
