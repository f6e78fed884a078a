"""A finished run: its model, its figures, and lists for its users.

Letters: U users, I items, n list length.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedrec.core.errors import DataError, RunError
from fedrec.core.extras import needs
from fedrec.core.interactions import Catalog
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.privacy.noised_means import HELD_DATA, TUNING_NOT_COVERED
from fedrec.ranking.model import ServingModel
from fedrec_simulations.api._scratch import Scratch
from fedrec_simulations.api.results import Evaluation, Recommendations, listed
from fedrec_simulations.api.tables import Columns, Table
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.finished_run import FinishedRun
from fedrec_simulations.experiments.memory_run import MemoryRun
from fedrec_simulations.experiments.run_folder import RunFolder


class Run(Table):
    """A finished run; as a table, one row per round.

    Args:
        source: where the run is: in memory, or in a run folder.
        scratch: temporary folder that holds it until it is saved; None: none.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> run = fedrec.train(data, "popularity")
        >>> run.name, run.rounds, sorted(run.model)
        ('popularity', 1, ['count'])
    """

    def __init__(self, source: FinishedRun, scratch: Scratch | None = None) -> None:
        self.source = source
        self._scratch = scratch

    @property
    def name(self) -> str:
        """By which tables and reports call it."""
        return self.experiment.name

    @property
    def experiment(self) -> Config:
        """The resolved configuration, by which the run can be repeated."""
        return self.source.config

    @property
    def model(self) -> State:
        """Shared state of the final model: name to array, most with I rows."""
        return self.source.model

    @property
    def split(self) -> Split:
        """The parts of the data."""
        return self.source.split

    @property
    def catalog(self) -> Catalog:
        """Titles and categories, in the order of the item indices."""
        return self.source.catalog

    @property
    def result(self) -> dict[str, Any]:
        """Rounds, metrics, totals in bytes and seconds, in plain types."""
        return self.source.result

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per round, in plain types."""
        return self.source.records

    @property
    def rounds(self) -> int:
        """Rounds of the final training."""
        return int(self.result["rounds"])

    @property
    def folder(self) -> Path | None:
        """The run folder; None: the run is in memory, or in a temporary folder."""
        kept = isinstance(self.source, RunFolder) and self._scratch is None
        return self.source.path if kept and isinstance(self.source, RunFolder) else None

    @property
    def warnings(self) -> list[str]:
        """What every report of this run says about its protection."""
        return self.experiment.warnings()

    def columns(self) -> Columns:
        """One row per round: phase, round, users, seconds, bytes, loss where it was released, validation metrics."""
        rows = [
            {name: value for name, value in record.items() if isinstance(value, int | float | str)}
            | {f"validation/{name}": value for name, value in record.get("validation", {}).items()}
            for record in self.records
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def evaluate(self, *, exact: bool = False) -> Evaluation:
        """How good the final model is on the test part; see `fedrec.evaluate`."""
        return evaluate(self, exact=exact)

    def recommend(self, user: Any, n: int = 10) -> Recommendations:
        """The list of one user; see `fedrec.recommend`."""
        return recommend(self, [user], n)

    def serving(self) -> ServingModel:
        """The form of the model that serves on a device.

        Raises:
            ConfigError: a model of this kind does not serve on a device.
        """
        with needs("Run.serving()"):
            from fedrec.recommenders.registry import build
            from fedrec.recommenders.serving import serving_form

            return serving_form(build(self.experiment.model), self.model)

    def save(self, folder: Path | str) -> Path:
        """Write the run folder, which `fedrec.load_run` and the command line read; returns its path.

        A run that is in a folder already is moved only if that folder is temporary.

        Raises:
            RunError: the folder holds a run already, or this run has its folder.
        """
        target = Path(folder)
        if self.folder is not None:
            raise RunError(f"this run is stored in {self.folder} already: copy that folder")
        if isinstance(self.source, MemoryRun):
            from fedrec_simulations.report.privacy_facts import write_privacy

            self.source = self.source.save(target)
            write_privacy(self.source)
        else:
            assert isinstance(self.source, RunFolder)
            self.source = self.source.move(target)
        self._scratch = None
        return target

    def report(self, out: Path | str) -> Path:
        """Write the HTML report of the run, one page without outside references; returns its path.

        Raises:
            EnvironmentProblem: a package that draws is not installed.
            RunError: the page cannot be written.
        """
        with needs("Run.report()"):
            from fedrec_simulations.report.page import write_page
            from fedrec_simulations.report.summary import Summary

            return write_page(Path(out), [Summary(self._in_folder())])

    def statement(self) -> dict[str, Any]:
        """The privacy statement: who is protected, by what, against whom, and what is not covered.

        Example:
            >>> import fedrec
            >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
            >>> fedrec.train(data, "popularity").statement()["private"]
            False
        """
        with needs("Run.statement()"):
            from fedrec_simulations.report.privacy_facts import statement_of

            return dict(statement_of(self._in_folder()))

    def _in_folder(self) -> RunFolder:
        """The run in a folder, a temporary one where the caller has asked for none yet."""
        if isinstance(self.source, MemoryRun):
            self._scratch = Scratch()
            self.source = self.source.save(self._scratch.path / "run")
        assert isinstance(self.source, RunFolder)
        return self.source

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        where = f"in {self.folder}" if self.folder else "in memory"
        return f"Run({self.name!r}, {self.rounds} rounds, {where})"


def load_run(folder: Path | str) -> Run:
    """A finished run from its folder, as `Run.save` or `fedrec train` wrote it.

    Raises:
        RunError: there is no run, or it is not finished.

    Example:
        >>> import fedrec, tempfile
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> run = fedrec.train(data, "popularity")
        >>> again = fedrec.load_run(run.save(tempfile.mkdtemp() + "/run"))
        >>> again.recommend(1, n=1).items() == run.recommend(1, n=1).items()
        True
    """
    opened = RunFolder.open(Path(folder))
    if not opened.result:
        raise RunError(f"run {folder} has an empty result: train it again")
    return Run(opened)


def evaluate(run: Run, *, exact: bool = False) -> Evaluation:
    """How good the final model of a run is on the test part.

    Args:
        run: finished.
        exact: compute exact figures of a private run on the data that the caller holds, for simulations: they are not
            a release of the run, and epsilon does not cover them.

    Returns:
        Metrics by group of users. Of a private run: what it released, noised and charged.

    Raises:
        DataError: nothing is held out, or the run released no metrics.
        ConfigError: exact figures of a deployment, whose data the caller does not hold.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> found = fedrec.evaluate(fedrec.train(data, "popularity"))
        >>> round(found.value("full/ndcg@10"), 3) <= 1.0
        True
    """
    from fedrec_simulations.engines.held_data import exact_report

    released, private = run.result.get("test"), run.experiment.privacy.unit != "none"
    if exact and private:
        return Evaluation(run.name, exact_report(run.source), (HELD_DATA,))
    if released is None and run.split.test is None:
        raise DataError(f"run {run.name!r} has no test part: hold one out with fedrec.split")
    if released is None:
        raise DataError(
            f"run {run.name!r} released no metrics: use exact=True for figures on data that you hold, which epsilon "
            "does not cover"
        )
    return Evaluation(run.name, released, (TUNING_NOT_COVERED,) if private else ())


def recommend(run: Run, users: Iterable[Any] | None = None, n: int = 10) -> Recommendations:
    """Lists of several users, each made on the node that holds the user's history and personal state.

    Args:
        run: finished.
        users: ids as in the data; None: all users.
        n: list length, at least 1; a list is shorter where fewer items are left that the user has not seen.

    Raises:
        DataError: an unknown user, or n below 1.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=["a", "a", "a", "b", "b", "b"], item=[7, 8, 9, 7, 9, 5])
        >>> run = fedrec.train(data, "popularity")
        >>> sorted(set(fedrec.recommend(run, n=2).columns()["user"]))
        ['a', 'b']
    """
    from fedrec_simulations.report.examples import lists

    wanted = None if users is None else [str(user) for user in users]
    return listed(
        [
            (example.user, rank, line.item, line.title, line.score, line.held_out)
            for example in lists(run.source, wanted, n)
            for rank, line in enumerate(example.recommended, start=1)
        ]
    )
