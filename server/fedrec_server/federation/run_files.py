"""What both Flower engines need of a run folder and of this installation."""

from __future__ import annotations

import json
from pathlib import Path

import fedrec_server
from fedrec.core.errors import EnvironmentProblem
from fedrec.core.files import read_arrays
from fedrec.core.updates import State
from fedrec_server.rounds.coordinator import Outcome


def app_folder() -> Path:
    """The thin Flower app: inside the installed package, or beside it in a checkout.

    Raises:
        EnvironmentProblem: it is in neither place.
    """
    package = Path(fedrec_server.__file__).parent
    for folder in (package / "apps" / "fedrec", package.parent / "apps" / "fedrec"):
        if (folder / "pyproject.toml").exists():
            return folder
    raise EnvironmentProblem(f"no Flower app beside {package}: install fedrec again, with the extra 'server'")


def read_outcome(run_dir: Path, finished: bool) -> Outcome:
    """The outcome of a coordinator that ran in another process, from what it left in the run folder."""
    folder = run_dir / "coordinator"
    arrays, header = read_arrays(folder / "checkpoint.safetensors")
    shared: State = {
        name.removeprefix("shared/"): values for name, values in arrays.items() if name.startswith("shared/")
    }
    result = json.loads((folder / "result.json").read_text()) if finished else {}
    return Outcome(finished, int(header["round"]), shared, result)
