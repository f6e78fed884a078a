"""Temporary folders that live as long as the object that needs them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


class Scratch:
    """A temporary folder for its owner alone, removed with this object or at the end of the process.

    Attributes:
        path: of the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fedrec-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
