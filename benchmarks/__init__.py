"""Benchmarks: each module prints a table and says its setting. One thread, because CPU seconds are counted."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
