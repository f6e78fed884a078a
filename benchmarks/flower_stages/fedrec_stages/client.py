"""A node that does nothing but keep a secret from the first stage of a round to the last, as a real one does."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedrec.core.messages import Reply
from fedrec_client.node.flower_app import StateMemory, make_records, parse_records

SECRET = bytes(range(256)) * 16
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    request = parse_records(message.content)
    memory = StateMemory(context.state)
    held = memory.get() == SECRET
    if request.kind == "unmask":
        memory.clear()
    elif request.kind == "advertise":
        memory.put(SECRET)
    meta = {
        "born": born(),
        "handled": time.time(),
        "cpu": time.process_time(),
        "held": held,
        "records": len(context.state),
        "trains": "torch" in sys.modules,
    }
    reply = Reply(request.kind, request.round, request.phase, {"payload": np.zeros(8)}, meta)
    return Message(make_records(reply), reply_to=message)


def born() -> float:
    """When this process began, in seconds since 1970, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK")
