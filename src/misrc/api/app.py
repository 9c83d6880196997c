"""The ASGI application: one call in, one answer out, and nothing but a declared refusal when anything is wrong."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from .. import __version__
from ..job.codec import dump_json
from ..job.states import TransitionError
from ..wire import api
from ..wire.api import ApiError
from . import routes
from .call import Answer, Call, Gone, Receive, Send, answer_refusal
from .legacy.calls import OldFace
from .legacy.sites import HANDLERS
from .problems import Refused, unknown
from .proxies import Network, find_client
from .schema import JOBS
from .service import Service

LOG = logging.getLogger("misrc.api")
ACCESS = logging.getLogger("misrc.access")
V2 = api.V2.encode()
HEALTH = V2 + b"/health"
_FIXED = [(b"x-content-type-options", b"nosniff")]


class Application:
    """The service as ASGI."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._hosts = {name.encode() for name in service.server.hosts}
        self._proxies = [ipaddress.ip_network(network) for network in service.server.trusted_proxies]
        self._old = OldFace(service, HANDLERS, self._check)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One event of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        call = Call(scope, receive, self.service.pace)
        started = time.monotonic()
        note = _Note()
        try:
            answer = await self._answer(call, note)
            await _send(call, answer, send)
        except Gone:
            note.status = 499
        except asyncio.CancelledError:
            # Another call for the same upload came, or the server ends.
            note.status = 503
            await _send(call, answer_refusal(Refused(ApiError.PAUSED, "the call was ended; go on")), send)
        finally:
            call.finish()
        _log(call, note, self._proxies, time.monotonic() - started)

    async def _answer(self, call: Call, note: _Note) -> Answer:
        try:
            answer = await self._dispatch(call, note)
        except routes.MethodRefused as refused:
            answer = answer_refusal(refused)
            answer.headers.append((b"allow", ", ".join(refused.allowed).encode()))
        except Refused as refused:
            answer = answer_refusal(refused)
        except TransitionError:
            answer = answer_refusal(Refused(ApiError.CONFLICT, "the job's state does not allow that"))
        except (Gone, asyncio.CancelledError):
            raise
        except Exception:
            LOG.exception("a call failed")
            answer = answer_refusal(Refused(ApiError.INTERNAL, "our own failure; it is in the server's log"))
        note.status = answer.status
        return answer

    async def _dispatch(self, call: Call, note: _Note) -> Answer:
        if self._old.knows(call.path):
            return await self._old.answer(call, note)
        self._check(call)
        if call.path.startswith(V2 + b"/"):
            if call.path == HEALTH:
                return await health(self.service, call)
            return await self._dispatch_v2(call, note)
        await self.service.access.find(call)
        raise unknown()

    async def _dispatch_v2(self, call: Call, note: _Note) -> Answer:
        who = await self.service.access.find(call)
        note.user = who.user
        found = routes.match(call.method, call.path[len(V2) :])
        note.route = found.route.template
        who.require(found.route.scope)
        if b"host" in call.headers and not found.route.query and call.raw_query:
            call.query()
        return await found.route.handler(self.service, who, call, *found.values)

    def _check(self, call: Call) -> None:
        call.check()
        self._check_host(call)

    def _check_host(self, call: Call) -> None:
        if self._hosts and call.headers[b"host"].lower() not in self._hosts:
            host, _, port = call.headers[b"host"].lower().rpartition(b":")
            if not port.isdigit() or host not in self._hosts:
                raise Refused(ApiError.MALFORMED, "this server has another name")


class _Note:
    """What the log says of a call. The route's template stands there, never what was sent."""

    def __init__(self) -> None:
        self.user = ""
        self.route = ""
        self.status = 0


async def health(service: Service, call: Call) -> Answer:
    """Whether the service can read its jobs, else `paused`; needs no token, and tells nothing but the version."""
    if call.method not in ("GET", "HEAD"):
        raise routes.MethodRefused(("GET", "HEAD"))
    await service.database.read(lambda connection: connection.execute(select(JOBS.c.number).limit(1)).first())
    return Answer(200, dump_json({"misrc": __version__, "status": "ok"}))


async def _send(call: Call, answer: Answer, send: Send) -> None:
    """The answer; a body that was not read to its end closes the connection, so that its rest is never a request."""
    if not call.read_to_end:
        await call.drain()
    length = answer.length if answer.stream is not None else len(answer.body)
    headers = [(b"content-type", answer.media), (b"content-length", str(length).encode()), *_FIXED, *answer.headers]
    if not call.read_to_end:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.stream is None:
        await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else answer.body})
        return
    async for piece in answer.stream:
        call.moved += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _log(call: Call, note: _Note, proxies: Sequence[Network], seconds: float) -> None:
    """One line for what changed something or was refused; what only looks is not worth a line."""
    level = logging.INFO if note.status >= 400 or call.method in ("PUT", "PATCH") else logging.DEBUG
    if ACCESS.isEnabledFor(level):
        ACCESS.log(
            level,
            "call",
            extra={
                "misrc": {
                    "method": call.method if call.method.isalpha() else "?",
                    "route": note.route,
                    "status": note.status,
                    "user": note.user,
                    "client": find_client(call.client, call.headers.get(b"x-forwarded-for", b""), proxies),
                    "ms": round(seconds * 1000, 1),
                }
            },
        )
