"""What the service answers. Every name that comes is held against a list; no path is ever made of one.

A refusal is a status and a fixed text. Out of scope: who may ask, how often, and for how long (`calls`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedrec.wire.counters import checked
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_server.network.refusals import Refused
from fedrec_server.registry import PublicFiles, Registry
from fedrec_server.service._metric_sums import MetricSums
from fedrec_server.service._quotas import Quotas

_REPORT = re.compile(r"[0-9a-f]{32}")
_CLIENT = re.compile(r"[0-9.]{1,23}")


@dataclass(frozen=True)
class PopulationFiles:
    """A population: the files that may be handed out, and its sums."""

    files: PublicFiles
    sums: MetricSums


@dataclass(frozen=True)
class FilePiece:
    """A file to hand out, from an offset on."""

    path: Path
    offset: int


class ModelService:
    """Answers for some populations; safe for several threads.

    Args:
        registries: one per population.
        retry_seconds: between which devices are to come back.
        quotas: of what may be added in a day.
    """

    def __init__(
        self,
        registries: list[Registry],
        retry_seconds: tuple[float, float],
        quotas: Quotas,
    ) -> None:
        self._by_population = {
            each.population: PopulationFiles(PublicFiles(each), MetricSums(each.folder))
            for each in registries
        }
        self._retry_seconds, self._quotas = retry_seconds, quotas

    def check_in(self, request: messages.CheckInRequest) -> messages.CheckInReply:
        """What there is, and when to come back."""
        self._population(request.population)
        _expect(bool(_CLIENT.fullmatch(request.client_version)), "client_version: expected e.g. 0.1.0")
        first, last = self._retry_seconds
        return messages.CheckInReply(retry_min_seconds=first, retry_max_seconds=last)

    def fetch(self, request: messages.FetchRequest) -> FilePiece:
        """A public file of a repository: signed metadata, or a target that is signed now."""
        path = self._population(request.population).files.find(request.path)
        if path is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such file")
        try:
            size = path.stat().st_size
        except OSError as error:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such file") from error
        _expect(request.offset <= size, "offset: beyond the end of the file")
        return FilePiece(path, request.offset)

    def send_metrics(self, request: messages.MetricsRequest, address: str) -> messages.MetricsReply:
        """Add counters to the sums, within the quota of an address; a report that was counted is not again."""
        population_files = self._population(request.population)
        _expect(request.model_version in {0} | population_files.files.versions(), "model_version: unknown")
        _expect(bool(_REPORT.fullmatch(request.token)), "token: expected 32 hexadecimal digits")
        try:
            counters = checked(request.counters)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "counters: unknown or not finite") from error
        token = f"{request.population}|{request.token}"
        if token in self._quotas.tokens:
            return messages.MetricsReply()
        if not self._quotas.reports.take(f"{request.population}|{address}"):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "reports of a day: enough", retry=True)
        if self._quotas.tokens.add(token):
            population_files.sums.add(request.model_version, counters)
        return messages.MetricsReply()

    def write(self) -> None:
        """Write the sums that are not written."""
        for population_files in self._by_population.values():
            population_files.sums.write()

    def _population(self, population: str) -> PopulationFiles:
        population_files = self._by_population.get(population)
        if population_files is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such population")
        return population_files


def _expect(holds: bool, text: str) -> None:
    if not holds:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
