"""What the service answers. Every name that comes is held against a list; no path is ever made of one.

A refusal is a status and a fixed text; whatever goes wrong inside is logged here and told to nobody.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from fedrec.errors import FedrecError, RegistryError
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import delta_name
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_server.registry import Registry
from fedrec_server.service.campaigns import Campaigns
from fedrec_server.service.limits import Buckets, Limits, Slots
from fedrec_server.service.metric_sums import MetricSums

log = logging.getLogger(__name__)

SERVICE = "fedrec.v1.ModelService"
PIECE_BYTES = 256 << 10
MAX_VERSIONS = 64
RETRY = ("retry-min-seconds", "retry-max-seconds")
_TOKEN = re.compile(r"[0-9a-f]{16,64}")
_CLIENT = re.compile(r"[0-9.]{1,23}")
_CAMPAIGN = re.compile(r"[0-9a-f]{8,64}")
_NODE_KEY = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{100,300}( .{0,60})?")
Reply = TypeVar("Reply")


class Refused(Exception):  # noqa: N818 - an answer, not a mishap
    """A call is refused with a status and a fixed text."""

    def __init__(self, code: grpc.StatusCode, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.retry = code, text, retry


@dataclass(frozen=True)
class Shelf:
    """A population: its registry, its sums, and what was read of its versions."""

    registry: Registry
    sums: MetricSums
    manifests: dict[int, tuple[bytes, Manifest]]


class ModelService:
    """Answers calls for some populations.

    Args:
        registries: one per population.
        limits: see there.
        campaigns: of training.
    """

    def __init__(self, registries: list[Registry], limits: Limits, campaigns: Campaigns) -> None:
        self._shelves = {each.population: Shelf(each, MetricSums(each.folder), {}) for each in registries}
        self._limits, self._campaigns = limits, campaigns
        self._buckets, self._downloads = Buckets(limits), Slots(limits.downloads)
        self._lock = threading.Lock()

    def check_in(self, request: messages.CheckInRequest) -> messages.CheckInReply:
        """What there is, and when to come back."""
        shelf = self._shelf(request.population)
        _expect(bool(_TOKEN.fullmatch(request.token)), "token: expected 16 to 64 hexadecimal digits")
        _expect(bool(_CLIENT.fullmatch(request.client_version)), "client_version: expected e.g. 0.1.0")
        first, last = self._limits.retry_seconds
        return messages.CheckInReply(
            model_version=shelf.registry.aliases.version_for(request.token),
            retry_min_seconds=first,
            retry_max_seconds=last,
            campaign=self._campaigns.open_for(request.population) if request.trains else "",
        )

    def manifest(self, request: messages.ManifestRequest) -> messages.Document:
        """The signed manifest of a version."""
        return messages.Document(content=self._known(request.population, request.version)[0])

    def download(self, request: messages.DownloadRequest) -> Iterator[messages.Piece]:
        """A file that the manifest of the version names, from an offset on."""
        manifest = self._known(request.population, request.version)[1]
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        sizes |= {delta_name(base): entry.size for base, entry in manifest.deltas.items()}
        if request.file not in sizes:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such file")
        _expect(request.offset <= sizes[request.file], "offset: beyond the end of the file")
        name = next(name for name in sizes if name == request.file)
        with self._downloads.one() as free:
            if not free:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry=True)
            folder = self._shelves[request.population].registry.path(manifest.version)
            yield from _pieces(folder / name, request.offset)

    def enrol(self, request: messages.EnrolRequest) -> messages.EnrolReply:
        """Put a device on a roster."""
        _expect(bool(_CAMPAIGN.fullmatch(request.campaign)), "campaign: expected 8 to 64 hexadecimal digits")
        _expect(len(request.identity) == 32, "identity: expected 32 bytes")
        _expect(bool(_NODE_KEY.fullmatch(request.node_key)), "node_key: expected a P-384 key in one line")
        _expect(1 <= request.users <= 1000, "users: expected 1 to 1000")
        self._campaigns.enrol(request.campaign, request.identity, request.node_key, request.users)
        return messages.EnrolReply()

    def task(self, request: messages.TaskRequest) -> messages.Document:
        """The signed task of a campaign; empty while its roster is open."""
        _expect(bool(_CAMPAIGN.fullmatch(request.campaign)), "campaign: expected 8 to 64 hexadecimal digits")
        _expect(len(request.identity) == 32, "identity: expected 32 bytes")
        return messages.Document(content=self._campaigns.task(request.campaign, request.identity) or b"")

    def send_metrics(self, request: messages.MetricsRequest) -> messages.MetricsReply:
        """Add counters to the sums."""
        shelf = self._shelf(request.population)
        _expect(request.model_version in (0, *shelf.registry.versions()), "model_version: unknown")
        _expect(
            shelf.sums.add(request.model_version, dict(request.counters)), "counters: unknown or not finite"
        )
        return messages.MetricsReply()

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a gRPC server; nothing but these methods is answered.

        Messages are parsed here and not by gRPC, which keeps the stream of a call open whose message it cannot parse:
        after as many as a connection may have, nothing else would be answered on it.
        """
        unary: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "CheckIn": (self.check_in, messages.CheckInRequest),
            "GetManifest": (self.manifest, messages.ManifestRequest),
            "Enrol": (self.enrol, messages.EnrolRequest),
            "GetTask": (self.task, messages.TaskRequest),
            "SendMetrics": (self.send_metrics, messages.MetricsRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answering(call, kind), response_serializer=_to_bytes
            )
            for name, (call, kind) in unary.items()
        }
        methods["Download"] = grpc.unary_stream_rpc_method_handler(
            self._streaming(self.download, messages.DownloadRequest), response_serializer=_to_bytes
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def close(self) -> None:
        """Write what is not written."""
        for shelf in self._shelves.values():
            shelf.sums.close()

    def _answering(
        self, call: Callable[[Any], Reply], kind: Any
    ) -> Callable[[bytes, grpc.ServicerContext], Reply]:
        def answer(content: bytes, context: grpc.ServicerContext) -> Reply:
            try:
                self._admit(context)
                return call(_parsed(content, kind))
            except Exception as error:
                self._abort(context, error)
                raise  # abort has raised already

        return answer

    def _streaming(
        self, call: Callable[[Any], Iterator[Reply]], kind: Any
    ) -> Callable[[bytes, grpc.ServicerContext], Iterator[Reply]]:
        def answer(content: bytes, context: grpc.ServicerContext) -> Iterator[Reply]:
            try:
                self._admit(context)
                yield from call(_parsed(content, kind))
            except Exception as error:
                self._abort(context, error)

        return answer

    def _admit(self, context: grpc.ServicerContext) -> None:
        if not self._buckets.take(context.peer().rpartition(":")[0]):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", retry=True)

    def _abort(self, context: grpc.ServicerContext, error: Exception) -> None:
        if isinstance(error, Refused):
            if error.retry:
                seconds = zip(RETRY, self._limits.retry_seconds, strict=True)
                context.set_trailing_metadata([(name, f"{value:.0f}") for name, value in seconds])
            context.abort(error.code, error.text)
        if isinstance(error, RegistryError):
            log.info("refused: %s", error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not possible now")
        if isinstance(error, FedrecError):
            log.error("refused: %s", error)
        else:
            log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, "internal error")

    def _shelf(self, population: str) -> Shelf:
        shelf = self._shelves.get(population)
        if shelf is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such population")
        return shelf

    def _known(self, population: str, version: int) -> tuple[bytes, Manifest]:
        """The manifest of a version, verified once, as bytes and as read."""
        shelf = self._shelf(population)
        with self._lock:
            if version not in shelf.manifests:
                if version not in shelf.registry.versions():
                    raise Refused(grpc.StatusCode.NOT_FOUND, "no such version")
                content = (shelf.registry.path(version) / MANIFEST_FILE).read_bytes()
                while len(shelf.manifests) >= MAX_VERSIONS:
                    shelf.manifests.pop(min(shelf.manifests))
                shelf.manifests[version] = (content, shelf.registry.manifest(version))
            return shelf.manifests[version]


def _pieces(path: Path, offset: int) -> Iterator[messages.Piece]:
    with path.open("rb") as file:
        file.seek(offset)
        while content := file.read(PIECE_BYTES):
            yield messages.Piece(content=content)


def _parsed(content: bytes, kind: Any) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message of this call") from error


def _to_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _expect(holds: bool, text: str) -> None:
    if not holds:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
