"""Flower's own FedAvg, unchanged; the CPU time of all processes is read before the first and after each round."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.cpu import tree_cpu_seconds
from benchmarks.workload import N_ITEMS, SEED, recommender
from fedrec.core.processes import MARK

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; leaves `rounds.json` and the final arrays in the folder `out`."""
    out, nodes = Path(str(context.run_config["out"])), int(context.run_config["nodes"])
    clocks: list[dict[str, float]] = []

    def read_clocks(_: int, __: ArrayRecord) -> MetricRecord | None:
        cpu, wall = tree_cpu_seconds(os.environ[MARK]), time.perf_counter()
        clocks.append({"cpu_seconds": cpu, "wall_seconds": wall})
        return None

    shared = recommender().init_shared(N_ITEMS, SEED)
    initial = {
        "table.weight": torch.from_numpy(shared["item_table"]),
        "bias.weight": torch.from_numpy(shared["item_bias"][:, None]),
    }
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    result = strategy.start(
        grid, ArrayRecord(initial), int(context.run_config["rounds"]), evaluate_fn=read_clocks
    )
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    np.savez(out / "arrays.npz", **arrays)
    (out / "rounds.json").write_text(json.dumps(clocks))
