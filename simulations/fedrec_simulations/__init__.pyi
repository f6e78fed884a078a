"""What type checkers and editors know of the lazy names; `__init__.py` loads them."""

from fedrec_server.operations.deployment import run_deployment as run_deployment
from fedrec_simulations.engines.flower import run_flower as run_flower
from fedrec_simulations.engines.in_process import run_in_process as run_in_process
from fedrec_simulations.experiments.config import Config as Config
from fedrec_simulations.experiments.config import load_config as load_config
from fedrec_simulations.experiments.prepare import prepare as prepare
from fedrec_simulations.experiments.run_folder import RunFolder as RunFolder
