"""Known data sets in their original layouts."""

from fedrec.data.loaders.common import DatasetInfo
from fedrec.data.loaders.registry import dataset_info, dataset_names, load_dataset, load_with_report

__all__ = ["DatasetInfo", "dataset_info", "dataset_names", "load_dataset", "load_with_report"]
