"""The predecessor's calls (`docs/api.md`, last section) on the same store: every answer has its old form.

Not covered: two clients of the predecessor at one site with one token and one address. Nothing in their calls tells one
that repeats a lost call from another one; a site that wants several at a time uses `misrc agent`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from ...job.codec import CodecError
from ...job.names import NameRefused
from ...wire import legacy
from ...wire.api import ApiError
from ...wire.legacy import Call as Kind
from ...wire.legacy_answers import Answer as OldAnswer
from ...wire.legacy_answers import Fault, answer_fault
from ..access import Who
from ..call import JSON, Answer, Call
from ..problems import Refused, malformed
from ..routes import MethodRefused
from ..service import Service
from ..tokens import AGENT, OPERATOR, WORKFLOW
from .files import stream_document

MAX_BODY = 64 << 10
MAX_QUERY = 2048
_FAULTS = {
    ApiError.UNAUTHENTICATED: Fault.UNAUTHORIZED,
    ApiError.FORBIDDEN: Fault.FORBIDDEN,
    ApiError.REFUSED: Fault.FORBIDDEN,
    ApiError.UNKNOWN: Fault.UNKNOWN_JOB,
    ApiError.GONE: Fault.UNKNOWN_JOB,
    ApiError.CONFLICT: Fault.WRONG_STATE,
    ApiError.FENCED: Fault.WRONG_STATE,
    ApiError.TOO_LARGE: Fault.TOO_LARGE,
    ApiError.BUSY: Fault.BUSY,
    ApiError.PAUSED: Fault.BUSY,
    ApiError.FULL: Fault.BUSY,
    ApiError.TIMEOUT: Fault.BUSY,
}
_WITH_FILES = (Kind.CALC_PARAMS, Kind.GET_CALC_RESULT)
Handler = Callable[[Service, Who, Call, Any], Awaitable[OldAnswer]]


class OldFace:
    """Answers the predecessor's calls."""

    def __init__(self, service: Service, handlers: dict[Kind, Handler], check: Callable[[Call], None]) -> None:
        self._service, self._handlers, self._check = service, handlers, check
        self._kinds = {kind.path.encode(): kind for kind in Kind}

    def knows(self, path: bytes) -> bool:
        """Whether this is one of the calls."""
        return path in self._kinds

    async def answer(self, call: Call, note: Any) -> Answer:
        """The answer, in the old form whatever happens; `note` takes what the log says."""
        kind = self._kinds[call.path]
        note.route = kind.path
        try:
            try:
                self._check(call)
                return await self._send(kind, await self._act(kind, call, note))
            except NameRefused as error:
                # Its words never hold the name itself.
                raise malformed(f"a file name {error}") from None
            except (CodecError, ValueError):
                raise malformed("the request is not of this call's form") from None
        except MethodRefused as refused:
            answer = await self._send(kind, OldAnswer(405, {"errors": [{"code": 405, "message": refused.message}]}))
            answer.headers.append((b"allow", ", ".join(refused.allowed).encode()))
            return answer
        except Refused as refused:
            fault = _FAULTS.get(refused.code, Fault.BAD_REQUEST)
            answer = await self._send(kind, answer_fault(kind, fault, refused.message))
            if fault is Fault.UNAUTHORIZED:
                answer.headers.append((b"www-authenticate", b"Bearer"))
            if fault is Fault.BUSY:
                answer.headers.append((b"retry-after", b"5"))
            return answer

    async def _act(self, kind: Kind, call: Call, note: Any) -> OldAnswer:
        who = await self._service.access.find(call)
        note.user = who.user
        if call.method != kind.method:
            raise MethodRefused((kind.method,))
        who.require(OPERATOR if kind is Kind.RELOAD_INI else AGENT if kind.of_site else WORKFLOW)
        return await self._handlers[kind](self._service, who, call, kind)

    async def _send(self, kind: Kind, old: OldAnswer) -> Answer:
        answer = Answer(old.http)
        if kind not in _WITH_FILES or ("errors" in old.document and len(old.document["errors"][0]) == 2):
            answer.body = json.dumps(old.document, separators=(",", ":")).encode()
            return answer
        answer.stream, answer.length = await stream_document(self._service, old.document)
        return answer


def read_query(call: Call, kind: Kind) -> Any:
    """A GET's typed request; its body, if it has one, is not looked at."""
    return _read_query(kind, call.raw_query)


@functools.lru_cache(4096)  # a poller asks the same thing all day
def _read_query(kind: Kind, raw: bytes) -> Any:
    if len(raw) > MAX_QUERY or re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
        raise malformed("the query is not well formed")
    return legacy.parse_request(kind, legacy.parse_query(raw.decode("ascii")))


async def read_body(call: Call, kind: Kind) -> Any:
    """A POST's typed request, where no files are in it."""
    call.require_media(JSON)
    from .scanner import request_scanner

    scanner = request_scanner(kind, _no_sink)
    scanner.feed(await call.body(MAX_BODY))
    return legacy.parse_request(kind, legacy.parse_query(call.raw_query.decode("ascii")), scanner.finish())


def _no_sink(_path: Any) -> Any:
    raise CodecError("this call carries no files")
