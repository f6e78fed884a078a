"""Names of a signed repository: its roles, and the target paths of models and tasks of one population.

A repository follows The Update Framework (TUF 1.0). The top-level `targets` role signs no file itself: it delegates
`<population>/models/...` to the role `models` and `<population>/tasks/...` to the role `tasks`. Because every path
begins with the population, a repository of another population has nothing that this device asks for.
Out of scope: signing (`repository`), verifying (the SDK's `trusted_metadata`).
"""

from __future__ import annotations

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
MODELS, TASKS = "models", "tasks"
#: Delegated by `targets`.
DELEGATED = (MODELS, TASKS)
#: Roles whose keys are where models are published and served.
ONLINE = (MODELS, TASKS, SNAPSHOT, TIMESTAMP)
METADATA_FOLDER, TARGETS_FOLDER = "metadata", "targets"
CHAMPION, CANARY = "champion", "canary"
#: A canary's traffic is given in thousandths of all devices.
ALL_TRAFFIC = 1000
#: Fields of ours in signed metadata: when a timestamp was signed (seconds since 1970), and whose a repository is.
SIGNED_AT, POPULATION = "x-fedrec-signed-at", "x-fedrec-population"


def model_target(population: str, version: int, file: str) -> str:
    """A file of a model version."""
    return f"{population}/{MODELS}/{version}/{file}"


def alias_target(population: str, alias: str) -> str:
    """The entry that says which version an alias stands for, with length and hash of that version's manifest."""
    return f"{population}/{MODELS}/{alias}.json"


def task_target(population: str, job: str) -> str:
    """The task of a job."""
    return f"{population}/{TASKS}/{job}.json"


def delegated_paths(population: str, role: str) -> list[str]:
    """Patterns of the targets that a delegated role may sign; a star does not match a slash."""
    paths = [f"{population}/{role}/*"]
    return [*paths, f"{population}/{role}/*/*"] if role == MODELS else paths


def hashed_name(sha256: str, path: str) -> str:
    """A target path as it is fetched: consistent snapshots put the hash before the file's name."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{sha256}.{name}"
