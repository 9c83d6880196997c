"""v2 of dicomapi's protocol as types: what travels between workflow, server and agent. Meaning: `docs/api.md`.

Both sides parse with `job.codec.decode`, so unknown keys are refused; bytes in JSON are standard base64.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from ..job.codec import CodecError
from ..job.names import JOB_ID, check_input_name, check_result_name
from ..job.spec import MAX_INLINE_BYTES
from ..job.states import JobState, Outcome
from .replies import Hello, Progress

BASE = "/mi-distcomp-api"
V2 = BASE + "/v2"
MAX_WAIT_SECONDS = 60
MAX_BODY_BYTES = 4 << 20
# `release` and `end` carry a manifest, which may be long.
MAX_DOCUMENT_BODY_BYTES = 96 << 20
MAX_SMALL_FILES = 64
MAX_LOG_PIECE = 1 << 20
MAX_HOLDING = 1000

FENCE = "Misrc-Fence"
UPLOAD_LENGTH = "Upload-Length"
UPLOAD_OFFSET = "Upload-Offset"
DIGEST = "Repr-Digest"
PARTIAL = "application/partial-upload"


class ApiError(str, enum.Enum):
    """Why a call was not done; part of the wire: never reuse one."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"
    METHOD = "method"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    GONE = "gone"
    FENCED = "fenced"
    TOO_LARGE = "too-large"
    MEDIA_TYPE = "media-type"
    OFFSET = "offset"
    REFUSED = "refused"
    BUSY = "busy"
    PAUSED = "paused"
    FULL = "full"
    INTERNAL = "internal"

    @property
    def status(self) -> int:
        """The HTTP status that it travels with."""
        return _STATUS[self]

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed later without anybody acting."""
        return self in (ApiError.TIMEOUT, ApiError.BUSY, ApiError.PAUSED, ApiError.FULL, ApiError.INTERNAL)


_STATUS = {
    ApiError.MALFORMED: 400,
    ApiError.UNAUTHENTICATED: 401,
    ApiError.FORBIDDEN: 403,
    ApiError.UNKNOWN: 404,
    ApiError.METHOD: 405,
    ApiError.TIMEOUT: 408,
    ApiError.CONFLICT: 409,
    ApiError.GONE: 410,
    ApiError.FENCED: 412,
    ApiError.TOO_LARGE: 413,
    ApiError.MEDIA_TYPE: 415,
    ApiError.OFFSET: 416,
    ApiError.REFUSED: 422,
    ApiError.BUSY: 429,
    ApiError.INTERNAL: 500,
    ApiError.PAUSED: 503,
    ApiError.FULL: 507,
}


@dataclass(frozen=True)
class Problem:
    """What a refusal says."""

    code: ApiError
    message: str = ""


@dataclass(frozen=True)
class Failure:
    """The body of a refusal."""

    error: Problem


@dataclass(frozen=True)
class Nothing:
    """A body that says nothing: `{}`."""


@dataclass(frozen=True)
class SmallInput:
    """An input that comes along with the submission; `content` is base64."""

    name: str
    size: int
    sha256: str
    content: str


@dataclass(frozen=True)
class Submission:
    """A job as the workflow registers it: `spec` is the text that was signed, kept word for word."""

    spec: str
    signature: Optional[str] = None
    inputs: Optional[Tuple[SmallInput, ...]] = None
    release: bool = False


@dataclass(frozen=True)
class Release:
    """All inputs are here; `manifest` is the text of their manifest (`job.manifest`)."""

    manifest: str


@dataclass(frozen=True)
class InputState:
    """How much of an input has arrived."""

    name: str
    size: int
    offset: int


@dataclass(frozen=True)
class ResultFile:
    """A result that can be fetched."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Job:
    """A job as the workflow sees it. `version` grows with every change."""

    job: str
    site: str
    program: str
    state: JobState
    since: float
    version: int
    released: bool = False
    cancel: bool = False
    outcome: Optional[Outcome] = None
    reason: Optional[str] = None
    progress: Optional[Progress] = None
    log_bytes: int = 0
    silent_since: Optional[float] = None
    inputs: Tuple[InputState, ...] = ()
    results: Tuple[ResultFile, ...] = ()
    small: Optional[Mapping[str, str]] = None


@dataclass(frozen=True)
class JobList:
    """The user's own jobs."""

    jobs: Tuple[Job, ...] = ()


@dataclass(frozen=True)
class Documents:
    """What the site says happened, as the texts that it signed."""

    manifest: Optional[str] = None
    receipt: Optional[str] = None
    signature: Optional[str] = None


@dataclass(frozen=True)
class Holding:
    """A claim that the agent works on."""

    job: str
    fence: int

    def __post_init__(self) -> None:
        _require_job(self.job)


@dataclass(frozen=True)
class Poll:
    """The agent asks for work, and renews the leases of what it holds."""

    agent: str
    wait: int = 0
    room: int = 0
    holding: Tuple[Holding, ...] = ()
    hello: Optional[Hello] = None

    def __post_init__(self) -> None:
        _require_job(self.agent)
        if not 0 <= self.wait <= MAX_WAIT_SECONDS or not 0 <= self.room <= MAX_HOLDING:
            raise ValueError("wait or room is out of bounds")
        if len(self.holding) > MAX_HOLDING:
            raise ValueError("too many claims are held")


@dataclass(frozen=True)
class Claim:
    """One job for this agent alone, as long as its fence is the highest."""

    job: str
    fence: int
    lease: float
    spec: str
    manifest: str
    signature: Optional[str] = None
    small: Optional[Mapping[str, str]] = None

    def __post_init__(self) -> None:
        _require_job(self.job)


@dataclass(frozen=True)
class Work:
    """What a poll brings."""

    claims: Tuple[Claim, ...] = ()
    cancel: Tuple[str, ...] = ()
    close: Tuple[str, ...] = ()
    lost: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """How a claimed job goes on."""

    fence: int
    state: JobState
    since: float
    reason: Optional[str] = None
    progress: Optional[Progress] = None


@dataclass(frozen=True)
class Orders:
    """What the workflow wishes; `missing` are results that still have to be uploaded before the end counts."""

    cancel: bool = False
    close: bool = False
    missing: Tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """A job's end at the site, with the documents that the site signed."""

    fence: int
    outcome: Outcome
    reason: str = ""
    manifest: Optional[str] = None
    receipt: Optional[str] = None
    signature: Optional[str] = None
    log_end: Optional[int] = None
    small: Optional[Mapping[str, str]] = field(default=None)


@dataclass(frozen=True)
class LogOffset:
    """How much of the log is here."""

    offset: int


def _require_job(text: str) -> None:
    if not re.fullmatch(JOB_ID, text, re.ASCII):
        raise ValueError("an id is not a canonical UUID")


def encode_bytes(data: bytes) -> str:
    """Bytes as they travel in JSON."""
    return base64.b64encode(data).decode("ascii")


def decode_bytes(text: str) -> bytes:
    """Canonical standard base64 only, or CodecError; `b64decode` alone lets spare bits of the last character pass."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CodecError("base64 is not well formed") from None
    if encode_bytes(data) != text:
        raise CodecError("base64 is not canonical")
    return data


def decode_small(small: Mapping[str, str], results: bool) -> Mapping[str, bytes]:
    """Files that came along, by name; CodecError or NameRefused where a name, the count or the sum is refused."""
    if len(small) > MAX_SMALL_FILES:
        raise CodecError("too many files came along")
    found = {}
    for name, content in small.items():
        (check_result_name if results else check_input_name)(name)
        found[name] = decode_bytes(content)
    if sum(map(len, found.values())) > MAX_INLINE_BYTES:
        raise CodecError("too many bytes came along")
    return found
