from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    WAIT: _ClassVar[State]
    QUESTION: _ClassVar[State]
    OVER: _ClassVar[State]
STATE_UNSPECIFIED: State
WAIT: State
QUESTION: State
OVER: State

class CheckInRequest(_message.Message):
    __slots__ = ("protocol", "population", "client_version", "model_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    population: str
    client_version: str
    model_version: int
    def __init__(self, protocol: _Optional[int] = ..., population: _Optional[str] = ..., client_version: _Optional[str] = ..., model_version: _Optional[int] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("retry_min_seconds", "retry_max_seconds", "job", "joinable")
    RETRY_MIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    JOINABLE_FIELD_NUMBER: _ClassVar[int]
    retry_min_seconds: float
    retry_max_seconds: float
    job: str
    joinable: bool
    def __init__(self, retry_min_seconds: _Optional[float] = ..., retry_max_seconds: _Optional[float] = ..., job: _Optional[str] = ..., joinable: bool = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "job", "identity", "proof", "admission", "evidence", "last_round")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    job: str
    identity: bytes
    proof: bytes
    admission: str
    evidence: bytes
    last_round: int
    def __init__(self, protocol: _Optional[int] = ..., job: _Optional[str] = ..., identity: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., admission: _Optional[str] = ..., evidence: _Optional[bytes] = ..., last_round: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("session", "retry_after_seconds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    retry_after_seconds: float
    def __init__(self, session: _Optional[bytes] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class StageRequest(_message.Message):
    __slots__ = ("session", "answered", "answer", "refused", "known")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    answered: int
    answer: bytes
    refused: bool
    known: int
    def __init__(self, session: _Optional[bytes] = ..., answered: _Optional[int] = ..., answer: _Optional[bytes] = ..., refused: bool = ..., known: _Optional[int] = ...) -> None: ...

class StageReply(_message.Message):
    __slots__ = ("state", "retry_after_seconds", "number", "common", "common_bytes", "own", "deadline_seconds", "reason", "content")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    COMMON_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    state: State
    retry_after_seconds: float
    number: int
    common: bytes
    common_bytes: int
    own: bytes
    deadline_seconds: float
    reason: str
    content: bytes
    def __init__(self, state: _Optional[_Union[State, str]] = ..., retry_after_seconds: _Optional[float] = ..., number: _Optional[int] = ..., common: _Optional[bytes] = ..., common_bytes: _Optional[int] = ..., own: _Optional[bytes] = ..., deadline_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("session", "number", "offset", "total", "sha256", "content")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    number: int
    offset: int
    total: int
    sha256: bytes
    content: bytes
    def __init__(self, session: _Optional[bytes] = ..., number: _Optional[int] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ..., sha256: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("received", "accepted", "retry_after_seconds", "reason")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    received: int
    accepted: bool
    retry_after_seconds: float
    reason: str
    def __init__(self, received: _Optional[int] = ..., accepted: bool = ..., retry_after_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class ContentRequest(_message.Message):
    __slots__ = ("session", "sha256", "offset", "most_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sha256: bytes
    offset: int
    most_bytes: int
    def __init__(self, session: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., most_bytes: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
