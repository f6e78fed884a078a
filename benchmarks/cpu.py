"""CPU seconds of a whole tree of processes, from /proc alone.

Processes are found by the mark that they inherit (`fedrec.core.processes`), so those that moved to a session
of their own (Ray's) are counted, too. A process that ended is counted through the parent that waited for it; the
time of one that no one in the tree waited for is lost, which can only make the tree look cheaper.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedrec.core.processes import marked

_UTIME, _CSTIME = 11, 14  # after the name, which may hold anything; see proc(5)


def tree_cpu_seconds(mark: str) -> float:
    """User plus system seconds so far of all living processes with the mark, and of their ended children."""
    return sum(_cpu_seconds(pid) for pid in marked(mark))


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):  # it ended between the two looks
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[_UTIME : _CSTIME + 1])) / os.sysconf("SC_CLK_TCK")
    return 0.0
