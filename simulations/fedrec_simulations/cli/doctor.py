"""`fedrec doctor`: what is wrong with this installation or with run folders, for a researcher."""

from __future__ import annotations

from fedrec_server.cli.answer import Answer
from fedrec_server.cli.doctor import Folders, Remove, examine
from fedrec_server.cli.options import JsonFlag

#: Extras that the researcher's program needs, the base among them.
RESEARCHER = ("", "train", "client", "server", "sim")


def doctor(folders: Folders = None, remove: Remove = False, json_: JsonFlag = False) -> Answer:
    """Check the installation and the folder runs/, or the folders given; exit 10 on problems.

    In folders of runs and federations: sums and models that kills or earlier versions left, and should not be there.
    """
    return examine(RESEARCHER, folders, remove)
