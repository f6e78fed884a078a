"""What type checkers and editors know of the lazy names; `__init__.py` loads them."""

from fedrec.core.errors import FedrecError as FedrecError
from fedrec.core.interactions import Catalog as Catalog
from fedrec.core.interactions import Dataset as Dataset
from fedrec.core.interactions import Interactions as Interactions
from fedrec.core.recommender import Recommender as Recommender
from fedrec.core.recommender import RecommenderConfig as RecommenderConfig
from fedrec.data.loaders import dataset_names as dataset_names
from fedrec.data.loaders import load_dataset as load_dataset
from fedrec.privacy.plan import PrivacyPlan as PrivacyPlan
from fedrec_simulations.api.comparing import compare as compare
from fedrec_simulations.api.data import from_arrays as from_arrays
from fedrec_simulations.api.data import from_frame as from_frame
from fedrec_simulations.api.data import split as split
from fedrec_simulations.api.planning import plan_privacy as plan_privacy
from fedrec_simulations.api.results import Comparison as Comparison
from fedrec_simulations.api.results import Evaluation as Evaluation
from fedrec_simulations.api.results import Recommendations as Recommendations
from fedrec_simulations.api.run import Run as Run
from fedrec_simulations.api.run import evaluate as evaluate
from fedrec_simulations.api.run import load_run as load_run
from fedrec_simulations.api.run import recommend as recommend
from fedrec_simulations.api.sweeping import sweep as sweep
from fedrec_simulations.api.training import load_experiment as load_experiment
from fedrec_simulations.api.training import train as train
from fedrec_simulations.api.training import train_experiment as train_experiment
from fedrec_simulations.experiments.config import Experiment as Experiment

__version__: str
