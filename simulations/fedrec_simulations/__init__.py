"""Experiments: configurations, engines, reports, the Python API behind `import fedrec` and the command line.

The names below are loaded when they are first used; all other modules may change without notice.
"""

from __future__ import annotations

from fedrec.core.facade import lazy

_HOMES = {
    "Config": "fedrec_simulations.experiments.config",
    "RunFolder": "fedrec_simulations.experiments.run_folder",
    "load_config": "fedrec_simulations.experiments.config",
    "prepare": "fedrec_simulations.experiments.prepare",
    "run_deployment": "fedrec_server.operations.deployment",
    "run_flower": "fedrec_simulations.engines.flower",
    "run_in_process": "fedrec_simulations.engines.in_process",
}

__all__ = [
    "Config",
    "RunFolder",
    "load_config",
    "prepare",
    "run_deployment",
    "run_flower",
    "run_in_process",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
