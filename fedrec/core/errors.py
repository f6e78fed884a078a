"""Every error a user of fedrec can meet, and the exit code the command line gives it.

    FedrecError                      exit 1   base class; never raised itself
    ├── ConfigError                  exit 3   the configuration is wrong (all problems in one message)
    ├── DataError                    exit 4   a data file is missing, broken, empty or contradicts its description
    │   └── DownloadError            exit 5   a download failed; the message says how to place the file by hand
    ├── RunError                     exit 6   a run folder is missing, incomplete, or of another configuration
    ├── RoundAbandoned               exit 7   fewer nodes answered than the minimum, too many times in a row
    ├── ProtocolError                exit 8   a message does not follow the round protocol
    ├── FederationError              exit 9   the deployment could not be started, reached or stopped
    ├── EnvironmentProblem           exit 10  something is missing or should not be there (`fedrec doctor` says what)
    ├── BudgetExhausted              exit 11  the next release would exceed the privacy budget; nothing was released
    ├── LedgerTampered               exit 12  the privacy ledger does not hold together; nothing is released
    ├── PrivacyRefused               exit 13  a setting or a round whose stated guarantee would be false
    ├── AggregationRefused           exit 14  a device will not take this step of secure aggregation (`reason`: why)
    ├── AggregationAborted           exit 15  secure aggregation ended without a sum; nothing was learned
    ├── ConsentRequired              exit 16  the user has not agreed to this; nothing was done
    ├── UpdateRejected               exit 17  a model or task from a service is refused; what there was stays in use
    │   ├── BadSignature                      not signed by whom it must be, or not for this
    │   ├── BadContent                        broken, or not what the signed manifest says
    │   ├── Rollback                          not newer than what is in use
    │   ├── Expired                           out of its time
    │   ├── WrongPopulation                   made for others
    │   └── ClientTooOld                      needs a newer client
    ├── ServiceError                 exit 18  the model service cannot be reached, or refuses
    │   ├── ServerBusy                        come back later (`retry_after_seconds`)
    │   └── NotPublished                      there is no such file
    ├── StoreError                   exit 19  a device's store cannot be used
    │   ├── StoreLocked                       the key is missing or wrong, or another process holds it
    │   ├── StoreCorrupt                      what is in it does not hold together
    │   └── StoreFull                         no room; what was acknowledged before is still there
    └── RegistryError                exit 20  the model registry lacks something, or does not allow it

Exit 0 is success, exit 2 a wrong command line (the convention of the shell), exit 130 an interruption that
left a checkpoint. A message is one line: what was given, what was expected, what to do.
"""

from __future__ import annotations


class FedrecError(Exception):
    """Base of all errors that are the user's or the environment's, not a bug in fedrec.

    Attributes:
        exit_code: of the command line that ends with it.

    Example:
        >>> import fedrec
        >>> try:
        ...     fedrec.load_dataset("movie-tweetings")
        ... except fedrec.FedrecError as error:
        ...     print(error.exit_code, str(error)[:40])
        3 data.name 'movie-tweetings' is not known
    """

    exit_code = 1


class ConfigError(FedrecError):
    """The configuration is wrong."""

    exit_code = 3


class DataError(FedrecError):
    """A data file is missing, broken, empty, or contradicts its description."""

    exit_code = 4


class DownloadError(DataError):
    """A download failed; the message says where the file can be placed by hand."""

    exit_code = 5


class RunError(FedrecError):
    """A run folder is missing, incomplete, or belongs to another configuration."""

    exit_code = 6


class RoundAbandoned(FedrecError):  # noqa: N818 - it names what happened
    """Fewer valid replies than the minimum, more often in a row than allowed."""

    exit_code = 7


class ProtocolError(FedrecError):
    """A message does not follow the round protocol."""

    exit_code = 8


class FederationError(FedrecError):
    """The deployment could not be started, reached or stopped."""

    exit_code = 9


class EnvironmentProblem(FedrecError):  # noqa: N818
    """Something is missing from the installation."""

    exit_code = 10


class BudgetExhausted(FedrecError):  # noqa: N818
    """The next release would exceed the privacy budget of a data subject; nothing was released."""

    exit_code = 11


class LedgerTampered(FedrecError):  # noqa: N818
    """The privacy ledger was edited, cut or is incomplete; nothing is released on its word."""

    exit_code = 12


class PrivacyRefused(FedrecError):  # noqa: N818
    """A setting or a round whose stated guarantee would be false or meaningless."""

    exit_code = 13


class AggregationRefused(FedrecError):  # noqa: N818
    """A device will not take a step of secure aggregation, or a message of it is not what it must be.

    Args:
        message: one line.
        reason: a `fedrec.core.refusal_reasons.Reason`, which tells rules apart for tests and statistics.
    """

    exit_code = 14

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class AggregationAborted(FedrecError):  # noqa: N818
    """Secure aggregation ended without a sum: too few devices were left, or shares did not fit together.

    Args:
        message: one line.
        revealed: devices have given away shares: their updates of this round may not be summed again.
    """

    exit_code = 15

    def __init__(self, message: str, *, revealed: bool = False) -> None:
        super().__init__(message)
        self.revealed = revealed


class ConsentRequired(FedrecError):  # noqa: N818
    """The user has not agreed to this."""

    exit_code = 16


class UpdateRejected(FedrecError):  # noqa: N818
    """A model or a task from a service is not accepted; the last good one stays in use."""

    exit_code = 17


class BadSignature(UpdateRejected):
    """Not signed by a key that the pinned root stands for, or signed for something else."""


class BadContent(UpdateRejected):
    """Broken, or not what the signed manifest says."""


class Rollback(UpdateRejected):
    """Not newer than what is in use."""


class Expired(UpdateRejected):
    """Past its time, or before it."""


class WrongPopulation(UpdateRejected):
    """Made for another population."""


class ClientTooOld(UpdateRejected):
    """Needs a newer client than this one."""


class ServiceError(FedrecError):
    """The model service cannot be reached, or refuses."""

    exit_code = 18


class ServerBusy(ServiceError):  # noqa: N818
    """The service asks to come back later.

    Args:
        message: one line.
        retry_after_seconds: wait between these many seconds.
    """

    def __init__(self, message: str, retry_after_seconds: tuple[float, float]) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotPublished(ServiceError):  # noqa: N818
    """The service, or a web server, has no such file."""


class StoreError(FedrecError):
    """A device's store cannot be used."""

    exit_code = 19


class StoreLocked(StoreError):  # noqa: N818
    """The key is missing or wrong, or another process holds the store."""


class StoreCorrupt(StoreError):  # noqa: N818
    """What is in the store does not hold together."""


class StoreFull(StoreError):  # noqa: N818
    """There is no room; what was acknowledged before is still there."""


class RegistryError(FedrecError):
    """The model registry lacks something, or does not allow it."""

    exit_code = 20
