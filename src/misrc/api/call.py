"""One HTTP call as the handlers see it: checked before it is read, bounded while it is read.

The server speaks ASGI itself instead of through a framework: paths are matched as they were sent and decoded once, no
form parser or compression exists at all, and a body is never held unless it is a bounded JSON document.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..job.codec import CodecError, decode, dump_json, encode, parse_json
from ..wire.api import ApiError, Failure, Problem
from .problems import Refused, malformed

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
JSON = b"application/json"
MAX_QUERY = 2048
LARGE_BODY = 4 << 20
MAX_DRAINED = 1 << 20
DRAIN_SECONDS = 5.0
RETRY_SECONDS = b"5"
_SINGLE = {
    b"host",
    b"authorization",
    b"content-type",
    b"content-length",
    b"transfer-encoding",
    b"range",
    b"if-range",
    b"expect",
}
_SAFE_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")


class Gone(Exception):
    """The caller has hung up: nobody waits for an answer."""


@dataclass
class Answer:
    """What is sent back. `stream` goes on where a body is too large to be held."""

    status: int = 200
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    media: bytes = JSON
    stream: AsyncIterator[bytes] | None = None
    length: int | None = None


def answer_value(value: Any, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    """A typed value as JSON; what is absent is left out."""
    return Answer(status, dump_json(_compact(encode(value))), headers or [])


def _compact(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def answer_refusal(refused: Refused) -> Answer:
    """A refusal in v2's form."""
    headers = []
    if refused.code in (ApiError.BUSY, ApiError.PAUSED, ApiError.FULL):
        headers.append((b"retry-after", RETRY_SECONDS))
    if refused.code is ApiError.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.offset is not None:
        headers.append((b"upload-offset", str(refused.offset).encode()))
    return answer_value(Failure(Problem(refused.code, refused.message)), refused.code.status, headers)


@dataclass(frozen=True)
class BodyRate:
    """A body brings at least `rate` bytes a second, averaged over `seconds`."""

    rate: int
    seconds: float


class Call:
    """A request. `path` has no query and is still percent-encoded; `headers` are lower-case, each once."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, pace: BodyRate) -> None:
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.client: str = scope["client"][0] if scope.get("client") else ""
        self.raw_query: bytes = scope["query_string"]
        self.duplicates: set[bytes] = set()
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in self.headers:
                self.duplicates.add(name)
            self.headers[name] = value
        self._receive = receive
        self._pace = pace
        self._hangup: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []
        # Bytes of both bodies so far: whether anything moves.
        self.moved = 0
        self.read_to_end = (
            self.headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in self.headers
        )

    def check(self) -> None:
        """Refuse what is ambiguous before anything acts on it."""
        if any(name in _SINGLE or name.startswith((b"upload-", b"misrc-", b"repr-")) for name in self.duplicates):
            raise malformed("a header stands twice")
        if b"host" not in self.headers:
            raise malformed("the Host header is missing")
        if self.headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise malformed("the body's transfer coding is not taken")
        if b"content-encoding" in self.headers:
            raise Refused(ApiError.MEDIA_TYPE, "compressed bodies are not taken")
        if not all(_SAFE_NAME.fullmatch(name) for name in self.headers):
            raise malformed("a header's name is not well formed")

    # -- reading -------------------------------------------------------------------------------------------------------

    def text_header(self, name: str) -> str | None:
        """A header's value; Refused where it is not ASCII."""
        value = self.headers.get(name.lower().encode())
        try:
            return None if value is None else value.decode("ascii").strip()
        except UnicodeDecodeError:
            raise malformed("a header is not ASCII") from None

    def number_header(self, name: str) -> int | None:
        """A header that holds a whole number."""
        text = self.text_header(name)
        if text is None:
            return None
        return parse_number(text, f"the header {name}")

    def query(self, **allowed: Callable[[str, str], T]) -> dict[str, T]:
        """The query's values; unknown names, names that stand twice and broken encodings are refused."""
        if not self.raw_query:
            return {}
        if len(self.raw_query) > MAX_QUERY or re.search(rb"%(?![0-9A-Fa-f]{2})", self.raw_query):
            raise malformed("the query is not well formed")
        try:
            pairs = urllib.parse.parse_qsl(
                self.raw_query.decode("ascii"), True, True, errors="strict", max_num_fields=len(allowed)
            )
        except ValueError:
            raise malformed("the query is not well formed") from None
        if len(dict(pairs)) != len(pairs) or not set(dict(pairs)) <= set(allowed):
            raise malformed("the query has a name that is unknown or stands twice")
        return {name: allowed[name](value, name) for name, value in pairs}

    def content_length(self) -> int | None:
        """The announced length of the body; None where it comes in chunks."""
        if b"transfer-encoding" in self.headers:
            return None
        return self.number_header("content-length") or 0

    def require_media(self, media: bytes) -> None:
        """Refuse another kind of body."""
        kind, _, rest = self.headers.get(b"content-type", b"").partition(b";")
        charset = rest.strip().lower().replace(b'"', b"")
        if kind.strip().lower() != media or charset not in (b"", b"charset=utf-8"):
            raise Refused(ApiError.MEDIA_TYPE, f"the body has to be {media.decode()}")

    async def pieces(self, limit: int | None = None) -> AsyncIterator[bytes]:
        """The body as it comes; raises Gone when it is cut, Refused when it is too long or too slow."""
        if self.read_to_end:
            return
        loop = asyncio.get_running_loop()
        waited, count, total = 0.0, 0, 0
        while not self.read_to_end:
            asked = loop.time()
            try:
                async with asyncio.timeout(self._pace.seconds):
                    message = await self._receive()
            except TimeoutError:
                raise Refused(ApiError.TIMEOUT, "the body does not come") from None
            if message["type"] != "http.request":
                raise Gone
            # Only the time spent in waiting for the caller counts, never that of our own disk.
            waited += loop.time() - asked
            body: bytes = message.get("body", b"")
            count += len(body)
            total += len(body)
            self.moved += len(body)
            if limit is not None and total > limit:
                raise Refused(ApiError.TOO_LARGE, "the body is too long")
            self.read_to_end = not message.get("more_body", False)
            if waited > self._pace.seconds:
                if count < self._pace.rate * waited and not self.read_to_end:
                    raise Refused(ApiError.TIMEOUT, "the body comes too slowly")
                waited, count = 0.0, 0
            if body:
                yield body

    async def drain(self) -> None:
        """Take in a short body that nobody wanted: closed on while it is being sent, its sender would see no answer."""
        with contextlib.suppress(Gone, Refused, TimeoutError):
            waits = b"expect" in self.headers or self._hangup is not None
            if waits or (self.content_length() or 0) > MAX_DRAINED:
                return
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self.pieces(MAX_DRAINED):
                    pass

    async def body(self, limit: int) -> bytes:
        """A whole body of at most `limit` bytes."""
        if (self.content_length() or 0) > limit:
            raise Refused(ApiError.TOO_LARGE, "the body is too long")
        return b"".join([piece async for piece in self.pieces(limit)])

    async def value(self, cls: type[T], limit: int) -> T:
        """The body as a typed value out of strict JSON."""
        self.require_media(JSON)
        data = await self.body(limit)
        if len(data) > LARGE_BODY:
            return await asyncio.to_thread(parse_value, cls, data)
        return parse_value(cls, data)

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def wait_for(self, notified: asyncio.Future[None], seconds: float) -> None:
        """Until it is notified, at most so long; raises Gone when the caller hangs up."""
        if self._hangup is None:
            self._hangup = asyncio.get_running_loop().create_task(self._hung_up())
        await asyncio.wait((notified, self._hangup), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._hangup.done():
            raise Gone

    async def _hung_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def accompany(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this beside the call, until its answer is sent."""
        self._beside.append(asyncio.get_running_loop().create_task(work))

    def finish(self) -> None:
        """Nothing more is read or sent."""
        for task in (self._hangup, *self._beside):
            if task is not None:
                task.cancel()


def parse_value(cls: type[T], data: bytes) -> T:
    """A typed value out of strict JSON; a lone surrogate is refused like everything else that is not text."""
    try:
        value = parse_json(data)
        if b"\\u" in data:
            _refuse_surrogates(value)
        return decode(cls, value)
    except CodecError as error:
        raise malformed(_safe(str(error))) from None
    except UnicodeEncodeError:
        raise malformed("the text has a lone surrogate") from None


def _refuse_surrogates(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode("utf-8")
            _refuse_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)


def _safe(message: str) -> str:
    """A codec's message where it is plain words and places; else it may quote what was sent."""
    return message if re.fullmatch(r"[A-Za-z0-9_.\[\]:, ]{1,120}", message) else "the body is not what this call takes"


def parse_number(text: str, what: str) -> int:
    """A whole number in decimal digits, as it is written and no other way."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text, re.ASCII):
        raise malformed(f"{what} is not a number")
    return int(text)


def parse_segment(raw: bytes) -> str:
    """One percent-encoded name of a path."""
    if re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
        raise malformed("the path is not well formed")
    try:
        return urllib.parse.unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("the path is not UTF-8") from None
