"""A run folder: everything that is needed to repeat, resume, evaluate and serve a run.

RUN/config.json          the resolved configuration
RUN/data.json            what the data was, what cleaning removed, the split's rule and sizes
RUN/split/               the split in the data set's own ids, to be handed on
RUN/catalog.json         titles and categories by item index
RUN/coordinator/         task.json, checkpoint, rounds.jsonl, model.safetensors, result.json
RUN/nodes/<k>/           node.json, shard.npz, local/, identity.key: for node k alone
RUN/held_data.json       exact metrics on data that the researcher holds, where asked for: no release
RUN/report.html, environment.json, logs/

Only their owner can look into `coordinator` and `nodes`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import RunError
from fedrec.core.files import read_arrays, write_arrays, write_json, write_secret
from fedrec.core.interactions import Catalog
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.data.splits import load_shard, read_split, write_split
from fedrec.privacy.private_files import make_private
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_server.operations.run_artifacts import environment, read_catalog
from fedrec_server.rounds.task import FEATURES_FILE
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.finished_run import Host
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_setup import Engine, RunSetup

#: Exact metrics of held data.
HELD_FILE = "held_data.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths and contents of one run."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: there is no run at `path`.
        """
        if not (path / "config.json").exists():
            raise RunError(
                f"{path} is no run folder (no config.json): give a folder that `fedrec train` wrote"
            )
        return cls(path)

    @classmethod
    def create(
        cls, path: Path, config: Config, prepared: Prepared, nodes: int, *, share_split: bool = True
    ) -> RunFolder:
        """Lay out a new run with the users spread over `nodes` nodes.

        Args:
            path: folder, made if missing.
            config: the whole configuration.
            prepared: the data.
            nodes: how many nodes.
            share_split: write the split in the data set's own ids, too; a run that is thrown away needs none.

        Raises:
            RunError: the folder already holds a run.
            ConfigError: the configuration is for other data.
        """
        return cls.write(path, RunSetup.of(config, prepared, nodes), share_split=share_split)

    @classmethod
    def write(
        cls,
        path: Path,
        setup: RunSetup,
        *,
        engine: Engine = "in-process",
        command: str = "",
        share_split: bool = True,
    ) -> RunFolder:
        """Write what a run is made of into a new run folder.

        Args:
            path: folder, made if missing.
            setup: of the run.
            engine: on which the run goes.
            command: the command line by which it was started; never with the path of an interpreter, since the folder
                may be handed on.
            share_split: see `create`.

        Raises:
            RunError: the folder holds a run already.
        """
        if (path / "config.json").exists():
            raise RunError(f"{path} already holds a run: use --resume, or --out with another folder")
        path.mkdir(parents=True, exist_ok=True)
        (path / "nodes").mkdir(exist_ok=True, mode=0o700)
        make_private(path / "nodes")
        task, prepared = setup.task, setup.prepared
        for k, shard in enumerate(setup.shards):
            write_node(
                path / "nodes" / str(k),
                shard,
                task.model,
                task.settings,
                task.evaluation,
                setup.categories,
                task.privacy,
                aggregation=task.aggregation,
                identity=setup.enrolment.identity(k),
            )
        task.write(path / "coordinator")
        if prepared.catalog.features is not None:
            write_arrays(path / "coordinator" / FEATURES_FILE, {"features": prepared.catalog.features})
        if setup.enrolment.server_key is not None:
            write_secret(path / "coordinator" / "sealed.key", setup.enrolment.server_key)
        if share_split:
            write_split(prepared.split, path / "split")
        write_json(path / "command.json", {"engine": engine, "command": command})
        write_json(path / "data.json", prepared.description | {"nodes": len(setup.shards)})
        write_json(path / "catalog.json", _catalog_dict(prepared.catalog))
        write_json(path / "environment.json", environment())
        write_json(path / "config.json", setup.config.model_dump(mode="json"))
        return cls(path)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return parse_config(
            json.loads((self.path / "config.json").read_text()), (), str(self.path / "config.json")
        )

    @property
    def engine(self) -> str:
        """On which the run went."""
        path = self.path / "command.json"
        return str(json.loads(path.read_text())["engine"]) if path.exists() else "in-process"

    @property
    def data(self) -> dict[str, Any]:
        """What the data was."""
        return dict(json.loads((self.path / "data.json").read_text()))

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per round."""
        path = self.path / "coordinator" / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def result(self) -> dict[str, Any]:
        """The result.

        Raises:
            RunError: the run is not finished.
        """
        path = self.path / "coordinator" / "result.json"
        if not path.exists():
            raise RunError(f"run {self.path} is not finished: go on with `fedrec train --resume {self.path}`")
        return dict(json.loads(path.read_text()))

    @property
    def split(self) -> Split:
        """The split of the whole data set (a simulation's view: no server has this)."""
        return read_split(self.path / "split")

    @property
    def catalog(self) -> Catalog:
        """Titles and categories in the order of the item indices."""
        return read_catalog(self.path)

    @property
    def features(self) -> NDArray[np.float32] | None:
        """[I, F] public features of the items; None: the run has none."""
        path = self.path / "coordinator" / FEATURES_FILE
        return read_arrays(path)[0]["features"].astype(np.float32) if path.exists() else None

    @property
    def model(self) -> State:
        """Shared state of the final model."""
        path = self.path / "coordinator" / "model.safetensors"
        if not path.exists():
            raise RunError(
                f"run {self.path} has no model yet: go on with `fedrec train --resume {self.path}`"
            )
        return read_arrays(path)[0]

    def node_folders(self) -> list[Path]:
        """Folders of all nodes, in order."""
        return sorted((self.path / "nodes").iterdir(), key=lambda p: int(p.name))

    def nodes(self) -> list[Node]:
        """All nodes of the run, opened here."""
        return [open_node(folder) for folder in self.node_folders()]

    def hosts(self) -> Iterator[Host]:
        """The nodes of the run with their parts of the data, one after the other."""
        for folder in self.node_folders():
            yield Host(folder.name, load_shard(folder / "shard.npz"), open_node(folder))

    def move(self, path: Path) -> RunFolder:
        """Move the folder; the run at its new place.

        Raises:
            RunError: there is something at that path already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} is not empty: give another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rmdir()
        shutil.move(self.path, path)
        return RunFolder(path)


def _catalog_dict(catalog: Catalog) -> dict[str, Any]:
    return {
        "item_ids": catalog.item_ids.tolist(),
        "titles": catalog.titles.tolist(),
        "categories": [list(names) for names in catalog.categories],
    }
