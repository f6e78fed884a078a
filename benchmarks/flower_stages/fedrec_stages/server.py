"""Sends stages one after the other, as a round under secure aggregation does, and writes down when what happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fedrec.core.messages import Reply, Request
from fedrec_server.federation.flower_app import GridExchange
from fedrec_server.federation.launch import Launch

#: "hello" stands where nodes train: what a node computes is no part of what carrying its message costs.
Stage = Literal["advertise", "share", "hello", "confirm", "unmask"]
STAGES: tuple[Stage, ...] = ("advertise", "share", "hello", "confirm", "unmask")
Bytes = NDArray[np.uint8]
Event = dict[str, Any]
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    launch = Launch(Path(str(config["run-dir"])) / "coordinator")
    with launch.held(float(config["wait-seconds"])):
        try:
            exchange = GridExchange(grid)
            nodes = exchange.wait_for(int(config["nodes"]), float(config["wait-seconds"]))
            payload = np.zeros(int(config["bytes"]), dtype=np.uint8)
            for round_ in range(1, int(config["rounds"]) + 1):
                for stage in STAGES:
                    launch.report(one_stage(exchange, nodes, stage, round_, payload))
            launch.end(finished=True)
        except Exception as error:
            launch.end(finished=False, error=error)
            raise


def one_stage(exchange: GridExchange, nodes: list[str], stage: Stage, round_: int, payload: Bytes) -> Event:
    sent = time.time()
    request = Request(stage, round_, "tuning", {"payload": payload})
    answers = exchange.exchange(dict.fromkeys(nodes, request), 60.0)
    seconds = time.time() - sent
    good = {node: answer.meta for node, answer in answers.items() if isinstance(answer, Reply)}
    bad = [str(answer) for answer in answers.values() if not isinstance(answer, Reply)]
    return {"stage": stage, "round": round_, "sent": sent, "seconds": seconds, "nodes": good, "failures": bad}
