"""fedrec: recommenders trained where the data is.

    import fedrec

    parts = fedrec.split(fedrec.load_dataset("movietweetings"), core=5)
    run = fedrec.train(parts, "ease")
    print(run.evaluate())
    print(run.recommend("17", n=5))

The names below are loaded when they are first used, so that importing the package costs nothing; a name that needs a
package of an optional extra says which. This table is above every other module: none of ours imports from it.
"""

from __future__ import annotations

from fedrec.core.facade import lazy

__version__ = "0.1.0"

#: Name to "module" or "module:name".
_HOMES = {
    "Catalog": "fedrec.core.interactions",
    "Comparison": "fedrec_simulations.api.results",
    "Dataset": "fedrec.core.interactions",
    "Evaluation": "fedrec_simulations.api.results",
    "Experiment": "fedrec_simulations.experiments.config",
    "FedrecError": "fedrec.core.errors",
    "Interactions": "fedrec.core.interactions",
    "PrivacyPlan": "fedrec.privacy.plan",
    "Recommendations": "fedrec_simulations.api.results",
    "Recommender": "fedrec.core.recommender",
    "RecommenderConfig": "fedrec.core.recommender",
    "Run": "fedrec_simulations.api.run",
    "compare": "fedrec_simulations.api.comparing",
    "dataset_names": "fedrec.data.loaders",
    "evaluate": "fedrec_simulations.api.run",
    "from_arrays": "fedrec_simulations.api.data",
    "from_frame": "fedrec_simulations.api.data",
    "load_dataset": "fedrec.data.loaders",
    "load_experiment": "fedrec_simulations.api.training",
    "load_run": "fedrec_simulations.api.run",
    "plan_privacy": "fedrec_simulations.api.planning",
    "recommend": "fedrec_simulations.api.run",
    "split": "fedrec_simulations.api.data",
    "sweep": "fedrec_simulations.api.sweeping",
    "train": "fedrec_simulations.api.training",
    "train_experiment": "fedrec_simulations.api.training",
}

__all__ = [
    "Catalog",
    "Comparison",
    "Dataset",
    "Evaluation",
    "Experiment",
    "FedrecError",
    "Interactions",
    "PrivacyPlan",
    "Recommendations",
    "Recommender",
    "RecommenderConfig",
    "Run",
    "compare",
    "dataset_names",
    "evaluate",
    "from_arrays",
    "from_frame",
    "load_dataset",
    "load_experiment",
    "load_run",
    "plan_privacy",
    "recommend",
    "split",
    "sweep",
    "train",
    "train_experiment",
]


__getattr__, __dir__ = lazy(__name__, _HOMES)
