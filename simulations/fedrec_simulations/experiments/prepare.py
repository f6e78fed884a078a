"""From a configuration to a split: load, clean, split, and say what each step did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrec.content.encoders import load_encoder
from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Catalog, Dataset, Interactions
from fedrec.data import splits
from fedrec.data.cleaning import Binarise, CleaningReport, DropDuplicates, KCore, RatingRange, Step, clean
from fedrec.data.items_table import read_catalog
from fedrec.data.loaders import dataset_info, load_dataset, load_with_report
from fedrec.data.rows import Reader, RowReport
from fedrec.data.split import Split
from fedrec.data.tabular import Columns, read_interactions
from fedrec.recommenders.registry import build
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.features import item_features
from fedrec_simulations.experiments.population import synthetic_population
from fedrec_simulations.experiments.sections import IN_MEMORY, DataSection, SplitSection

#: Time stamps below this (in 1973) are positions in a file.
FIRST_TIME = 100_000_000


#: Sections of data that were split elsewhere.
_HELD, _RULE = DataSection(name=IN_MEMORY), SplitSection()


@dataclass(frozen=True)
class Prepared:
    """A split with its catalogue.

    Attributes:
        split: the parts.
        catalog: of the items, with their features where there are any.
        description: for `data.json`: what the data was, what cleaning removed, sizes of the parts.
        data, rule: the sections of a configuration that the parts were made by.
    """

    split: Split
    catalog: Catalog
    description: dict[str, Any]
    data: DataSection = _HELD
    rule: SplitSection = _RULE


def prepare(config: Config) -> Prepared:
    """Everything that the `data` and `split` sections ask for.

    Raises:
        DataError: a file is missing, broken, empty, or does not hold what is asked for.
        ConfigError: the two sections do not fit together.
    """
    rule = config.split
    if rule.method in ("column", "folder"):
        if rule.path is None:
            raise ConfigError(
                f"split.method = {rule.method!r} needs split.path: give the file or folder it lies in"
            )
        split = (
            splits.from_split_column(rule.path) if rule.method == "column" else splits.read_split(rule.path)
        )
        catalog = _catalog_of(config.data, split)
        return _prepared(config, split, catalog, None)
    dataset, report = load(config.data)
    split = _split(config.split, dataset.interactions, config.federation.seed)
    return _prepared(config, split, dataset.catalog, report)


def prepare_dataset(dataset: Dataset, data: DataSection, rule: SplitSection) -> Prepared:
    """A data set that is in memory, cleaned and split by two sections.

    Raises:
        DataError: cleaning leaves nothing, or nothing can be held out.
        ConfigError: the two sections do not fit together.
    """
    cleaned, report = _cleaned(dataset, data, None)
    split = _split(rule, cleaned.interactions, 0)
    name = f"in memory: {dataset.name}" if data.name == IN_MEMORY else data.name
    return _described(name, data, rule, split, cleaned.catalog, report)


def prepare_files(config: Config, train: Path, validation: Path | None, items: Path | None) -> Prepared:
    """A split that someone else made; its test part lies with them."""
    split = splits.prepared(train, validation, None, items)
    return _prepared(config, split, _catalog_of(config.data, split), None)


def load(data: DataSection) -> tuple[Dataset, CleaningReport]:
    """Load and clean; items without interactions are dropped from the catalogue by the core, if there is one."""
    reader = load_encoder(data.reviews, paths=True).encode if data.reviews else None
    if data.name == IN_MEMORY:
        raise ConfigError(
            "data.name is 'memory': these data were given in Python; give them to fedrec.train again"
        )
    if data.name == "file":
        dataset, read = _own_file(data, reader)
    else:
        dataset, read = load_with_report(data.name, data.path, download=data.download, reader=reader)
    return _cleaned(dataset, data, read)


def _cleaned(dataset: Dataset, data: DataSection, read: RowReport | None) -> tuple[Dataset, CleaningReport]:
    steps: list[Step] = [DropDuplicates()]
    if data.rating_range is not None:
        steps.append(RatingRange(*data.rating_range))
    if not data.ratings:
        steps.append(Binarise(data.min_rating))
    if data.core > 1:
        steps.append(KCore(data.core, data.core))
    cleaned, report = clean(dataset, steps, read)
    if data.synthetic is None:
        return cleaned, report
    made = synthetic_population(cleaned.interactions, data.synthetic.factor, data.synthetic.seed)
    return replace(made, catalog=cleaned.catalog.align(made.interactions.item_ids)), report


def _own_file(data: DataSection, reader: Reader | None) -> tuple[Dataset, RowReport]:
    if data.path is None:
        raise ConfigError("data.name = 'file' needs data.path: give the file with the interactions")
    columns = Columns(
        data.user_column,
        data.item_column,
        data.rating_column,
        data.timestamp_column,
        review=data.review_column,
    )
    interactions, report = read_interactions(data.path, columns, reader=reader)
    catalog = read_catalog(data.items) if data.items else Catalog.bare(interactions.item_ids)
    return Dataset(data.path.stem, interactions, catalog.align(interactions.item_ids)), report


def _split(rule: SplitSection, interactions: Interactions, seed: int) -> Split:
    seed = seed if rule.seed is None else rule.seed
    validation = rule.fraction if rule.validation else 0.0
    match rule.method:
        case "temporal":
            return splits.temporal(interactions, test_fraction=rule.fraction, validation_fraction=validation)
        case "per_user_ratio":
            return splits.per_user_ratio(interactions, rule.fraction, validation, seed=seed)
        case "held_out_users":
            return splits.held_out_users(
                interactions, rule.fraction, validation, targets=rule.targets, seed=seed
            )
        case _:
            return splits.leave_one_out(
                interactions, rule.validation, rule.ties, targets=rule.targets, seed=seed
            )


def _catalog_of(data: DataSection, split: Split) -> Catalog:
    """Titles of the named data set where its files are given, else ids only."""
    if data.items is not None:
        return read_catalog(data.items).align(split.train.item_ids)
    if data.name in ("file", IN_MEMORY) or (data.path is None and dataset_info(data.name).bundled is None):
        return Catalog.bare(split.train.item_ids)
    return load_dataset(data.name, data.path).catalog.align(split.train.item_ids)


def check_data(config: Config, split: Split) -> None:
    """Raises ConfigError where values or times are not what the model reads."""
    needs, value = build(config.model).needs, split.train.value
    if needs.ratings is not None:
        low, high = needs.ratings
        if not (low <= value.min() and value.max() <= high):
            raise ConfigError(
                f"ratings are from {value.min():g} to {value.max():g} and model.rating_range is {low:g} to {high:g}: "
                "set it to the scale of the data, or drop others by data.rating_range"
            )
    if needs.times and split.train.timestamp.max() < FIRST_TIME:
        raise ConfigError(
            f"model {config.model.kind!r} reads hour and day and the data of {config.data.name!r} have an order "
            "alone, no times: set model.context to false"
        )


def _prepared(config: Config, split: Split, catalog: Catalog, report: CleaningReport | None) -> Prepared:
    check_data(config, split)
    return _described(config.data.name, config.data, config.split, split, catalog, report)


def _described(
    name: str,
    data: DataSection,
    rule: SplitSection,
    split: Split,
    catalog: Catalog,
    report: CleaningReport | None,
) -> Prepared:
    description = {
        "name": name,
        "synthetic": data.synthetic and data.synthetic.model_dump(),
        "rule": rule.model_dump(mode="json"),
        "cleaning": report.as_dict() if report else None,
        "split": splits.describe(split),
    }
    catalog = catalog.align(split.train.item_ids)
    if data.features is not None:
        catalog = replace(catalog, features=item_features(data.features, catalog))
        description["features"] = data.features.model_dump(mode="json")
    return Prepared(split, catalog, description, data, rule)
